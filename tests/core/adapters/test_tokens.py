"""Virtual tokens: no trace in lengths, labels and the base; positions follow the mask; caches tell the truth."""

import copy

import pytest
import torch
from torch import nn

from core.adapters import attach, detach, merge, mix, plan, set_active, summary, trainable, use
from core.contracts import TokenPort
from core.errors import ConfigError, UnsupportedError
from tests.core.adapters.hosts_under_test import relative
from tests.core.adapters.tokens_checks import (
    copies_are_equal_and_independent,
    padded_and_alone,
    refuses_stale_caches,
    run,
    stepped,
    untouched,
)
from tests.core.adapters.tokens_zoo import BLOCKS, ZOO, bert, build, ids

MASKED = [name for name in ZOO if name != "vit"]


def prompted(name, **lengths):
    """A ported network with one prompt per keyword (name=length), far from zero, the first one active."""
    host = build(name)
    for adapter, length in (lengths or {"default": 4}).items():
        example = lambda: ((), {})  # noqa: E731 (never called: verify is off)
        attach(host.net, "prompt", name=adapter, tokens=length, roles={}, example=example, verify=False, seed=length)
        trainable(host.net, adapter)["tokens|value"].data.mul_(30)
    set_active(host.net, next(iter(lengths or {"default": 4})))
    return host


@pytest.mark.parametrize("name", ZOO)
def test_off_is_the_base_on_moves_it_detach_leaves_nothing(name):
    host, tokens = build(name), ids()
    with untouched(host, tokens) as before:
        attach(host.net, "prompt", tokens=4, roles={}, example=lambda: ((), {}), verify=False, seed=0)
        trainable(host.net)["tokens|value"].data.mul_(30)
        on = run(host, tokens)
        assert on.shape == before.shape and relative(on, before) > 1e-2


@pytest.mark.parametrize("name", ZOO)
def test_every_virtual_token_gets_a_gradient_and_the_base_none(name):
    host = prompted(name)
    host.call(ids()).square().sum().backward()
    value = trainable(host.net)["tokens|value"]
    assert bool((value.grad.abs().sum(1) > 0).all())
    assert all(p.grad is None for key, p in host.net.named_parameters() if not key.startswith("_peft"))


@pytest.mark.parametrize("name", MASKED)
def test_a_padded_row_is_the_row_alone(name):
    host, tokens = prompted(name), ids()
    batch, alone = padded_and_alone(host, tokens)
    assert relative(batch, alone) <= 2e-6
    if host.decoder:
        left = torch.cat([tokens[1:2, 6:], tokens[1:2, :6]], 1)
        padded = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1]])
        assert relative(run(host, left, padded)[:, 3:], alone) <= 2e-6


@pytest.mark.parametrize("name", MASKED)
def test_mixed_rows_are_each_row_alone(name):
    """Prompts of 4 and 2 tokens and none at all in one batch, with padding."""
    host, tokens = prompted(name, a=4, b=2), ids()
    mask = torch.ones_like(tokens)
    mask[0, 7:] = 0
    with mix(host.net, ["a", "b", None]):
        mixed = run(host, tokens, mask)
    for row, adapter in enumerate(["a", "b", None]):
        with use(host.net, adapter):
            alone = run(host, tokens, mask)[row]
        real = slice(0, 7 if row == 0 else None)
        assert relative(mixed[row][real], alone[real]) <= 2e-6


def test_mixing_without_a_mask_needs_equal_lengths():
    host, tokens = prompted("vit", a=3, b=3, c=2), ids()
    with mix(host.net, ["a", "b", "a"]):
        mixed = run(host, tokens)
    with use(host.net, "b"):
        assert relative(mixed[1], run(host, tokens)[1]) <= 2e-6
    with mix(host.net, ["a", "c", "a"]), pytest.raises(UnsupportedError, match="different lengths"):
        run(host, tokens)
    with mix(host.net, ["a", "b"]), pytest.raises(ConfigError, match="3 rows"):
        run(host, tokens)


@pytest.mark.parametrize("name", ["t5_encoder", "bert", "hf_esm", "fair_esm"])
def test_left_padded_encoders_are_refused(name):
    host, tokens = prompted(name), ids()
    mask = torch.ones_like(tokens)
    mask[0, :2] = 0
    with pytest.raises(UnsupportedError, match="left-padded"):
        run(host, tokens, mask)
    with use(host.net, None):
        run(host, tokens, mask)


@pytest.mark.parametrize("name", ["llama", "hf_esm", "fair_esm"])
def test_copies_are_equal_and_independent(name):
    copies_are_equal_and_independent(prompted(name), ids())


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")  # the name of all 5.x releases
@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "hf_esm"])
def test_gradient_checkpointing_changes_nothing(name):
    host, tokens = prompted(name), ids()
    value = trainable(host.net)["tokens|value"]
    (plain,) = torch.autograd.grad(host.call(tokens).square().sum(), value)
    host.net.train()
    for module in host.net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    host.net.gradient_checkpointing_enable({"use_reentrant": False})
    (saved,) = torch.autograd.grad(host.call(tokens).square().sum(), value)
    torch.testing.assert_close(saved, plain, rtol=1e-5, atol=1e-6)


