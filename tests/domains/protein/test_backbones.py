"""Every backbone, tiny and random: roles resolve, padding is inert, both ESM libraries agree, faults are named."""

import argparse
import copy
import json
import pickle
import sys
from importlib.util import find_spec

import pytest
import torch

from core import weights
from core.adapters.sites import resolve
from core.errors import ConfigError, DataError, EnvironmentError_, PeftError
from core.paths import data_dir
from domains.protein.backbones import convert, tokens
from domains.protein.backbones.bert import ProteinBert
from domains.protein.backbones.esm import ESM2, ESM1b
from domains.protein.backbones.hf_esm import HFEsm
from domains.protein.backbones.t5 import ProteinT5

BUILD = {
    "esm2": lambda: ESM2(pretrained=False),
    "esm1b": lambda: ESM1b(pretrained=False),
    "hf_esm2": lambda: HFEsm(pretrained=False),
    "hf_esm1b": lambda: HFEsm(positions="absolute", pretrained=False),
    "t5": lambda: ProteinT5(pretrained=False),
    "t5_gated_prefix": lambda: ProteinT5(gated=True, prefix="<AA2fold>", pretrained=False),
    "bert": lambda: ProteinBert(pretrained=False),
    "roberta": lambda: ProteinBert(family="roberta", pretrained=False),
}
VH = (
    "EVQLVESGGGLVQPGGSLRLSCAASGFNIKDTYIHWVRQAPGKGLEWVARIYPTNGYTRYADSVKGRFTISADTSKNTAYLQMNSLRAEDTAVYYCSR"
    "WGGDGFYAMDYWGQGTLVTVSS"
)
LONG, SHORT = "MKVLAGEEHWYRPX", "MKWYQ"


@pytest.fixture(scope="module", params=BUILD, ids=str)
def backbone(request):
    return BUILD[request.param]().eval()


def relative(a, b):
    return ((a - b).abs().max() / b.abs().max()).item()


def test_every_role_resolves(backbone):
    for role in backbone.roles:
        sites = resolve(backbone.net, backbone.roles, [role])
        assert sites, role
        if role in ("block", "attn.q", "mlp.in", "norm"):
            assert len(sites) >= 2, role  # one per layer
    assert {
        "embed",
        "block",
        "attn",
        "attn.q",
        "attn.k",
        "attn.v",
        "attn.out",
        "mlp",
        "mlp.in",
        "mlp.out",
        "norm",
    } <= set(backbone.roles)
    assert set(backbone.batch_axis) <= set(backbone.roles)


def test_batch_axis_is_where_the_batch_is(backbone):
    """Three rows, other lengths on every other axis: the declared axis of each hooked output has length 3."""
    batch, seen = backbone.tokenizer([LONG] * 3), []
    plain = [role for role in backbone.roles if role not in ("block", "pos", "pos.bias")]
    for role in plain:
        for site in resolve(backbone.net, backbone.roles, [role]):
            axis = backbone.batch_axis.get(role, 0)

            def look(module, args, y, role=role, axis=axis):
                y = y[0] if isinstance(y, tuple) else y
                seen.append((role, y.shape[axis]))

            module = backbone.net.get_submodule(site.path)
            hook = module.register_forward_hook(look)
            backbone(batch)
            hook.remove()
    # ESM-1b reads its projections functionally: hooks there see nothing.
    assert {role for role, _ in seen} >= {"embed", "attn", "mlp.in", "mlp.out", "norm"}
    assert {n for _, n in seen} == {3}, seen


