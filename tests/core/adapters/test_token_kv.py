"""Virtual keys and values: the closed form, no trace in cache, lengths and base, one call of attention per module."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from core.adapters import attach, mix, save_adapter, set_active, summary, trainable, use
from core.adapters.base import KeyValues
from core.adapters.io import load_adapter
from core.adapters.token_kv import attended
from core.errors import DeadSiteError, UnsupportedError
from tests.core.adapters.hosts_under_test import relative
from tests.core.adapters.tokens_checks import copies_are_equal_and_independent, padded_and_alone, run, untouched
from tests.core.adapters.tokens_zoo import IMAGES, KV, TEXT, build, ids, kv_mha

MASKED = [name for name in KV if name not in (*IMAGES, "t5")]
WHOLE = [name for name in KV if name not in ("swin", "t5")]  # one row of attention per row of the batch, all rows real


def host_with(name, **methods):
    """A host with one adapter per keyword (name=(method, tokens)), none near zero; the first one active."""
    host = build(name, KV)
    host.net.requires_grad_(False)
    for adapter, (method, tokens) in methods.items():
        example = lambda: ((), {})  # noqa: E731 (never called: verify is off)
        options = {"tokens": tokens, "roles": {}, "example": example, "verify": False, "seed": tokens}
        attach(host.net, method, name=adapter, **options)
        for key, p in trainable(host.net, adapter).items():
            p.data.add_(1.0) if "gate" in key else p.data.mul_(30 if method == "prefix" else 1)
    set_active(host.net, next(iter(methods)))
    return host


# The definition ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", ["none", "causal", "bool", "float", "broadcast"])
@pytest.mark.parametrize("gated", [False, True])
def test_attention_is_the_formula(mask, gated):
    """By hand in float64: 4 query heads on 2 key/value heads, key lengths that differ from the queries'."""
    torch.manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64)  # noqa: E731
    q, k, v, own_k, own_v, gate = (
        draw(3, 4, 5, 8),
        draw(3, 2, 6, 8),
        draw(3, 2, 6, 8),
        draw(2, 3, 8),
        draw(2, 3, 8),
        draw(2),
    )
    seen = {"none": torch.ones(5, 6), "causal": torch.ones(5, 6).tril(), "bool": torch.rand(3, 1, 5, 6) > 0.3}
    seen |= {"float": draw(3, 4, 5, 6), "broadcast": (torch.rand(3, 1, 1, 6) > 0.3)}
    given = None if mask in ("none", "causal") else seen[mask]
    own = KeyValues(own_k, own_v, gate if gated else None)
    found = attended(own, q, k, v, given, 0.0, mask == "causal", scale=0.5, enable_gqa=True)

    twice = lambda t: t.repeat_interleave(2, -3)  # noqa: E731
    scores = 0.5 * q @ twice(k).mT
    scores = scores + seen[mask] if mask == "float" else scores.masked_fill(~seen[mask].bool(), -torch.inf)
    virtual = 0.5 * q @ twice(own_k).mT
    if gated:
        extra = twice(gate[:, None, None]) * virtual.softmax(-1) @ twice(own_v)
        expected = scores.softmax(-1).nan_to_num() @ twice(v) + extra
    else:
        values = torch.cat([twice(own_v).expand(3, -1, -1, -1), twice(v)], -2)
        expected = torch.cat([virtual, scores], -1).softmax(-1) @ values
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_keys_repeated_or_packed_by_the_library_give_the_same():
    """Libraries repeat key heads for each query head, or fold one decoding step's query heads into the length."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 4, 1, 8), torch.randn(3, 2, 6, 8), torch.randn(3, 2, 6, 8)
    for own in (KeyValues(torch.randn(2, 3, 8), torch.randn(2, 3, 8), g) for g in (None, torch.randn(2))):
        plain = attended(own, q, k, v, enable_gqa=True)
        repeated = attended(own, q, k.repeat_interleave(2, 1), v.repeat_interleave(2, 1))
        packed = attended(own, q.view(3, 2, 2, 8), k, v).view(3, 4, 1, 8)
        torch.testing.assert_close(repeated, plain)
        torch.testing.assert_close(packed, plain)


# In networks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KV)
def test_gate_zero_is_the_base_a_prefix_moves_it_detach_leaves_nothing(name):
    host, tokens = build(name, KV), ids()
    shared = {"roles": {}, "example": lambda: ((), {}), "verify": False, "seed": 0}
    with untouched(host, tokens) as before:
        attach(host.net, "gated_prefix", name="gated", **shared)
        start = run(host, tokens)
        if name in ("swin", "mha"):  # fused attention only while a prefix acts; torch's fused kernel without one
            assert relative(start, before) <= 1e-6
        else:
            assert torch.equal(start, before)
        attach(host.net, "prefix", name="prefix", **shared)
        trainable(host.net, "prefix")["tokens|value"].data.mul_(30)
        on = run(host, tokens)
        assert on.shape == before.shape and relative(on, before) > 1e-3


@pytest.mark.parametrize("name", KV)
def test_every_key_and_value_gets_a_gradient_and_the_base_none(name):
    host = host_with(name, own=("prefix", 3))
    host.call(ids()).square().sum().backward()
    method = host.net._peft.tokens["own"]
    for layer, (heads, channels) in enumerate(method.shapes):
        rows = slice(sum(method.widths[:layer]), sum(method.widths[: layer + 1]))
        grad = method.value.grad[:, rows].view(3, 2, heads, channels)
        assert bool((grad.abs().amax(-1) > 0).all()), layer
    assert all(p.grad is None for key, p in host.net.named_parameters() if not key.startswith("_peft"))


@pytest.mark.parametrize("method", ["prefix", "gated_prefix"])
@pytest.mark.parametrize("name", MASKED)
def test_a_padded_row_is_the_row_alone(name, method):
    host, tokens = host_with(name, own=(method, 3)), ids(high=20)
    real = 5 if name == "wav2vec2" else 6  # its convolution over positions sees beyond the last frame, adapter or not
    with use(host.net, None):
        assert relative(*padded_and_alone(host, tokens, real)) <= 2e-6
    batch, alone = padded_and_alone(host, tokens, real)
    assert relative(batch, alone) <= 2e-6
    if not host.decoder:
        return
    left, padded = torch.cat([tokens[1:2, 6:], tokens[1:2, :6]], 1), torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1]])
    positions = {} if method == "prefix" else {"position_ids": (padded.cumsum(1) - 1).clamp_min(0)}
    assert relative(run(host, left, padded, **positions)[:, 3:], alone) <= 2e-6


@pytest.mark.parametrize("name", ["llama", "gpt2", "esm"])
def test_left_padding_without_positions_is_refused_where_keys_keep_their_place(name):
    host, tokens = host_with(name, own=("gated_prefix", 3)), ids()
    mask = torch.ones_like(tokens)
    mask[0, :2] = 0
    with pytest.raises(UnsupportedError, match="left-padded"):
        run(host, tokens, mask)
    with use(host.net, None):
        run(host, tokens, mask)


@pytest.mark.parametrize("name", WHOLE)
def test_mixed_rows_are_each_row_alone(name):
    """A prefix of 4, a gated one of 2 and none at all in one batch, padded where the network knows masks."""
    host, tokens = host_with(name, a=("prefix", 4), b=("gated_prefix", 2)), ids()
    mask = None
    if name in TEXT or name == "listener":
        mask = torch.ones_like(tokens)
        mask[0, 7:] = 0
    with mix(host.net, ["a", "b", None]):
        mixed = run(host, tokens, mask)
    for row, adapter in enumerate(["a", "b", None]):
        with use(host.net, adapter):
            alone = run(host, tokens, mask)[row]
        real = slice(0, 7 if mask is not None and row == 0 else None)
        assert relative(mixed[row][real], alone[real]) <= 2e-6


def test_windows_cannot_be_mixed():
    host = host_with("swin", a=("prefix", 2), b=("prefix", 3))
    with mix(host.net, ["a", "b", None]), pytest.raises(Exception, match="windows cannot be mixed"):
        run(host, ids())


def test_swin_has_its_own_attention_while_no_prefix_acts():
    host = host_with("swin", own=("prefix", 2))
    attention = host.net.layers[0].blocks[0].attn
    run(host, ids())
    assert attention.fused_attn is False


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")  # the name of all 5.x releases
@pytest.mark.parametrize("name", ["llama", "esm"])
def test_gradient_checkpointing_changes_nothing(name):
    host, tokens = host_with(name, own=("prefix", 3)), ids()
    value = trainable(host.net, "own")["tokens|value"]
    (plain,) = torch.autograd.grad(host.call(tokens).square().sum(), value)
    host.net.train()
    for module in host.net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    host.net.gradient_checkpointing_enable({"use_reentrant": False})
    (saved,) = torch.autograd.grad(host.call(tokens).square().sum(), value)
    torch.testing.assert_close(saved, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["prefix", "gated_prefix"])
def test_copies_and_files_are_equal_and_independent(method, tmp_path):
    options = {"encoder": "mlp", "hidden": 5} if method == "prefix" else {}
    host, tokens = build("llama", KV), ids()
    attach(host.net, method, tokens=3, roles={}, example=((), {"input_ids": tokens}), seed=1, **options)
    for p in trainable(host.net).values():
        p.data.add_(0.3)
    y = copies_are_equal_and_independent(host, tokens)
    save_adapter(host.net, tmp_path)
    other = build("llama", KV)
    load_adapter(other.net, tmp_path, example=((), {"input_ids": tokens}), roles={})
    assert torch.equal(run(other, tokens), y)


def test_compiled_graph_has_no_break():
    host, tokens = host_with("llama", own=("prefix", 3)), ids()
    explained = torch._dynamo.explain(host.net)(tokens, use_cache=False)
    torch._dynamo.reset()
    assert (explained.graph_break_count, explained.graph_count) == (0, 1)


# Refused -------------------------------------------------------------------------------------------------------------


def test_an_attention_without_the_call_is_named():
    host, tokens = build("llama", KV), ids()
    host.net.set_attn_implementation("eager")
    with pytest.raises(UnsupportedError, match=r"LlamaAttention model\.layers\.0\.self_attn[\s\S]*0 calls[\s\S]*sdpa"):
        attach(host.net, "prefix", roles={}, example=((), {"input_ids": tokens}))
    assert "_peft" not in host.net._modules and not any("_adapters" in m.__dict__ for m in host.net.modules())


def test_torchs_own_attention_without_maps_works_with_maps_is_refused():
    x = torch.randn(2, 5, 32)
    host = kv_mha()
    attach(host.net, "prefix", roles={}, example=((x,), {}), seed=0)
    own = host.net._peft.tokens["default"](0)
    inner = host.net.attention
    q, k, v = (
        t.view(2, 5, 4, 8).transpose(1, 2) for t in F.linear(x, inner.in_proj_weight, inner.in_proj_bias).chunk(3, -1)
    )
    y = attended(own, q, k, v).transpose(1, 2).reshape(2, 5, 32)
    torch.testing.assert_close(host.net(x), inner.out_proj(y))
    with pytest.raises(UnsupportedError, match="MultiheadAttention attention"):
        attach(kv_mha(maps=True).net, "prefix", roles={}, example=((x,), {}))


def test_an_attention_that_is_passed_by_in_one_mode_is_named():
    """The fused kernel of nn.TransformerEncoderLayer never calls its attention module."""
    from core.contracts import TokenPort

    layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True, dropout=0.0)
    net = nn.Module()
    net.layer, net.token_port = layer, TokenPort(attn="layer.self_attn", heads="num_heads", head_dim="head_dim")
    net.forward = lambda x: net.layer(x)
    with pytest.raises(DeadSiteError, match=r"layer\.self_attn\|tokens[\s\S]*not called in eval \+ no_grad"):
        attach(net, "prefix", roles={}, example=((torch.randn(2, 5, 32),), {}))


def test_a_port_without_attention_says_what_it_has():
    from domains.protein.backbones.esm import ESM2

    backbone = ESM2(layers=2, width=32, heads=4, pretrained=False)
    with pytest.raises(UnsupportedError, match=r"scaled_dot_product_attention[\s\S]*text/llama[\s\S]*prompt"):
        attach(backbone, "prefix")
    host = build("llama", KV)
    with pytest.raises(UnsupportedError, match=r"cache[\s\S]*vision_medical/vit[\s\S]*prefix"):
        attach(host.net, "vpt_deep", roles={}, example=((), {"input_ids": ids()}))


def test_attach_proves_every_attention_and_reports():
    host = build("llama", KV)
    attach(host.net, "prefix", tokens=3, roles={}, example=((), {"input_ids": ids()}), seed=0)
    row = summary(host.net).rows[0]
    assert (row.why, row.host, row.shape) == (
        "keys and values of 2 attentions, positions + 3",
        "LlamaAttention",
        (3, 64),
    )