def test_intermediate_states_and_maps_keep_their_length():
    tokens = ids()
    for name in ("llama", "bert", "hf_esm"):
        host = prompted(name)
        out = host.net(tokens, output_hidden_states=True)
        assert {h.shape[1] for h in out.hidden_states} == {tokens.shape[1]}, name
    host = prompted("fair_esm")
    out = host.net(tokens, repr_layers=[0, 1, 2], return_contacts=True)
    assert {r.shape[1] for r in out["representations"].values()} == {tokens.shape[1]}
    assert out["attentions"].shape[-2:] == (9, 9) and out["contacts"].shape == (3, 7, 7)


def test_rotary_blocks_hold_the_prompt_at_position_zero():
    """The same from the base alone: embeddings with the prompt in front, real tokens at positions 0, 1, ..."""
    host, tokens = prompted("hf_esm"), ids()
    mine, value = run(host, tokens), trainable(host.net)["tokens|value"]
    with use(host.net, None), torch.no_grad():
        x = torch.cat([value.expand(3, -1, -1), host.net.esm.embeddings(tokens, torch.ones_like(tokens))], 1)
        positions = torch.cat([torch.zeros(4, dtype=torch.long), torch.arange(9)])[None]
        hidden = host.net.esm(inputs_embeds=x, position_ids=positions).last_hidden_state[:, 4:]
        assert relative(mine, host.net.lm_head(hidden)) <= 2e-6


def test_labels_are_untouched():
    """The library's own loss on the logits of real tokens, none rewritten."""
    host, tokens = prompted("llama"), ids()
    out = host.net(tokens, labels=tokens)
    expected = torch.nn.functional.cross_entropy(out.logits[:, :-1].reshape(-1, 64), tokens[:, 1:].reshape(-1))
    torch.testing.assert_close(out.loss, expected)


def test_a_prompt_beside_a_weight_adapter():
    """Both act: the prompt passes through an adapted embedding's network as if the change were merged."""
    host, tokens = prompted("llama", prompt=4), ids()
    roles = {"embed": "model.embed_tokens", "attn.q": "model.layers.*.self_attn.q_proj"}
    example = ((), {"input_ids": tokens})
    attach(host.net, "lora", targets=list(roles), roles=roles, example=example, name="low", seed=0)
    for p in trainable(host.net, "low").values():
        p.data.add_(0.1)
    alone = run(host, tokens)
    set_active(host.net, ["prompt", "low"])
    both = run(host, tokens)
    assert relative(run(host, None, inputs_embeds=host.net.model.embed_tokens(tokens)), both) <= 2e-6
    set_active(host.net, "prompt")
    assert relative(both, run(host, tokens)) > 1e-3 and relative(both, alone) > 1e-3
    set_active(host.net, ["prompt", "low"])
    host.net._peft.example = example  # `prompted` attaches without one
    merge(host.net, "low")
    assert relative(run(host, tokens), both) <= 1e-5


# Generation ----------------------------------------------------------------------------------------------------------


def generate(host, tokens, mask=None, **options):
    mask = torch.ones_like(tokens) if mask is None else mask
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None, **options}
    return host.net.generate(tokens, attention_mask=mask, **options)[:, tokens.shape[1] :]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_generation_with_a_cache_is_generation_without(name):
    host, tokens = prompted(name), ids(2)
    text = generate(host, tokens)
    assert torch.equal(generate(host, tokens, use_cache=False), text)
    assert torch.equal(generate(host, tokens[:1]), text[:1])
    left = torch.cat([tokens[:, -2:], tokens], 1)
    mask = torch.ones_like(left)
    mask[:, :2] = 0
    assert torch.equal(generate(host, left, mask), text)
    beams = generate(host, tokens, num_beams=3)
    assert torch.equal(generate(host, tokens, num_beams=3, use_cache=False), beams)
    with use(host.net, None):
        assert not torch.equal(generate(host, tokens), text)


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated")  # the name of all 5.x releases
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_cached_steps_are_teacher_forcing(name):
    host, tokens = prompted(name), ids(2, 12)
    whole = run(host, tokens)
    assert relative(stepped(host, tokens), whole) <= 2e-6


@pytest.mark.filterwarnings("ignore")
def test_mixed_rows_generate_what_each_generates_alone():
    host, tokens = prompted("llama", a=4, b=2), ids(3)
    with mix(host.net, ["a", "b", None]):
        mixed = generate(host, tokens)
    for row, adapter in enumerate(["a", "b", None]):
        with use(host.net, adapter):
            assert torch.equal(generate(host, tokens[row : row + 1])[0], mixed[row])


def test_stale_and_static_caches_are_refused():
    host, tokens = prompted("llama", a=4, b=2), ids(2)
    refuses_stale_caches(host, tokens, ("b",))
    with pytest.raises(UnsupportedError):
        generate(host, tokens, cache_implementation="static")


