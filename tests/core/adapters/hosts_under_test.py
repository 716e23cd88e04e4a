"""Every host kind, tiny: what the contracts are held to. A new host kind is one line in HOSTS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from core.adapters import methods
from core.adapters.base import WeightMethod
from core.adapters.hosts import op_for
from core.adapters.op import Op, Rows


class Conv1D(nn.Module):
    """GPT-2's linear layer: weight (in, out)."""

    def __init__(self, nf: int, nx: int):
        super().__init__()
        self.nf = nf
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf) * 0.3), nn.Parameter(torch.randn(nf))

    def forward(self, x):
        return torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], self.nf)


@dataclass(frozen=True)
class Host:
    name: str
    make: Callable[[], nn.Module]
    x: tuple[int, ...]
    rows: Rows | None = None
    vocabulary: int = 0

    def __str__(self) -> str:
        return self.name

    def build(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Op, Tensor]:
        """(layer, frozen; its matrix view; an input)"""
        torch.manual_seed(seed)
        layer = self.make().to(dtype).requires_grad_(False)
        x = torch.randint(self.vocabulary, self.x) if self.vocabulary else torch.randn(self.x, dtype=dtype)
        return layer, op_for(layer, "weight", self.rows), x


HOSTS = [
    Host("linear", lambda: nn.Linear(6, 8), (3, 5, 6)),
    Host("linear_no_bias", lambda: nn.Linear(6, 8, bias=False), (4, 6)),
    Host("hf_conv1d", lambda: Conv1D(8, 6), (3, 5, 6)),
    Host("fused_rows", lambda: nn.Linear(6, 24), (3, 5, 6), Rows(16, 8)),
    Host("interleaved_rows", lambda: nn.Linear(6, 24), (3, 5, 6), Rows(4, 4, groups=2, stride=12)),
    Host("conv1d_fused_rows", lambda: Conv1D(24, 6), (3, 5, 6), Rows(8, 8)),
    Host("embedding", lambda: nn.Embedding(11, 6), (3, 5), vocabulary=11),
    Host("embedding_padding", lambda: nn.Embedding(11, 6, padding_idx=1), (3, 5), vocabulary=11),
    Host("conv1d", lambda: nn.Conv1d(4, 6, 3), (2, 4, 9)),
    Host("conv1d_strided", lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, bias=False), (2, 4, 9)),
    Host("conv1d_dilated_same", lambda: nn.Conv1d(4, 6, 3, dilation=2, padding="same"), (2, 4, 9)),
    Host("conv1d_grouped", lambda: nn.Conv1d(4, 6, 3, groups=2), (2, 4, 9)),
    Host("conv1d_depthwise", lambda: nn.Conv1d(4, 4, 3, groups=4), (2, 4, 9)),
    Host("conv1d_reflect", lambda: nn.Conv1d(4, 6, 3, padding=1, padding_mode="reflect"), (2, 4, 9)),
    Host("conv1d_circular", lambda: nn.Conv1d(4, 6, 3, padding=1, padding_mode="circular"), (2, 4, 9)),
    Host("conv2d", lambda: nn.Conv2d(3, 6, 3), (2, 3, 7, 6)),
    Host("conv2d_strided_dilated", lambda: nn.Conv2d(3, 6, (3, 2), stride=(2, 1), dilation=(2, 1)), (2, 3, 9, 6)),
    Host("conv2d_grouped", lambda: nn.Conv2d(4, 6, 3, groups=2, stride=2), (2, 4, 7, 6)),
    Host("conv2d_depthwise", lambda: nn.Conv2d(4, 8, 3, groups=4, padding=1), (2, 4, 7, 6)),
    Host("conv2d_1x1", lambda: nn.Conv2d(4, 6, 1), (2, 4, 5, 6)),
    Host("conv2d_same", lambda: nn.Conv2d(3, 6, 4, padding="same"), (2, 3, 7, 6)),
    Host("conv2d_reflect", lambda: nn.Conv2d(3, 6, 3, padding=(1, 2), padding_mode="reflect"), (2, 3, 7, 6)),
    Host("conv2d_circular_same", lambda: nn.Conv2d(3, 6, 3, padding="same", padding_mode="circular"), (2, 3, 7, 6)),
    Host("conv3d", lambda: nn.Conv3d(2, 4, 3, padding=1), (1, 2, 5, 4, 5)),
    Host("conv3d_1x1x1", lambda: nn.Conv3d(3, 4, 1), (1, 3, 4, 4, 4)),
    Host("conv3d_1x1xk", lambda: nn.Conv3d(3, 4, (1, 1, 3)), (1, 3, 4, 4, 5)),
    Host("conv3d_grouped", lambda: nn.Conv3d(4, 4, 2, groups=2, stride=2), (1, 4, 4, 4, 4)),
    Host("transposed1d", lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1), (2, 4, 5)),
    Host("transposed1d_grouped", lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2), (2, 4, 5)),
    Host("transposed2d", lambda: nn.ConvTranspose2d(4, 3, 3, stride=2, padding=1, output_padding=1), (2, 4, 3, 4)),
    Host("transposed2d_grouped", lambda: nn.ConvTranspose2d(4, 6, 2, groups=2, dilation=2), (2, 4, 3, 4)),
    Host("transposed3d", lambda: nn.ConvTranspose3d(3, 4, 2, stride=2), (1, 3, 2, 3, 2)),
    Host("transposed3d_grouped", lambda: nn.ConvTranspose3d(4, 4, 2, groups=2, stride=2), (1, 4, 2, 3, 2)),
]

