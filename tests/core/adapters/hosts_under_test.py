"""Every host kind, tiny: what the contracts are held to. A new host kind is one line in HOSTS or DERIVED."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from core.adapters import methods
from core.adapters.base import WeightMethod
from core.adapters.hosts import op_for
from core.adapters.op import Op, Rows
from core.adapters.quantised import code


class Conv1D(nn.Module):
    """GPT-2's linear layer: weight (in, out)."""

    def __init__(self, nf: int, nx: int):
        super().__init__()
        self.nf = nf
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf) * 0.3), nn.Parameter(torch.randn(nf))

    def forward(self, x):
        return torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], self.nf)


class Experts(nn.Module):
    """A mixture's feed-forward: one parameter (experts, out, in), as in Mixtral or Qwen; x (experts, tokens, in)."""

    def __init__(self, experts: int, out: int, inner: int):
        super().__init__()
        self.up = nn.Parameter(torch.randn(experts, out, inner) * 0.3)

    def forward(self, x):
        return torch.bmm(x, self.up.transpose(1, 2))


class ScaledStdConv2d(nn.Conv2d):
    """timm's: the weight of every output channel is standardised, then scaled. Brock et al. 2021, arXiv 2101.08692"""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.gain = nn.Parameter(torch.ones(self.out_channels))

    def forward(self, x):
        flat, scale = self.weight.reshape(1, self.out_channels, -1), self.gain * self.weight[0].numel() ** -0.5
        weight = F.batch_norm(flat, None, None, weight=scale, training=True, momentum=0.0, eps=1e-6)
        return self._conv_forward(x, weight.reshape_as(self.weight), self.bias)


def attends(layer, x):
    """Keys and values of other widths are parts of x."""
    return layer(x, x[..., : layer.kdim], x[..., : layer.vdim], need_weights=False)[0]


def first(layer, x):
    return layer(x)[0]


def whole(layer, x):
    return layer(x)


def old(norm: Callable, *args, **options) -> Callable[[nn.Module], nn.Module]:
    """The norms that are forward hooks: deprecated, but what the vocoders use."""

    def normed(layer):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return norm(layer, *args, **options)

    return normed


old_weight_norm = old(nn.utils.weight_norm)
old_spectral_norm = old(nn.utils.spectral_norm)
weight_norm, spectral_norm = nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm


def four_bits(rows: Rows | None = None) -> Callable[[nn.Module], nn.Module]:
    """With a start of rank 2, where LoftQ begins."""

    def coded(layer):
        with torch.no_grad():
            return code(layer, {rows: op_for(layer, "weight", rows)}, rank=2, steps=3)

    return coded


@dataclass(frozen=True)
class Host:
    """path, parameter   where the site is in `One(layer)`
    run               (layer, x) -> output
    norm              what is put around the layer: its weight is then derived, and the path is `weight`"""

    name: str
    make: Callable[[], nn.Module]
    x: tuple[int, ...]
    rows: Rows | None = None
    vocabulary: int = 0
    path: str = "layer"
    parameter: str = "weight"
    run: Callable = whole
    norm: Callable | None = None

    def __str__(self) -> str:
        return self.name

    @property
    def pattern(self) -> str:
        """The role pattern of the site."""
        named = self.path + (f":{self.parameter}" if self.parameter != "weight" else "")
        if self.rows is None:
            return named
        groups = f"*{self.rows.groups}" if self.rows.groups > 1 else ""
        return f"{named}[{self.rows.start}:{self.rows.start + self.rows.size}{groups}]"

    def build(self, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Op, Tensor]:
        """(layer, frozen; its matrix view; an input)"""
        model, op, x = self.model(seed, dtype)
        return model.layer, op, x

    def model(self, seed: int = 0, dtype: torch.dtype = torch.float32, bare: bool = False) -> tuple[One, Op, Tensor]:
        """The same, the layer inside a model in eval mode. `bare` leaves its norm out."""
        torch.manual_seed(seed)
        layer = self.make().to(dtype)
        x = torch.randint(self.vocabulary, self.x) if self.vocabulary else torch.randn(self.x, dtype=dtype)
        if self.norm is not None and not bare:
            layer = self.norm(layer)
        model = One(layer, self.run).requires_grad_(False).eval()
        return model, op_for(model.get_submodule(self.path), self.parameter, self.rows), x


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


def _rows(part: int, size: int = 8) -> Rows:
    return Rows(part * size, size)