def test_a_row_alone_equals_itself_in_a_padded_batch(backbone):
    with torch.no_grad():
        both, alone = backbone(backbone.tokenizer([LONG, SHORT])), backbone(backbone.tokenizer([SHORT]))
    assert both.mask[1].sum() == alone.mask[0].sum() == len(SHORT)
    assert relative(both.hidden[1][both.mask[1]], alone.hidden[0][alone.mask[0]]) <= 1e-5  # measured 5e-7
    if both.logits is not None:
        assert relative(both.logits[1][both.mask[1]], alone.logits[0][alone.mask[0]]) <= 1e-5
    # The test can fail: with padding attended to, the same row moves.
    batch = backbone.tokenizer([LONG, SHORT])
    batch["mask"] = torch.ones_like(batch["mask"])
    batch["tokens"][1, batch["residues"].shape[1] - 1] = backbone.tokenizer.ids["L"]
    wrong = backbone(batch).hidden[1][batch["residues"][1]]
    assert relative(wrong, alone.hidden[0][alone.mask[0]]) > 1e-3


def test_nothing_random_runs_in_training_mode(backbone):
    batch = backbone.tokenizer([LONG])
    moving = copy.deepcopy(backbone).train()
    with torch.no_grad():
        assert torch.equal(moving(batch).hidden, moving(batch).hidden)


def test_tokens_stand_where_the_residues_are(backbone):
    """Residue i of the text is token i of the marked ones; letters read back."""
    batch = backbone.tokenizer([SHORT, LONG])
    letters = {i: letter for letter, i in backbone.tokenizer.ids.items()}
    for row, sequence in enumerate((SHORT, LONG)):
        read = [letters.get(t, "X") for t in batch["tokens"][row][batch["residues"][row]].tolist()]
        assert "".join(read) == sequence
        assert batch["mask"][row].sum() == len(sequence) + len(backbone.tokenizer.before) + len(
            backbone.tokenizer.after
        )
    assert pickle.loads(pickle.dumps(backbone.tokenizer)) == backbone.tokenizer


def test_same_seed_same_weights_and_no_draw_of_the_callers_numbers():
    for build in (ESM2, ESM1b, HFEsm, ProteinT5, ProteinBert):
        torch.manual_seed(3)
        before = torch.random.get_rng_state()
        a, b, c = (build(pretrained=False, seed=s).state_dict() for s in (0, 0, 1))
        assert torch.equal(torch.random.get_rng_state(), before)
        assert all(torch.equal(a[k], b[k]) for k in a) and any(not torch.equal(a[k], c[k]) for k in a)


# ---------------------------------------------------------------------- two libraries, one network


@pytest.mark.parametrize("version", ["esm2", "esm1b", "esm1v"])
@pytest.mark.parametrize("masked", [False, True])
def test_fair_esm_equals_transformers_both_ways(version, masked):
    positions = "rotary" if version == "esm2" else "absolute"
    fair = ESM2(pretrained=False) if version == "esm2" else ESM1b(pretrained=False)
    hf = HFEsm(positions=positions, pretrained=False, seed=7)
    if version != "esm2":
        hf.net.config.emb_layer_norm_before = version == "esm1b"
        from transformers import EsmForMaskedLM

        hf.net = EsmForMaskedLM(hf.net.config).eval()
        if version == "esm1v":
            fair.net.emb_layer_norm_before = None
    fair.eval()
    batch = fair.tokenizer([LONG, SHORT])
    if masked:  # token dropout rescales by the share of masks
        batch["tokens"][0, 2:5] = batch["tokens"][1, 1] = fair.tokenizer.mask
    with torch.no_grad():
        theirs = hf(batch)
        assert relative(fair(batch).hidden[batch["residues"]], theirs.hidden[batch["residues"]]) > 1e-2

        weights.fill(
            hf.net, convert.to_transformers(fair.net.state_dict()), prefix="esm", optional=("esm.rotary",), where="test"
        )
        a, b = fair(batch), hf(batch)
        for x, y in ((a.hidden, b.hidden), (a.logits, b.logits)):
            assert relative(x[batch["residues"]], y[batch["residues"]]) <= 1e-5  # measured 1e-6

        back = convert.to_fair(hf.net.state_dict())
        assert back.keys() == {k for k in fair.net.state_dict() if not k.endswith("inv_freq")}
        assert all(torch.equal(back[k], fair.net.state_dict()[k]) for k in back)


