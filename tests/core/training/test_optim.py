"""Parameter groups by rule, and the learning rate at a step."""

import math

import pytest
import torch
from torch import nn

from core.errors import ConfigError
from core.training.optim import Optim


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
