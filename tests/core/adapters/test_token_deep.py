"""Prompts before every block, and the token methods' counts, starts and options."""

import pytest
import torch

from core import profiles
from core.adapters import attach, detach, methods, mix, plan, save_adapter, set_active, summary, trainable, use
from core.adapters.io import load_adapter
from core.errors import ConfigError, UnsupportedError
from tests.core.adapters.hosts_under_test import relative
from tests.core.adapters.tokens_checks import copies_are_equal_and_independent, padded_and_alone, run, untouched
from tests.core.adapters.tokens_zoo import DEEP, DOMAINS, KV, build, ids

MASKED = [name for name in DEEP if name != "vit"]
FREE = {"roles": {}, "example": lambda: ((), {}), "verify": False}


def deep(name, method="vpt_deep", **lengths):
    host = build(name, DEEP)
    host.net.requires_grad_(False)
    for adapter, length in (lengths or {"own": 4}).items():
        attach(host.net, method, name=adapter, tokens=length, seed=length, **FREE)
        trainable(host.net, adapter)["tokens|value"].data.mul_(8)
    set_active(host.net, next(iter(lengths or {"own": 4})))
    return host


@pytest.mark.parametrize("name", DEEP)
def test_every_block_has_tokens_of_its_own_and_leaves_none(name):
    host, tokens = build(name, DEEP), ids()
    with untouched(host, tokens) as before:
        attach(host.net, "vpt_deep", tokens=4, seed=0, **FREE)
        value = trainable(host.net)["tokens|value"]
        value.data.mul_(8)
        y = host.call(tokens)
        assert y.shape == before.shape and relative(y, before) > 1e-3
        y.square().sum().backward()
        assert value.shape == (2, 4, 32) and bool((value.grad.abs().amax(-1) > 0).all())


def test_it_is_the_paper_written_out():
    """timm's blocks by hand: [P_l; x] in, the prompts' outputs dropped, the next block gets its own."""
    host, tokens = deep("vit"), ids()
    value, taken = trainable(host.net, "own")["tokens|value"], {}
    with use(host.net, None):
        hook = host.net.blocks[0].register_forward_pre_hook(lambda m, args: taken.setdefault("x", args[0]))
        run(host, tokens)
        hook.remove()
        x = taken["x"]
        with torch.no_grad():
            for block, own in zip(host.net.blocks, value, strict=True):
                x = block(torch.cat([own.expand(len(x), -1, -1), x], 1))[:, 4:]
            expected = host.net.norm(x)
    torch.testing.assert_close(run(host, tokens), expected)


@pytest.mark.parametrize("name", MASKED)
def test_a_padded_row_is_the_row_alone(name):
    host, tokens = deep(name), ids()
    assert relative(*padded_and_alone(host, tokens, 3 if name == "wav2vec2" else 6)) <= 2e-6


@pytest.mark.parametrize("name", MASKED)
def test_mixed_rows_are_each_row_alone(name):
    host, tokens = deep(name, a=4, b=2), ids()
    with mix(host.net, ["a", "b", None]):
        mixed = run(host, tokens)
    for row, adapter in enumerate(["a", "b", None]):
        with use(host.net, adapter):
            assert relative(mixed[row], run(host, tokens)[row]) <= 2e-6


def test_shallow_and_deep_rows_are_refused_in_one_batch():
    host, tokens = deep("hf_esm", a=4), ids()
    attach(host.net, "vpt_shallow", name="s", tokens=4, seed=0, **FREE)
    with mix(host.net, ["a", "s", None]), pytest.raises(UnsupportedError, match="shallow and deep"):
        run(host, tokens)


@pytest.mark.parametrize("method", ["vpt_shallow", "vpt_deep", "p_tuning"])
def test_states_and_maps_keep_their_length(method):
    tokens = ids()
    for name in ("hf_esm", "bert"):
        host = build(name, DEEP)
        attach(host.net, method, tokens=4, seed=0, **FREE)
        out = host.net(tokens, output_hidden_states=True)
        assert {h.shape[1] for h in out.hidden_states} == {9}, name
    host = build("fair_esm", DEEP)
    attach(host.net, method, tokens=4, seed=0, **FREE)
    out = host.net(tokens, repr_layers=[0, 1, 2], return_contacts=True)
    assert {r.shape[1] for r in out["representations"].values()} == {9}
    assert out["attentions"].shape[-2:] == (9, 9) and out["contacts"].shape == (3, 7, 7)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")  # the name of all 5.x releases
def test_gradient_checkpointing_changes_nothing():
    host, tokens = deep("hf_esm"), ids()
    value = trainable(host.net, "own")["tokens|value"]
    (plain,) = torch.autograd.grad(host.call(tokens).square().sum(), value)
    host.net.train()
    for module in host.net.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    host.net.gradient_checkpointing_enable({"use_reentrant": False})
    (saved,) = torch.autograd.grad(host.call(tokens).square().sum(), value)
    torch.testing.assert_close(saved, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["vpt_deep", "vpt_shallow", "p_tuning"])
def test_copies_and_files_are_equal_and_independent(method, tmp_path):
    host, tokens = build("hf_esm", DEEP), ids()
    attach(host.net, method, tokens=3, roles={}, example=((tokens,), {}), seed=1)
    y = copies_are_equal_and_independent(host, tokens)
    save_adapter(host.net, tmp_path)
    other = build("hf_esm", DEEP)
    load_adapter(other.net, tmp_path, example=((tokens,), {}), roles={})
    assert torch.equal(run(other, tokens), y)


# Counts, starts, options ---------------------------------------------------------------------------------------------


