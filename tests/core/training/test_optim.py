"""Parameter groups by rule, the learning rate at a step, optimiser-side methods, and runs that stop and go on."""

import math

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from core import config
from core.adapters import attach, head, trainable
from core.adapters.methods import eva
from core.errors import ConfigError
from core.training.module import PeftModule
from core.training.optim import Optim
from core.training.rules.galore import GaLore, ProjectedAdamW
from core.training.rules.layerwise import Layerwise
from core.training.rules.lisa import LISA
from core.training.rules.sift import SIFT, SparseAdamW
from tests.core.training import toy


def tensors():
    shapes = {
        "a:weight|q|A": (2, 4),
        "a:weight|q|B": (4, 2),
        "a:weight|q|scale": (4,),
        "head|weight": (3, 4),
        "head|bias": (3,),
    }
    return {key: nn.Parameter(torch.ones(shape)) for key, shape in shapes.items()}


def rule(optim, found):
    """key -> (lr, weight decay)"""
    where = {id(p): (group["lr"], group["weight_decay"]) for group in optim.rules(found) for p in group["params"]}
    return {key: where[id(p)] for key, p in found.items()}


def test_vectors_never_decay():
    found = rule(Optim(lr=1.0, weight_decay=0.1), tensors())
    assert {key: decay for key, (_, decay) in found.items()} == {
        "a:weight|q|A": 0.1, "a:weight|q|B": 0.1, "a:weight|q|scale": 0.0, "head|weight": 0.1, "head|bias": 0.0,
    }  # fmt: skip


def test_ratio_touches_B_alone_and_the_head_has_its_own_rate():
    found = rule(Optim(lr=1.0, lr_ratio=16, head_lr=5.0), tensors())
    assert {key: lr for key, (lr, _) in found.items()} == {
        "a:weight|q|A": 1.0, "a:weight|q|B": 16.0, "a:weight|q|scale": 1.0, "head|weight": 5.0, "head|bias": 5.0,
    }  # fmt: skip


def test_ratio_without_B_is_refused():
    with pytest.raises(ConfigError, match="no tensor is named B"):
        Optim(lr_ratio=16).rules({"head|weight": nn.Parameter(torch.ones(2, 2))})


def test_schedule_in_closed_form():
    cosine = Optim(schedule="cosine", warmup=10, floor=0.1)
    assert [cosine.factor(s, 110) for s in (0, 9)] == pytest.approx([1 / 11, 10 / 11])
    assert cosine.factor(60, 110) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert cosine.factor(110, 110) == pytest.approx(0.1)
    assert Optim(schedule="linear", warmup=0.1).factor(55, 100) == pytest.approx(0.5)
    assert Optim(schedule="constant", warmup=0).factor(70, 100) == 1.0


def test_all_faults_at_once():
    with pytest.raises(ConfigError) as caught:
        Optim(lr=-1, weight_decay=-1, schedule="cosin", head_lr=0)
    assert [p.where for p in caught.value.problems] == [
        "optim.lr",
        "optim.head_lr",
        "optim.weight_decay",
        "optim.schedule",
    ]
    assert caught.value.problems[-1].fix == "did you mean `cosine`?"
    with pytest.raises(ConfigError) as caught:
        Optim(lr=0)  # the head takes its rate from lr: one fault, not two
    assert [p.where for p in caught.value.problems] == ["optim.lr"]


# Rules ---------------------------------------------------------------------------------------------------------------


def stepped(make, gradients, start, **options):
    """The parameter after one step per gradient."""
    p = nn.Parameter(start.clone())
    optimizer = make([{"params": [p], "lr": 0.1, "weight_decay": 0.01, **options}], lr=0.1, betas=(0.9, 0.99))
    for g in gradients:
        p.grad = g.clone()
        optimizer.step()
    return p.detach()


def draws(count, *shape):
    torch.manual_seed(1)
    return [torch.randn(shape) for _ in range(count)], torch.randn(shape)


def test_rules_that_choose_everything_are_adamw():
    """SIFT of density 1; GaLore with an identity for a subspace; a matrix that GaLore leaves to AdamW, to the bit."""
    gradients, start = draws(7, 4, 6)
    expected = stepped(torch.optim.AdamW, gradients, start)
    assert torch.allclose(stepped(SparseAdamW, gradients, start, density=1.0), expected, atol=1e-6)
    assert torch.equal(stepped(ProjectedAdamW, gradients, start), expected)
    diagonal = [torch.diag(torch.tensor([4.0, -3, 2, 1])) @ torch.eye(4, 6) * (1 + i) for i in range(7)]
    found = stepped(ProjectedAdamW, diagonal, start, galore=(4, 3, 1.0))
    assert torch.allclose(found, stepped(torch.optim.AdamW, diagonal, start), atol=1e-5)
    assert not torch.allclose(found, expected, atol=1e-2)