def test_t5_generates_the_same_with_and_without_a_cache():
    host, tokens = prompted("t5"), ids(2)
    text = host.net.generate(tokens, max_new_tokens=6, do_sample=False)
    assert torch.equal(host.net.generate(tokens, max_new_tokens=6, do_sample=False, use_cache=False), text)
    assert host.net.generate(tokens, max_new_tokens=6, num_beams=2, do_sample=False).shape[0] == 2


# Other implementations -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "t5"])
@pytest.mark.filterwarnings("ignore")
def test_hugging_face_peft_gives_the_same_numbers(name):
    """Its prompt tuning with our vectors; BERT pools its first virtual token there, so nothing stays in front."""
    peft = pytest.importorskip("peft")
    host, tokens = build(name) if name != "bert" else None, ids()
    if name == "bert":
        torch.manual_seed(0)
        host = bert(leading=0)
    base = copy.deepcopy(host.net)
    attach(host.net, "prompt", tokens=4, roles={}, example=lambda: ((), {}), verify=False, seed=0)
    value = trainable(host.net)["tokens|value"]
    kind = {"t5": "SEQ_2_SEQ_LM", "bert": "FEATURE_EXTRACTION"}.get(name, "CAUSAL_LM")
    shape = {"num_virtual_tokens": 4, "token_dim": 32, "num_layers": 2, "num_attention_heads": 4}
    if name == "t5":
        shape["num_transformer_submodules"] = 1
    theirs = peft.get_peft_model(
        base.bert if name == "bert" else base, peft.PromptTuningConfig(task_type=kind, **shape)
    )
    theirs.eval().prompt_encoder["default"].embedding.weight.data.copy_(value.data)
    mask = torch.ones_like(tokens)
    with torch.no_grad():
        if name == "bert":
            out = theirs(input_ids=tokens, attention_mask=mask).last_hidden_state[:, 4:]
            mine = host.net.bert(input_ids=tokens, attention_mask=mask).last_hidden_state
        elif name == "t5":
            start = tokens[:, :1].expand(-1, 5)
            out = theirs(input_ids=tokens, attention_mask=mask, decoder_input_ids=start).logits
            mine = host.call(tokens)
        else:
            out, mine = theirs(input_ids=tokens, attention_mask=mask).logits[:, 4:], host.call(tokens, mask)
    torch.testing.assert_close(mine, out, rtol=0, atol=1e-6)


# Attaching -----------------------------------------------------------------------------------------------------------


def test_attach_checks_liveness_and_reports_the_gradient():
    host, tokens = build("gpt2"), ids()
    attach(host.net, "prompt", tokens=3, init="vocabulary", roles={}, example=((), {"input_ids": tokens}), seed=1)
    table, value = host.net.transformer.wte.weight, trainable(host.net)["tokens|value"]
    assert all(bool((table == row).all(1).any()) for row in value)
    row = summary(host.net).rows[0]
    assert (row.site, row.path, row.why, row.host, row.shape) == (
        "tokens",
        "token",
        "input embeddings",
        "GPT2Model",
        (3, 32),
    )
    detach(host.net)
    planned = plan(host.net, "prompt", tokens=3, roles={}, example=((), {"input_ids": tokens}))
    assert planned.rows == [row] and planned.parameters == 96


def test_no_port_says_who_has_one():
    net = nn.Module()
    net.body = nn.Linear(4, 4)
    net.forward = lambda x: net.body(x)
    with pytest.raises(UnsupportedError, match=r"no token port[\s\S]*protein/bert"):
        attach(net, "prompt", roles={}, example=((torch.randn(2, 4),), {}))
    assert "_peft" not in net._modules


def test_bad_options_name_the_choice():
    for options, text in (({"tokens": 0}, "at least 1"), ({"init": "words"}, "vocabulary"), ({"token": 3}, "tokens")):
        host = build("gpt2")
        with pytest.raises(ConfigError, match=text):
            attach(host.net, "prompt", roles={}, example=((), {"input_ids": ids()}), **options)
    host = build("fair_esm")
    with pytest.raises(UnsupportedError, match="init=normal"):
        attach(host.net, "prompt", init="vocabulary", roles={}, example=((ids(),), {}))
    assert "_peft" not in host.net._modules and type(host.net.layers[0]).__name__ == "TransformerLayer"
    host = prompted("llama")
    with pytest.raises(ConfigError, match="cannot be scaled"):
        set_active(host.net, {"default": 0.5})
        run(host, ids())


def test_compiled_graph_has_no_break():
    host, tokens = prompted("fair_esm"), ids()
    port = host.net.token_port
    assert isinstance(port, TokenPort) and set(BLOCKS) == {"hf_esm", "fair_esm", "vit"}
    host = prompted("llama")
    explained = torch._dynamo.explain(host.net)(tokens, use_cache=False)
    torch._dynamo.reset()
    assert explained.graph_break_count == 0
