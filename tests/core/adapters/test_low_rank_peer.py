"""Low-rank and kindred weight methods beside Hugging Face peft, where both mean the same."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from core.adapters.hosts import op_for
from core.adapters.methods.bone import Bone
from core.adapters.methods.delora import DeLoRA
from core.adapters.methods.hira import HiRA
from core.adapters.methods.miss import MiSS
from core.adapters.methods.olora import OLoRA
from core.adapters.methods.pissa import PiSSA
from core.adapters.methods.randlora import RandLoRA
from core.adapters.methods.vera import VeRA
from tests.core.adapters.hosts_under_test import One, relative, through_output, through_weight


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def hf(config: str, host: nn.Linear, x, **options):
    """(outputs of HF's adapter, shaken; its tensors by short name, frozen ones too)"""
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(One(copy.deepcopy(host)), getattr(peft, config)(target_modules=["layer"], **options))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 0.1 * torch.randn(p.shape, generator=generator)
    tensors = {}
    for name, t in [*model.named_parameters(), *model.named_buffers()]:
        short = name.removesuffix(".weight").removesuffix(".default").rsplit(".", 1)[-1]
        tensors.setdefault(short, t.detach().clone())
    return model.eval()(x).detach(), tensors


def same(m, host, x, expected):
    """Our method on the same layer gives HF's outputs, in both forms."""
    op = op_for(host, "weight")
    assert relative(expected, host(x)) > 1e-3, "HF's adapter did nothing"
    assert relative(through_weight(m, op, host, x), expected) <= 2e-6
    if m.output is not None:
        assert relative(through_output(m, op, host, x), expected) <= 2e-6


@pytest.mark.parametrize(("out", "columns"), [(8, 6), (6, 10)])
def test_hira_equals_hf(out, columns):
    host, x = nn.Linear(columns, out), torch.randn(3, columns)
    expected, theirs = hf("HiraConfig", host, x, r=3)
    m = HiRA(host.weight, rank=3)
    m.A.data, m.B.data = theirs["hira_A"], theirs["hira_B"]
    same(m, host, x, expected)


@pytest.mark.parametrize(("out", "columns"), [(8, 6), (6, 10)])
def test_vera_equals_hf(out, columns):
    """The frozen pair too: the seed makes theirs to the bit."""
    host, x = nn.Linear(columns, out), torch.randn(3, columns)
    expected, theirs = hf("VeraConfig", host, x, r=16, projection_prng_key=7)
    m = VeRA(host.weight, rank=16, projection_seed=7)
    assert torch.equal(m.A, theirs["vera_A"]) and torch.equal(m.B, theirs["vera_B"])
    m.b.data, m.d.data = theirs["vera_lambda_b"], theirs["vera_lambda_d"]
    same(m, host, x, expected)


@pytest.mark.parametrize(("columns", "rank"), [(8, 4), (10, 4), (7, 3)])
def test_miss_equals_hf(columns, rank):
    """Its output form, and its merged weight, where the last shard is cut too."""
    host, x = nn.Linear(columns, 6), torch.randn(3, columns)
    expected, theirs = hf("MissConfig", host, x, r=rank)
    m = MiSS(host.weight, rank=rank)
    m.D.data = theirs["miss_block"]
    same(m, host, x, expected)


def test_bone_equals_hf():
    host, x = nn.Linear(8, 12), torch.randn(3, 8)
    expected, theirs = hf("MissConfig", host, x, r=4, init_weights="bat")
    m = Bone(host.weight, rank=4)
    m.D.data = theirs["miss_block"]
    same(m, host, x, expected)


@pytest.mark.parametrize("start", ["pissa", "olora"])
@pytest.mark.parametrize(("out", "columns"), [(8, 6), (6, 10)])
def test_starts_from_w_equal_hf(start, out, columns):
    """HF puts the residual in the base; ours keeps it, and gives the same outputs."""
    host, x = nn.Linear(columns, out), torch.randn(3, columns)
    expected, theirs = hf("LoraConfig", host, x, r=3, lora_alpha=6, init_lora_weights=start)
    m = {"pissa": PiSSA, "olora": OLoRA}[start](host.weight, rank=3, alpha=6)
    m.A.data, m.B.data = theirs["lora_A"], theirs["lora_B"]
    same(m, host, x, expected)


@pytest.mark.parametrize(("out", "columns"), [(9, 7), (7, 9), (8, 8)])
def test_randlora_equals_hf(out, columns):
    """The random bases too, in the order in which HF pairs them."""
    host, x = nn.Linear(columns, out), torch.randn(3, columns)
    expected, theirs = hf("RandLoraConfig", host, x, r=3, randlora_alpha=6, projection_prng_key=7)
    m = RandLoRA(host.weight, rank=3, alpha=6, projection_seed=7)
    assert torch.equal(m.A, theirs["randlora_A"][:, 0].float())
    assert torch.equal(m.B.transpose(1, 2).flatten(1), theirs["randlora_B"].float().flatten(1))
    m.l.data, m.g.data = theirs["randlora_lambda"].T.contiguous(), theirs["randlora_gamma"]
    same(m, host, x, expected)


def test_delora_equals_hf():
    """HF starts at B = 0, so there is nothing to subtract."""
    host, x = nn.Linear(6, 8), torch.randn(3, 6)
    expected, theirs = hf("DeloraConfig", host, x, r=3, delora_lambda=2)
    m = DeLoRA(host.weight, rank=3, lambda_initial=2.0)
    m.B0.zero_()
    m.A.data, m.B.data, m.lam.data = theirs["delora_A"], theirs["delora_B"], theirs["delora_lambda"][0]
    same(m, host, x, expected)