@pytest.mark.parametrize("shape", [(4, 6), (6, 4)], ids=["wide", "tall"])
def test_galore_is_adamw_in_the_subspace(shape):
    """AdamW on R with the gradient P^T G, its steps taken back by P; P from the gradient of the steps 0 and 3."""
    gradients, start = draws(5, *shape)
    wide, value = shape[0] <= shape[1], start.clone()
    R = nn.Parameter(torch.zeros(2, 6))
    inner = torch.optim.AdamW([R], lr=0.1, betas=(0.9, 0.99), weight_decay=0.0)
    for i, g in enumerate(gradients):
        G = g if wide else g.T
        if i % 3 == 0:
            P = torch.linalg.svd(G, full_matrices=False).U[:, :2]
        before = R.detach().clone()
        R.grad = P.T @ G
        inner.step()
        change = P @ (R.detach() - before)
        value = value * (1 - 0.1 * 0.01) + 0.25 * (change if wide else change.T)
    assert torch.allclose(stepped(ProjectedAdamW, gradients, start, galore=(2, 3, 0.25)), value, atol=1e-5)


def test_sift_moves_the_entries_of_the_largest_first_gradient():
    gradients, start = draws(4, 5, 8)
    found = stepped(SparseAdamW, gradients, start, density=0.1)
    chosen = gradients[0].abs() >= gradients[0].abs().flatten().topk(4).values[-1]
    assert torch.equal(found[~chosen], start[~chosen])
    assert torch.allclose(found[chosen], stepped(torch.optim.AdamW, gradients, start)[chosen], atol=1e-6)
    sizes = {"a|W": (4, 10), "b|v": (3,), "head|W": (5, 5)}
    assert SIFT(density=0.1).spared({key: nn.Parameter(torch.zeros(size)) for key, size in sizes.items()}) == 36 + 2


def adapted(method="full", **options):
    backbone = toy.Toy()
    attach(backbone, method, head=nn.Linear(toy.WIDTH, 1), **options)
    return backbone, trainable(backbone)


def test_layerwise_rates():
    """Two blocks: the input layer decay^3, blocks decay^2 and decay, the head 1; for an adapter's tensors likewise."""
    backbone, found = adapted()
    groups = Optim(lr=1.0, rule=Layerwise(decay=0.5)).rules(found, backbone)
    where = {id(p): group["lr"] for group in groups for p in group["params"]}
    rates = {key.split("|")[0]: where[id(p)] for key, p in found.items()}
    assert rates == {
        "embed:weight": 0.125, "embed:bias": 0.125, "norm:weight": 0.125, "norm:bias": 0.125,
        "blocks.0.0:weight": 0.25, "blocks.0.0:bias": 0.25, "blocks.1.0:weight": 0.5, "blocks.1.0:bias": 0.5, "head": 1,
    }  # fmt: skip
    backbone, found = adapted("lora", targets=["mlp"], rank=2)
    groups = Optim(lr=1.0, rule=Layerwise(decay=0.5)).rules(found, backbone)
    assert sorted({group["lr"] for group in groups}) == [0.25, 0.5, 1.0]


def test_lisa_freezes_all_blocks_but_one():
    """Bit-equal while frozen, others drawn after three steps, no moments kept; embeddings and head always train."""
    backbone, found = adapted()
    optim = Optim(lr=0.1, schedule="constant", warmup=0, rule=LISA(active=1, every=3))
    optim.seed = 2
    optimizer, _ = optim.build(found, 30, backbone)
    batch = toy_batch()
    seen = []
    for step in range(12):
        before = {key: p.detach().clone() for key, p in found.items()}
        optimizer.zero_grad()
        (head(backbone)(backbone(batch).hidden) ** 2).sum().backward()
        optimizer.step()
        moved = {key.split(":")[0] for key, p in found.items() if not torch.equal(before[key], p)}
        blocks = {name for name in moved if name.startswith("blocks")}
        assert len(blocks) == 1 and {"embed", "norm", "head|weight"} <= moved, step
        seen.append(blocks.pop())
    assert [len(set(seen[i : i + 3])) for i in range(0, 12, 3)] == [1, 1, 1, 1] and len(set(seen)) == 2
    kept = [p for p in optimizer.state if any(p is q for key, q in found.items() if key.startswith("blocks"))]
    assert len(kept) <= 2