# Hosts whose parameter is read in another way than as one product with x: bound at the weight, whatever the method.
DERIVED = [
    *[
        Host(f"attention_{name}", lambda: nn.MultiheadAttention(8, 2, batch_first=True), (2, 5, 8), _rows(part),
             parameter="in_proj_weight", run=attends)
        for part, name in enumerate("qkv")
    ],
    Host("attention_out", lambda: nn.MultiheadAttention(8, 2, batch_first=True), (2, 5, 8), path="layer.out_proj",
         run=attends),
    *[
        Host(f"attention_separate_{name}", lambda: nn.MultiheadAttention(8, 2, batch_first=True, kdim=6, vdim=4),
             (2, 5, 8), parameter=f"{name}_proj_weight", run=attends)
        for name in "qkv"
    ],
    Host("encoder_layer_v", lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), (2, 5, 8),
         _rows(2), path="layer.self_attn", parameter="in_proj_weight"),
    Host("encoder_layer_in", lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), (2, 5, 8),
         path="layer.linear1"),
    Host("lstm_input_gate", lambda: nn.LSTM(6, 8, batch_first=True), (2, 5, 6), _rows(0), parameter="weight_ih_l0",
         run=first),
    Host("lstm_hidden", lambda: nn.LSTM(6, 8, batch_first=True), (2, 5, 6), parameter="weight_hh_l0", run=first),
    Host("lstm_backwards", lambda: nn.LSTM(6, 8, batch_first=True, bidirectional=True), (2, 5, 6), _rows(2),
         parameter="weight_hh_l0_reverse", run=first),
    Host("gru_hidden_gate", lambda: nn.GRU(6, 8, batch_first=True), (2, 5, 6), _rows(2), parameter="weight_hh_l0",
         run=first),
    Host("gru_backwards", lambda: nn.GRU(6, 8, batch_first=True, bidirectional=True), (2, 5, 6),
         parameter="weight_ih_l0_reverse", run=first),
    Host("weight_norm", lambda: nn.Linear(6, 8), (3, 5, 6), norm=weight_norm),
    Host("weight_norm_conv", lambda: nn.Conv1d(4, 6, 3), (2, 4, 9), norm=weight_norm),
    Host("weight_norm_old", lambda: nn.Linear(6, 8), (3, 5, 6), norm=old_weight_norm),
    Host("weight_norm_old_transposed", lambda: nn.ConvTranspose1d(4, 6, 4, stride=2), (2, 4, 5), norm=old_weight_norm),
    Host("spectral_norm", lambda: nn.Linear(6, 8), (3, 5, 6), norm=spectral_norm),
    Host("spectral_norm_conv", lambda: nn.Conv2d(3, 6, 3), (2, 3, 7, 6), norm=spectral_norm),
    Host("spectral_norm_old", lambda: nn.Linear(6, 8), (3, 5, 6), norm=old_spectral_norm),
    Host("four_bits", lambda: nn.Linear(6, 8), (3, 5, 6), norm=four_bits()),
    Host("four_bits_rows", lambda: nn.Linear(6, 24), (3, 5, 6), Rows(16, 8), norm=four_bits(Rows(16, 8, 1, 24))),
    Host("experts", lambda: Experts(3, 8, 6), (3, 4, 6), parameter="up"),
    Host("experts_gate", lambda: Experts(3, 16, 6), (3, 4, 6), Rows(8, 8, groups=3, stride=16), parameter="up"),
    Host("standardised_conv", lambda: ScaledStdConv2d(3, 6, 3), (2, 3, 7, 6)),
]  # fmt: skip
EVERY = HOSTS + DERIVED

# Options beside the defaults under which a method is another formula; methods not named run with their defaults alone.
FURTHER = {
    "boft": [{"factors": 1}, {"factors": 1, "scale": False}],
    "hra": [{"side": "out"}],
    "ia3": [{"side": "in"}],
    "lora": [{"scaling": "rank_stabilised"}],
    "oft": [{"cayley": "neumann"}, {"side": "out"}],
    "shira": [{"mask": "magnitude"}, {"mask": "struct"}],
}
# Defaults that belong to the default rank: RandLoRA's alpha is 20 r, its change of the tiny hosts would drown them.
INSTEAD = {"randlora": {"alpha": 40.0}}


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
            small |= INSTEAD.get(name, {})
            found += [Variant(name, tuple({**small, **more}.items())) for more in ({}, *FURTHER.get(name, []))]
    return found


def on_full_weights() -> list[Variant]:
    """Those that do not want a 4-bit base."""
    return [variant for variant in variants() if not variant.cls.needs_codes]


def by_form(found: list[Variant]) -> list[Variant]:
    """One variant of each evaluation form: what the binder sees of a method is no more than its shortcuts."""
    first: dict[tuple, Variant] = {}
    for variant in found:
        cls, method = variant.cls, variant.on(torch.randn(8, 8))
        scales_input = method.into(torch.randn(2, 8)) is not None
        shortcuts = (
            cls.output is None,
            cls.factors is None,
            cls.gain is None,
            method.order,
            scales_input,
            method.rescale is None,
        )
        first.setdefault((*shortcuts, "dropout" in variant.full), variant)
    return list(first.values())


class One(nn.Module):
    """A model of one host."""

    def __init__(self, layer: nn.Module, run: Callable = whole):
        super().__init__()
        self.layer, self.run = layer, run

    def forward(self, x):
        return self.run(self.layer, x)


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