def test_contacts_agree_between_libraries():
    fair, hf = ESM2(pretrained=False).eval(), HFEsm(pretrained=False).eval()
    with pytest.raises(ConfigError, match="contact"):
        fair.contacts(fair.tokenizer([LONG]))
    with pytest.raises(ConfigError, match="contact"):
        hf.contacts(hf.tokenizer([LONG]))
    weights.fill(
        hf.net, convert.to_transformers(fair.net.state_dict()), prefix="esm", optional=("esm.rotary",), where="test"
    )
    fair.contacts_trained = hf.contacts_trained = True
    with torch.no_grad():
        batch = fair.tokenizer([LONG, SHORT])
        a, b = fair.contacts(batch), hf.contacts(batch)
    assert a.shape == (2, len(LONG), len(LONG)) and relative(a, b) <= 1e-5
    assert relative(a, a.transpose(1, 2)) <= 1e-6


# ---------------------------------------------------------------------- reading weights


def test_fair_checkpoint_is_read_without_executing_it(tmp_path):
    net = ESM2(pretrained=False, seed=5).net
    shape = {"encoder_layers": 2, "encoder_embed_dim": 32, "encoder_attention_heads": 4, "token_dropout": True}
    state = {f"encoder.sentence_encoder.{k}" if not k.startswith("lm_head") else f"encoder.{k}": v
             for k, v in net.state_dict().items() if not k.startswith("contact_head")}  # fmt: skip
    file = tmp_path / "mine.pt"
    torch.save({"cfg": {"model": argparse.Namespace(**shape)}, "model": state}, file)
    read = ESM2(str(file))
    assert not read.contacts_trained
    assert all(torch.equal(v, read.net.state_dict()[k]) for k, v in net.state_dict().items() if "contact" not in k)
    torch.save({"model": {k: v for k, v in net.state_dict().items() if k.startswith("contact_head")}},
               tmp_path / "mine-contact-regression.pt")  # fmt: skip
    assert ESM2(str(file)).contacts_trained

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    torch.save({"cfg": Evil(), "model": {}}, file)
    with pytest.raises(DataError, match="cannot be read"):
        ESM2(str(file))
    assert not (tmp_path / "owned").exists()
    file.write_bytes(b"garbage")
    with pytest.raises(DataError, match="cannot be read"):
        ESM2(str(file))


def test_folder_of_transformers_weights(tmp_path):
    from transformers import EsmModel

    base = HFEsm(pretrained=False, seed=2)
    base.net.save_pretrained(tmp_path / "whole")
    again = HFEsm(str(tmp_path / "whole"))
    assert all(torch.equal(v, again.net.state_dict()[k]) for k, v in base.net.state_dict().items())

    bare = EsmModel(base.net.config, add_pooling_layer=True)
    bare.load_state_dict(base.net.esm.state_dict(), strict=False)
    bare.save_pretrained(tmp_path / "bare")
    again = HFEsm(str(tmp_path / "bare"))
    assert not again.speaks and "head" not in again.roles  # its language-model head would be random
    batch = base.tokenizer([LONG])
    out = again(batch)
    assert out.logits is None and torch.equal(out.hidden, base(batch).hidden)

    file = tmp_path / "whole" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(DataError, match="cannot be read"):
        HFEsm(str(tmp_path / "whole"))
    wider = HFEsm(pretrained=False, width=48)
    wider.net.save_pretrained(tmp_path / "wide")
    (tmp_path / "wide" / "config.json").write_text((tmp_path / "bare" / "config.json").read_text())
    with pytest.raises(ConfigError, match="48"):
        HFEsm(str(tmp_path / "wide"))
    for text, got in (("{}", "no vocab_size, pad_token_id, mask_token_id"), ("[]", "a JSON list")):
        (tmp_path / "wide" / "config.json").write_text(text)
        with pytest.raises(DataError, match=got):
            HFEsm(str(tmp_path / "wide"))