@pytest.mark.parametrize("rule", [lambda: LISA(active=3), lambda: GaLore(rank=12)], ids=["lisa", "galore"])
def test_a_rule_that_does_not_fit_the_network_is_refused(rule):
    backbone, found = adapted()
    with pytest.raises(ConfigError, match=r"1 to 2|less than the shorter side"):
        Optim(rule=rule()).rules(found, backbone)


def test_bad_rules_are_named():
    wrong = [(GaLore, "rank", 0), (LISA, "every", 0), (SIFT, "density", 2.0), (Layerwise, "decay", 0)]
    for rule, option, value in wrong:
        with pytest.raises(ConfigError, match=rf"optim\.rule\.{option}"):
            rule(**{option: value})
    with pytest.raises(ConfigError, match=r"a class of core\.training\.rules"):
        Optim(rule="galore")
    here = {"_target_": "core.training.rules.galore.GaLore", "rnak": 4}
    problems = config.find({"optim": {"lr": 1e-3, "rule": here}})
    assert ("optim.rule.rnak", "did you mean `rank`?") in [(p.where, p.fix) for p in problems]


def toy_batch():
    data = toy.ToyData()
    data.setup()
    return toy.ToyTask(noise=0.0).collate(data.items("train")[:4], None)


# Resuming ------------------------------------------------------------------------------------------------------------

FULL = {"adapter": {"_target_": "core.adapters.methods.full.Full"}}
RULES = {
    "galore": FULL | {"optim__rule": {"_target_": "core.training.rules.galore.GaLore", "rank": 2, "every": 4}},
    "lisa": FULL | {"optim__rule": {"_target_": "core.training.rules.lisa.LISA", "active": 1, "every": 3}},
    "sift": FULL | {"optim__rule": {"_target_": "core.training.rules.sift.SIFT", "density": 0.1}},
    "layerwise": FULL | {"optim__rule": {"_target_": "core.training.rules.layerwise.Layerwise"}},
    "adalora": {"adapter": {"_target_": "core.adapters.methods.adalora.AdaLoRA", "targets": ["mlp"], "rank": 3,
                            "target_rank": 1, "every": 2}},
    "eva": {"adapter": {"_target_": "core.adapters.methods.eva.EVA", "targets": ["mlp"], "rank": 2}},
    "lora_ga": {"adapter": {"_target_": "core.adapters.methods.lora_ga.LoRAGA", "targets": ["mlp"], "rank": 2}},
}  # fmt: skip
SAME = ("checkpoints/last.safetensors", "checkpoints/best.safetensors", "metrics.csv", "predictions.jsonl")


@pytest.mark.parametrize("name", RULES)
def test_a_run_that_stops_goes_on_with_the_same_bits(name, tmp_path, monkeypatch):
    """Stopped by its own callback at batch 13 of 24, inside an accumulation, and begun again in this process."""
    from core.training import files, run, start

    looked = []
    real = start.calibrate
    monkeypatch.setattr(start, "calibrate", lambda *args: looked.append(args) or real(*args))
    monkeypatch.setattr(eva, "ranks", lambda shares, budget: [1, budget - 1])  # the toy's two layers are too alike
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    first = run.run(OmegaConf.create(toy.config(whole, **RULES[name])), whole)
    assert first.status == "done" and len(looked) == (name in ("eva", "lora_ga"))
    count, step = [], PeftModule.training_step

    def dies(self, *args):
        count.append(1)
        if len(count) == 13:
            raise KeyError("pulled plug")
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(PeftModule, "training_step", dies)
        with pytest.raises(KeyError):
            run.run(OmegaConf.create(toy.config(stopped, **RULES[name])), stopped)
    again = len(looked)
    run.run(OmegaConf.load(stopped / "config.yaml"), stopped)
    assert len(looked) == again, "looked at the data again"
    spared = {"sift": 0.9}.get(name, 0.0)  # the record counts what a run can change
    if RULES[name].get("adapter") == FULL["adapter"]:
        assert first.trainable == pytest.approx((1 - spared) * first.base_parameters, abs=4)
    assert [f for f in SAME if (whole / f).read_bytes() != (stopped / f).read_bytes()] == []
    kept = files.read(whole / "checkpoints/last.safetensors")["state_dict"]
    assert any(key.endswith("average_P") for key in kept) == (name == "adalora"), "importance goes on, too"
    assert first.certificate.base_bit_equal is not False and first.certificate.reload_equal
    lines = (whole / "metrics.csv").read_text().splitlines()
    penalties = [float(line.split(",")[3]) for line in lines if ",train,penalty," in line]
    assert bool(penalties) == (name == "adalora") and not any(",val,penalty," in line for line in lines)
    assert penalties == sorted(penalties, reverse=True)  # the term is trained: triplets drift towards orthogonal ones
