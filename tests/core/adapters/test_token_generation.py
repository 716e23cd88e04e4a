"""A prefix while text is generated: the cache knows nothing of it and carries a tag. HF peft gives the same numbers."""

import copy

import pytest
import torch

from core.adapters import attach, mix, trainable, use
from tests.core.adapters.hosts_under_test import relative
from tests.core.adapters.test_token_kv import host_with
from tests.core.adapters.test_tokens import generate
from tests.core.adapters.tokens_checks import refuses_stale_caches, run, stepped
from tests.core.adapters.tokens_zoo import KV, build, ids


@pytest.mark.parametrize("method", ["prefix", "gated_prefix"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_generation_with_a_cache_is_generation_without(name, method):
    host, tokens = host_with(name, own=(method, 4)), ids(2)
    text = generate(host, tokens)
    assert torch.equal(generate(host, tokens, use_cache=False), text)
    assert torch.equal(generate(host, tokens[:1]), text[:1])
    left = torch.cat([tokens[:, -2:], tokens], 1)
    mask = torch.ones_like(left)
    mask[:, :2] = 0
    assert torch.equal(generate(host, left, mask), text)
    if name == "gemma3":
        return
    beams = generate(host, tokens, num_beams=3)
    assert torch.equal(generate(host, tokens, num_beams=3, use_cache=False), beams)
    assert torch.equal(generate(host, tokens, cache_implementation="static"), text)
    with use(host.net, None):
        assert not torch.equal(generate(host, tokens), text)


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated")  # the name of all 5.x releases
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "opt", "gemma3"])
def test_cached_steps_are_teacher_forcing(name):
    host, tokens = host_with(name, own=("prefix", 4)), ids(2, 12)
    whole = run(host, tokens)
    assert relative(stepped(host, tokens), whole) <= 2e-6
    with torch.no_grad():
        out = host.net(tokens[:, :7], use_cache=True)
    cache = out.cache if hasattr(out, "cache") else out.past_key_values
    assert cache.get_seq_length() == 7  # the prefix takes no place in it


@pytest.mark.filterwarnings("ignore")
def test_mixed_rows_generate_what_each_generates_alone():
    """A prefix, a gated prefix, a prompt at the embeddings, and none: three kinds of rows over one cache."""
    host, tokens = host_with("llama", a=("prefix", 4), b=("gated_prefix", 2), c=("prompt", 3)), ids(4)
    trainable(host.net, "c")["tokens|value"].data.mul_(30)
    rows = ["a", "b", "c", None]
    with mix(host.net, rows):
        mixed = generate(host, tokens)
    for row, adapter in enumerate(rows):
        with use(host.net, adapter):
            assert torch.equal(generate(host, tokens[row : row + 1])[0], mixed[row]), adapter


@pytest.mark.parametrize("more", [{}, {"c": ("prompt", 2)}])
def test_a_cache_of_another_adapter_is_refused(more):
    """With prefixes alone, and beside a prompt, whose seam watches the cache, too."""
    host, tokens = host_with("llama", a=("prefix", 4), b=("gated_prefix", 2), **more), ids(2)
    refuses_stale_caches(host, tokens, ("b", *more))


def test_t5_generates_the_same_with_and_without_a_cache():
    host, tokens = host_with("t5", own=("prefix", 4)), ids(2)
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    text = host.net.generate(tokens, **options)
    assert torch.equal(host.net.generate(tokens, use_cache=False, **options), text)
    with use(host.net, None):
        assert not torch.equal(host.net.generate(tokens, **options), text)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("encoder", ["none", "mlp"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_hugging_face_peft_gives_the_same_prefix(name, encoder):
    peft = pytest.importorskip("peft")
    host, tokens = build(name, KV), ids()
    base = copy.deepcopy(host.net)
    options = {"encoder": encoder, "hidden": 6} if encoder == "mlp" else {}
    attach(host.net, "prefix", tokens=4, roles={}, example=((), {"input_ids": tokens}), seed=0, **options)
    own = {key.removeprefix("tokens|"): p.data for key, p in trainable(host.net).items()}
    if encoder == "none":
        own["value"].mul_(30)
    more = {"prefix_projection": True, "encoder_hidden_size": 6} if encoder == "mlp" else {}
    theirs = peft.get_peft_model(base, peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, **more))
    table = theirs.eval().prompt_encoder["default"]
    table.embedding.weight.data.copy_(own["value"])
    if encoder == "mlp":
        for here, there in (("inner", table.transform[0]), ("outer", table.transform[2])):
            there.weight.data.copy_(own[f"{here}.weight"])
            there.bias.data.copy_(own[f"{here}.bias"])
    mask = torch.ones_like(tokens)
    with torch.no_grad():
        expected = theirs(input_ids=tokens, attention_mask=mask).logits
    mine = run(host, tokens, mask)
    torch.testing.assert_close(mine, expected, rtol=0, atol=1e-5)
    with use(host.net, None):
        assert relative(run(host, tokens, mask), mine) > 1e-2


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("encoder", ["lstm", "mlp"])
def test_hugging_face_peft_gives_the_same_p_tuning(encoder):
    peft = pytest.importorskip("peft")
    host, tokens = build("llama", KV), ids()
    base, example = copy.deepcopy(host.net), ((), {"input_ids": tokens})
    attach(host.net, "p_tuning", tokens=4, encoder=encoder, hidden=6, roles={}, example=example, seed=0)
    kind = {"lstm": "LSTM", "mlp": "MLP"}[encoder]
    more = {"encoder_reparameterization_type": kind, "encoder_hidden_size": 6, "encoder_num_layers": 2}
    config = peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4, encoder_dropout=0.0, **more)
    theirs = peft.get_peft_model(base, config).eval()
    table, own = theirs.prompt_encoder["default"], host.net._peft.tokens["default"]
    table.embedding.weight.data.copy_(own.value)
    names = {"lstm_head": own.lstm, "mlp_head": own.mlp}
    for name, mine in names.items():
        if mine is not None:
            getattr(table, name).load_state_dict(mine.state_dict())
    mask = torch.ones_like(tokens)
    with torch.no_grad():
        expected = theirs(input_ids=tokens, attention_mask=mask).logits[:, 4:]
        torch.testing.assert_close(own(), table(torch.arange(4)[None])[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(run(host, tokens, mask), expected, rtol=0, atol=1e-5)
