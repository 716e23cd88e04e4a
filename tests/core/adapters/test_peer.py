"""LoRA, DoRA and IA3 against Hugging Face peft: equal outputs with copied weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.methods import shared
from core.adapters import attach, methods
from core.adapters.hosts import op_for
from core.adapters.methods.dora import DoRA
from core.adapters.methods.ia3 import IA3
from core.adapters.methods.lora import LoRA
from tests.core.adapters.hosts_under_test import relative, through_output, through_weight


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


class Net(nn.Module):
    def __init__(self, fc: nn.Module):
        super().__init__()
        self.fc = fc

    def forward(self, x):
        return self.fc(x)


HOSTS_OF_HF = {
    "linear": (lambda: nn.Linear(6, 8), torch.randn(3, 6)),
    "conv2d": (lambda: nn.Conv2d(3, 8, 3, stride=2, padding=1), torch.randn(2, 3, 6, 6)),
    "embedding": (lambda: nn.Embedding(9, 8), torch.arange(9)),
}


def hf_outputs(config, host: nn.Module, x):
    """(outputs of HF's adapter, shaken and in eval; its tensors by short name)"""
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(Net(host), getattr(peft, config[0])(target_modules=["fc"], **config[1]))
    ours = {n: p for n, p in model.named_parameters() if p.requires_grad}
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in ours.values():
            p += 0.1 * torch.randn(p.shape, generator=generator)
    short = {
        n.split("fc.")[1].removesuffix(".weight").removesuffix(".default").split(".")[0]: p for n, p in ours.items()
    }
    return model.eval()(x).detach(), {n: p.detach().clone() for n, p in short.items()}


@pytest.mark.parametrize("kind", HOSTS_OF_HF)
@pytest.mark.parametrize("rslora", [False, True])
def test_lora_equals_hf(kind, rslora):
    make, x = HOSTS_OF_HF[kind]
    torch.manual_seed(1)
    host = make().requires_grad_(False)
    base, bias = host.weight.clone(), getattr(host, "bias", None)
    expected, theirs = hf_outputs(("LoraConfig", dict(r=2, lora_alpha=6, use_rslora=rslora)), host, x)
    plain = make()
    plain.weight.data = base
    if bias is not None:
        plain.bias.data = bias.clone()
    op = op_for(plain, "weight")
    m = LoRA(op.matrix(base), rank=2, alpha=6, scaling="rank_stabilised" if rslora else "standard")
    A, B = (next(t for n, t in theirs.items() if n.endswith(letter)) for letter in "AB")
    m.A.data, m.B.data = A.flatten(1), B.flatten(1)
    assert relative(through_weight(m, op, plain, x), expected) <= 1e-6
    assert relative(through_output(m, op, plain, x), expected) <= 1e-6


@pytest.mark.parametrize("bias", [True, False])
def test_dora_equals_hf(bias):
    host, x = nn.Linear(6, 8, bias=bias).requires_grad_(False), torch.randn(3, 6)
    base = host.weight.clone()
    expected, theirs = hf_outputs(("LoraConfig", dict(r=2, lora_alpha=6, use_dora=True)), host, x)
    m = DoRA(base, rank=2, alpha=6)
    m.A.data, m.B.data, m.m.data = theirs["lora_A"], theirs["lora_B"], theirs["lora_magnitude_vector"]
    assert relative(through_weight(m, op_for(host, "weight"), host, x), expected) <= 1e-6
    assert relative(through_output(m, op_for(host, "weight"), host, x), expected) <= 1e-6


@pytest.mark.parametrize(("side", "bias"), [("out", False), ("in", False), ("in", True), ("out", True)])
def test_ia3_equals_hf(side, bias):
    """But for one thing that the header names: HF scales the bias with the output."""
    host, x = nn.Linear(6, 8, bias=bias).requires_grad_(False), torch.randn(3, 6)
    config = ("IA3Config", dict(feedforward_modules=["fc"] if side == "in" else []))
    expected, theirs = hf_outputs(config, host, x)
    m = IA3(host.weight, side=side)
    m.l.data = theirs["ia3_l"].flatten()
    if side == "out" and bias:
        expected = expected - m.l.detach() * host.bias + host.bias
    assert relative(through_weight(m, op_for(host, "weight"), host, x), expected) <= 1e-6
    assert relative(through_output(m, op_for(host, "weight"), host, x), expected) <= 1e-6


@pytest.mark.parametrize("row", [row for row in shared() if methods.find(row[1]).face == "weight"], ids=lambda r: r[0])
def test_the_bench_can_attach_what_it_lists(row):
    (_, method, options), example = row, ((torch.randn(2, 64),), {})
    attach(Net(nn.Linear(64, 64)), method, targets=["r"], roles={"r": "fc"}, example=example, **options)
