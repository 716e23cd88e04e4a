"""The contract matrix: which method works on which kind of layer, block or port, and why not where it does not.

Weight methods are asked (`refuses`), on shapes alone; where a host's own forward decides, and for activation methods, a
tiny layer is really adapted. Token methods are told by the seam that they want. Nothing is listed by a method's name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from core.adapters import methods
from core.adapters.hosts import op_for
from core.adapters.op import Rows
from core.adapters.quantised import code
from core.adapters.seam import coded
from core.errors import PeftError


class Experts(nn.Module):
    """A mixture's parameter (experts, out, in)."""

    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.empty(8, 1024, 768))


class Standardised(nn.Conv2d):
    """A convolution whose weight has rows of mean 0 and variance 1 at every call."""

    def forward(self, x):
        rows = self.weight.flatten(1)
        rows = (rows - rows.mean(1, keepdim=True)) / (rows.std(1, keepdim=True) + 1e-6)
        return self._conv_forward(x, rows.view_as(self.weight), self.bias)


class Whole(nn.Module):
    """A network of one layer; of an output with parts the first counts."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, *x):
        y = self.layer(*x)
        return y[0] if isinstance(y, tuple) else y


@dataclass(frozen=True)
class Kind:
    """make: the layer; parameter, rows: the site in it; x: an input, where the layer is really adapted."""

    name: str
    what: str
    make: Callable[[], nn.Module]
    parameter: str = "weight"
    rows: Rows | None = None
    x: tuple[int, ...] = ()
    inputs: int = 1


WEIGHT = [
    Kind("linear", "Linear; GPT-2's Conv1D", lambda: nn.Linear(768, 768)),
    Kind("rows", "rows of a fused projection, interleaved too", lambda: nn.Linear(768, 2304), rows=Rows(0, 768)),
    Kind("4-bit", "Linear of 4-bit weights, rows too", lambda: code(nn.Linear(768, 768))),
    Kind("conv", "Conv1d, 2d, 3d: strided, dilated, any padding", lambda: nn.Conv2d(64, 128, 3)),
    Kind("1x1", "convolution with a kernel of 1", lambda: nn.Conv2d(64, 128, 1)),
    Kind("grouped", "grouped convolution", lambda: nn.Conv2d(64, 128, 3, groups=4)),
    Kind("depthwise", "depthwise convolution", lambda: nn.Conv2d(64, 64, 3, groups=64)),
    Kind("transposed", "ConvTranspose1d, 2d, 3d, groups too", lambda: nn.ConvTranspose2d(64, 32, 2, stride=2)),
    Kind("embedding", "Embedding", lambda: nn.Embedding(32000, 768)),
    Kind("attention", "MultiheadAttention, packed or separate", lambda: nn.MultiheadAttention(768, 12),
         "in_proj_weight", Rows(0, 768)),
    Kind("gate", "gates of an LSTM or GRU, both directions", lambda: nn.LSTM(256, 256), "weight_hh_l0", Rows(0, 256)),
    Kind("experts", "3-D parameter of a mixture's experts", Experts, "up"),
    Kind("normed", "weight norm, spectral norm", lambda: nn.utils.parametrizations.weight_norm(nn.Linear(256, 256)),
         x=(2, 4, 256)),
    Kind("standardised", "scaled-standardised convolution", lambda: Standardised(64, 64, 3), x=(2, 64, 6, 6)),
]  # fmt: skip

ACTIVATION = [
    Kind("tokens", "a block or layer over tokens (batch, tokens, channels)", lambda: nn.Linear(32, 32), x=(2, 5, 32)),
    Kind("wider", "a layer with other channels out than in", lambda: nn.Linear(32, 48), x=(2, 5, 32)),
    Kind("attention", "a module with a tuple for an output", lambda: nn.MultiheadAttention(32, 2, batch_first=True),
         x=(2, 5, 32), inputs=3),
    Kind("recurrent", "LSTM, GRU", lambda: nn.LSTM(32, 32, batch_first=True), x=(2, 5, 32)),
    Kind("conv1d", "convolution over a signal", lambda: nn.Conv1d(32, 32, 3, padding=1), x=(2, 32, 9)),
    Kind("conv2d", "convolution over images", lambda: nn.Conv2d(32, 32, 3, padding=1), x=(2, 32, 6, 6)),
    Kind("conv3d", "convolution over volumes", lambda: nn.Conv3d(32, 32, 3, padding=1), x=(1, 32, 4, 4, 4)),
    Kind("strided", "strided convolution", lambda: nn.Conv2d(32, 32, 3, padding=1, stride=2), x=(2, 32, 6, 6)),
    Kind("transposed", "transposed convolution", lambda: nn.ConvTranspose2d(32, 32, 2, stride=2), x=(2, 32, 6, 6)),
]  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """An empty reason means that it works."""

    kind: str
    reason: str = ""

    def __str__(self) -> str:
        return "no" if self.reason else "yes"


def columns(face: str) -> list[tuple[str, str]]:
    """(name, what it is) of the kinds that methods of a face are held against; none for selections, which train copies
    of any parameter."""
    if face == "token":
        from core.adapters.tokens import SERVES, WANTED

        return [(seam, " or ".join(WANTED[want] for want in wants)) for seam, wants in SERVES.items()]
    return [(kind.name, kind.what) for kind in {"weight": WEIGHT, "activation": ACTIVATION}.get(face, [])]


def row(name: str, options: dict | None = None) -> list[Cell]:
    """The cells of one method, with its defaults or a preset's options."""
    cls, options = methods.find(name), options or {}
    if cls.face == "token":
        from core.adapters.tokens import SERVES, WANTED

        no = f"it gives {WANTED[cls.seam]}: a port with {' or '.join(s for s, w in SERVES.items() if cls.seam in w)}"
        return [Cell(seam, "" if cls.seam in wants else no) for seam, wants in SERVES.items()]
    kinds = {"weight": WEIGHT, "activation": ACTIVATION}.get(cls.face, [])
    return [Cell(kind.name, _refusal(cls, kind, options)) for kind in kinds]


def _refusal(cls: type, kind: Kind, options: dict) -> str:
    """Asked on shapes alone; where that says too little, on a layer that is really adapted."""
    said = ""
    if cls.face == "weight":
        with torch.device("meta"):
            layer = kind.make()
        own = cls.options_for("", {**methods.options(cls), **options})
        said = asked(cls, layer, kind.parameter, kind.rows, own)
    return said or (_adapted(cls, kind, options) if kind.x else "")


def asked(cls: type, layer: nn.Module, parameter: str, rows: Rows | None, options: dict) -> str:
    """The reason that a weight method gives on a layer, alone in its network; options: all of them."""
    op = op_for(layer, parameter, rows)
    if cls.needs_codes and not coded(layer):
        return cls.needs_codes
    return cls.refuses(op.kind, tuple(op.matrix(getattr(layer, parameter)).shape), options)


def _adapted(cls: type, kind: Kind, options: dict) -> str:
    """The reason with which attaching to a small layer is refused."""
    from core.adapters import attach

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = Whole(kind.make()), torch.randn(kind.x)
        try:
            attach(model, cls, targets=["r"], roles={"r": "layer"}, example=((x,) * kind.inputs, {}), **options)
        except PeftError as error:
            return "; ".join(dict.fromkeys(_reason(problem) for problem in error.problems))
    return ""


def _reason(problem) -> str:
    return "; ".join(part for part in (problem.got, problem.fix or problem.allowed) if part)