def test_published_counts():
    """LLaMA-7B prefixes of 10 and 30, VPT-deep of 10 on ViT-B, on networks without memory."""
    import timm
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        llama, vit = LlamaForCausalLM(LlamaConfig()), timm.create_model("vit_base_patch16_224")
    llama.token_port = profiles.find(llama, DOMAINS / "text/backbones/profiles").port
    vit.token_port = profiles.find(vit, DOMAINS / "vision_medical/backbones/profiles/timm").port
    count = lambda net, method, p: plan(net, method, tokens=p, **FREE).parameters  # noqa: E731
    assert count(llama, "prefix", 10) == 2_621_440 and count(llama, "prefix", 30) == 7_864_320
    assert count(llama, "gated_prefix", 10) == 2_621_440 + 32 * 32
    assert count(vit, "vpt_deep", 10) == 92_160 and count(vit, "vpt_shallow", 50) == 38_400


def test_closed_forms_of_the_encoders():
    def count(name, first, **options):
        return sum(p.numel() for p in methods.find(name)(first, **options).parameters())

    p, d, h = 3, 8, 5
    assert count("p_tuning", d, tokens=p, encoder="mlp", hidden=h) == p * d + d * h + h + h * h + h + h * d + d
    lstm = 8 * h * (d + h + 2) + 8 * h * (3 * h + 2)
    assert count("p_tuning", d, tokens=p, encoder="lstm", hidden=h) == p * d + lstm + 4 * h * h + 2 * h + 2 * h * d + d
    shapes = [(2, 4), (4, 4)]
    width = 2 * 8 + 2 * 16
    assert count("prefix", shapes, tokens=p) == p * width
    assert count("prefix", shapes, tokens=p, encoder="mlp", hidden=h) == p * d + d * h + h + h * width + width
    assert count("gated_prefix", shapes, tokens=p) == p * width + 6


def test_the_gate_is_a_hyperbolic_tangent():
    method = methods.find("gated_prefix")([(2, 4)], tokens=3)
    method.gate[0].data.copy_(torch.tensor([0.5, -2.0]))
    torch.testing.assert_close(method(0).gate, torch.tensor([0.5, -2.0]).tanh())


def test_vpt_starts_within_xaviers_bound():
    value = methods.find("vpt_deep")(768, 12, tokens=10, patch=16).value
    bound = (6 / (3 * 16**2 + 768)) ** 0.5
    assert 0.99 * bound < value.max() <= bound and -bound <= value.min() < -0.99 * bound


def test_shift_is_where_the_summary_says_it_is():
    """Moving real tokens is another function than not moving them, and the same as positions moved by hand."""
    tokens, found = ids(), {}
    for shift in (True, False):
        host = build("llama", KV)
        attach(host.net, "prefix", tokens=4, shift=shift, roles={}, example=((), {"input_ids": tokens}), seed=0)
        trainable(host.net)["tokens|value"].data.mul_(30)
        found[shift] = run(host, tokens)
        assert ("positions + 4" in summary(host.net).rows[0].why) is shift
    by_hand = run(host, tokens, position_ids=torch.arange(4, 13)[None].expand(3, -1))
    torch.testing.assert_close(by_hand, found[True])
    assert relative(found[True], found[False]) > 1e-2


def test_bad_options_name_the_choice():
    host = build("llama", KV)
    for method, options, text in (
        ("prefix", {"tokens": 0}, "at least 1"),
        ("prefix", {"encoder": "lstm"}, "none, mlp"),
        ("prefix", {"encoder": "mlp", "hidden": 0}, "at least 1"),
        ("p_tuning", {"encoder": "none"}, "lstm, mlp"),
        ("p_tuning", {"hidden": 0}, "at least 1"),
        ("gated_prefix", {"gate": 1}, "tokens"),
    ):
        with pytest.raises(ConfigError, match=text):
            attach(host.net, method, roles={}, example=((), {"input_ids": ids()}), **options)
        assert "_peft" not in host.net._modules


@pytest.mark.parametrize(("method", "name"), [("prefix", "gpt2"), ("prefix", "opt"), ("prompt", "gpt2")])
def test_more_tokens_than_the_network_has_positions(method, name):
    host = build(name, KV)
    with pytest.raises(UnsupportedError, match="60 virtual tokens before 9 real ones"):
        attach(host.net, method, tokens=60, roles={}, example=((), {"input_ids": ids()}))
    assert "_peft" not in host.net._modules
    attach(host.net, method, tokens=50, roles={}, example=((), {"input_ids": ids()}))


def test_both_seams_of_one_network_come_and_go_apart():
    """BERT offers all three: each goes with its own last adapter."""
    host, tokens = build("bert", KV), ids()
    host.net.requires_grad_(False)
    before, classes = run(host, tokens), [type(m) for m in host.net.modules()]
    for method in ("prompt", "vpt_deep", "prefix"):
        attach(host.net, method, name=method, seed=0, **FREE)
    found = {}
    for method in ("prompt", "vpt_deep", "prefix"):
        set_active(host.net, method)
        found[method] = run(host, tokens)
        assert relative(found[method], before) > 1e-4
    detach(host.net, "prompt")
    for method in ("vpt_deep", "prefix"):
        set_active(host.net, method)
        assert torch.equal(run(host, tokens), found[method])
    detach(host.net, "prefix")
    set_active(host.net, "vpt_deep")
    assert torch.equal(run(host, tokens), found["vpt_deep"])
    detach(host.net)
    assert torch.equal(run(host, tokens), before) and [type(m) for m in host.net.modules()] == classes