# Options beside the defaults under which a method is another formula; methods not named run with their defaults alone.
FURTHER = {"ia3": [{"side": "in"}], "lora": [{"scaling": "rank_stabilised"}]}


@dataclass(frozen=True)
class Variant:
    """A weight method with options that fit the tiny hosts."""

    name: str
    options: tuple = ()

    def __str__(self) -> str:
        return "_".join([self.name, *(str(value) for _, value in self.options if value != 2)])

    @property
    def cls(self) -> type[WeightMethod]:
        return methods.find(self.name)

    @property
    def full(self) -> dict:
        return {**methods.options(self.cls), **dict(self.options)}

    def on(self, M: Tensor) -> WeightMethod:
        return self.cls(M, **dict(self.options))


def variants() -> list[Variant]:
    """Found by looking: a new file in methods/ is tested on arrival."""
    found = []
    for name in methods.names():
        cls = methods.find(name)
        if cls.face == "weight":
            small = {key: 2 for key, value in methods.options(cls).items() if type(value) is int and value > 2}
            found += [Variant(name, tuple({**small, **more}.items())) for more in ({}, *FURTHER.get(name, []))]
    return found


class One(nn.Module):
    """A model of one host."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


def shaken(method: nn.Module, by: float = 0.05, seed: int = 1) -> nn.Module:
    """Away from the identity: every tensor moved by seeded noise."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in method.parameters():
            p += by * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return method


def through_output(method: WeightMethod, op: Op, layer: nn.Module, x: Tensor) -> Tensor:
    """The host's output by the method's output form."""
    y = layer(x)
    bias = op.bias(getattr(layer, "bias", None), y.ndim)
    return op.give(y, method.output(x, op.take(y), op, op.matrix(layer.weight), bias))


def through_weight(method: WeightMethod, op: Op, layer: nn.Module, x: Tensor) -> Tensor:
    """The host's output with W' in W's place."""
    W = op.put(layer.weight, method.weight(op.matrix(layer.weight)))
    return functional_call(layer, {"weight": W}, (x,))


def relative(a: Tensor, b: Tensor) -> float:
    """max |a - b| / max |b|"""
    assert a.shape == b.shape
    a, b = a.detach(), b.detach()
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-12))