@pytest.mark.parametrize("prefix", [None, "<AA2fold>"])
def test_t5_ids_are_those_of_its_own_vocabulary(tmp_path, prefix):
    """A sentencepiece model of single residues: our ids equal its own for the recipe's text."""
    import sentencepiece

    text = tmp_path / "text"
    text.write_text("\n".join(" ".join(tokens.STANDARD + "X") for _ in range(50)))
    options = {"model_type": "word", "vocab_size": 24, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    folder = tmp_path / "t5"
    ProteinT5(pretrained=False).net.save_pretrained(folder)
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "spiece"), minloglevel=2, hard_vocab_limit=False, **options
    )
    (folder / "added_tokens.json").write_text(json.dumps({"<AA2fold>": 24}))
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spiece.model"))
    sequence = "MKUVLBAGZEOHWX"
    recipe = " ".join("X" if a in "UZOB" else a for a in sequence)
    expected = [*([24] if prefix else []), *theirs.encode(recipe), 1]
    assert ProteinT5(str(folder), prefix=prefix).tokenizer([sequence])["tokens"][0].tolist() == expected


def test_faults_name_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(EnvironmentError_, match="download https"):
        ESM2("esm2_t6_8M_UR50D")
    with pytest.raises(ConfigError, match="did you mean `esm2_t6_8M_UR50D`"):
        ESM2("esm2_t6_8M_UR50")
    with pytest.raises(ConfigError, match="pretrained=false"):
        ESM2()
    with pytest.raises(ConfigError, match="existing folder"):
        HFEsm("./nowhere")
    monkeypatch.setenv("PEFT_ATLAS_DATA", str(tmp_path / "none"))
    with pytest.raises(EnvironmentError_, match="PEFT_ATLAS_DATA"):
        ProteinBert("sapiens_vh")
    with pytest.raises(PeftError, match=r"antiberty==0\.1\.3|trained_models"):
        monkeypatch.setattr("domains.protein.backbones.bert.util.find_spec", lambda name: None)
        ProteinBert("antiberty")


def test_too_long_is_refused_never_cut():
    for backbone in (ESM1b(positions=20, pretrained=False), ProteinBert(positions=20, pretrained=False)):
        assert backbone.tokenizer.limit == 18
        backbone(backbone.tokenizer(["A" * 18]))  # the longest that fits
        with pytest.raises(DataError, match="19 residues"):
            backbone.tokenizer(["A" * 19])
    roberta = ProteinBert(family="roberta", positions=20, pretrained=False)
    roberta(roberta.tokenizer(["A" * roberta.tokenizer.limit]))
    with pytest.raises(DataError, match="characters"):
        tokens.esm()(["MK*L"])


# ---------------------------------------------------------------------- real weights


@pytest.mark.real
@pytest.mark.skipif(data_dir() is None, reason="no folder of real data (PEFT_ATLAS_DATA)")
def test_sapiens_knows_trastuzumab():
    """Published weights read rightly: pseudo-perplexity 2.75 and masked accuracy .77 on the heavy chain."""
    from domains.protein import zero_shot

    backbone = ProteinBert("sapiens_vh")
    found = zero_shot.pseudo_perplexity(backbone, [VH])[0]
    assert found == pytest.approx(2.75, abs=0.02)
    table = zero_shot.log_probabilities(backbone, VH, range(len(VH)), masked=True)
    truth = torch.tensor(backbone.tokenizer.encode(VH))
    assert (table.argmax(1) == truth).double().mean().item() == pytest.approx(0.77, abs=0.01)


@pytest.mark.real
@pytest.mark.skipif(
    find_spec("antiberty") is None, reason="the package antiberty==0.1.3 (its weights) is not installed"
)
def test_antiberty_knows_trastuzumab():
    """Published weights read rightly, the package never imported: 1.91 on the heavy chain, 24.8 on ubiquitin."""
    from domains.protein import zero_shot

    ubiquitin = "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGG"
    found = zero_shot.pseudo_perplexity(ProteinBert("antiberty"), [VH, ubiquitin])
    assert found == pytest.approx([1.91, 24.84], rel=0.01)
    assert "antiberty" not in sys.modules
