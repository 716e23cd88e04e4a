"""Every backbone under the adapter layer: roles alive, prompts blind to padding, embedded weights and their start."""

import pytest
import torch

from core import weights
from core.adapters import attach, detach, network, summary
from core.paths import conf_dir
from domains.protein.backbones.hf_esm import EMBEDDED, HFEsm
from tests.domains.protein.test_backbones import BUILD, LONG, SHORT, relative

ACTIVATIONS = ("attn", "mlp", "block")


@pytest.fixture(scope="module", params=BUILD, ids=str)
def backbone(request):
    return BUILD[request.param]().eval()


def test_every_role_is_alive(backbone):
    """`attach` itself proves it, in three modes: a role that no forward reads raises DeadSiteError."""
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    for role in backbone.roles:
        if role.startswith("norm"):
            attach(backbone, "norm")
        elif role in ACTIVATIONS:
            attach(backbone, "houlsby", targets=[role], size=4)
        else:
            attach(backbone, "lora", targets=[role], rank=2)
        assert summary(backbone).rows, role
        detach(backbone)
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())


def test_functional_attention_rides_on_the_weight():
    """ESM-1b's projections are read by one functional call: a hook there would train nothing."""
    esm1b = BUILD["esm1b"]()
    attach(esm1b, "lora", targets=["attn.q", "attn.k", "attn.v", "attn.out"], rank=2)
    assert {row.path for row in summary(esm1b).rows} == {"weight"}
    for p in network(esm1b).parameters():
        assert p.requires_grad is False
    out = esm1b(*esm1b.example()[0])
    out.hidden.square().sum().backward()
    trained = [p for p in esm1b.parameters() if p.requires_grad]
    assert len(trained) == 16 and all(p.grad is not None for p in trained)


def test_prompts_do_not_let_padding_in(backbone):
    with torch.no_grad():
        base = backbone(backbone.tokenizer([LONG, SHORT])).hidden
    attach(backbone, "prompt", tokens=3)
    try:
        with torch.no_grad():
            both, alone = backbone(backbone.tokenizer([LONG, SHORT])), backbone(backbone.tokenizer([SHORT]))
        assert both.hidden.shape == base.shape  # virtual tokens are gone again
        assert relative(both.hidden[1][both.mask[1]], alone.hidden[0][alone.mask[0]]) <= 1e-5
        assert relative(both.hidden, base) > 1e-4  # and they did something
    finally:
        detach(backbone)


def test_embedded_weights_and_the_start_they_came_from():
    """Scratch gets the initialiser of the embedded weights' own pretraining, local heads included, under its seed."""
    from domains.protein.pretraining.initialiser import initialise

    assert "esm2_mini" in weights.shipped(EMBEDDED)
    trained, scratch, other = HFEsm("esm2_mini"), HFEsm("esm2_mini", pretrained=False, seed=3), HFEsm("esm2_mini")
    assert trained.speaks and scratch.net.config.hidden_size == trained.net.config.hidden_size
    expected = initialise(HFEsm("esm2_mini", pretrained=False, seed=9).net, 3).state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in scratch.net.state_dict().items())
    assert scratch.net.esm.encoder.layer[0].attention.self.query.bias.abs().max() > 1  # a window, not zeros
    assert all(torch.equal(v, other.net.state_dict()[k]) for k, v in trained.net.state_dict().items())
    assert not torch.equal(trained.net.lm_head.dense.weight, scratch.net.lm_head.dense.weight)


@pytest.mark.parametrize("group", ["backbone", "task"])
def test_presets_fit_their_constructors(group):
    """Every preset of this field passes the check that runs before anything heavy is imported."""
    from omegaconf import OmegaConf

    from core.source import read

    files = sorted((conf_dir() / "protein" / group).glob("*.yaml"))
    assert len(files) >= 9
    for file in files:
        assert file.read_text().startswith("# "), file.name  # what it is, and where its weights come from
        settings = OmegaConf.to_container(OmegaConf.load(file))
        definition = read(settings.pop("_target_"))
        assert definition is not None and not definition.open, file.name
        assert settings.keys() <= {p.name for p in definition.parameters}, file.name


@pytest.mark.parametrize("method", ["bitfit", "norm"])
def test_a_selection_may_hold_what_the_task_does_not_read(method):
    """A residue head never reads the language-model head, whose parameters a selection takes too: they stay, counted.
    Aimed at them alone, the selection is dead; so is LoRA there."""
    from core.adapters import head, trainable
    from core.errors import DeadSiteError
    from core.training.module import PeftModule
    from core.training.optim import Optim
    from core.training.rehearsal import _gradients, without_gradient
    from domains.protein.tasks.residue import ResidueClassification

    def idle(targets, method):
        model, task = HFEsm(pretrained=False), ResidueClassification(classes="HEC")
        attach(model, method, head=task.head(model), **({"targets": targets} if targets else {}))
        module = PeftModule(model, task, Optim(lr=0.1), tensors=trainable(model), head=head(model, "default"))
        batch = task.collate([{"id": "a", "sequence": LONG, "label": "H" * len(LONG)}], model.tokenizer)
        return without_gradient(module, "default", _gradients(module, batch))

    assert idle(None, method) == {"bitfit": 3, "norm": 2}[method]
    for dead in ("bitfit", "lora"):
        with pytest.raises(DeadSiteError, match="lm_head"):
            idle(["head"], dead)
