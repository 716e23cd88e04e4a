"""Frozen Linear layers of 4 bits a weight, for adapters beside them: QLoRA's base.
Dettmers et al. 2023, arXiv 2305.14314, section 3 and appendix E

    w = scale[block] * LEVELS[code]     blocks of 64 weights of one row after the other     scale = max |w| of the block

Bits     4 + 32 / 64 = 4.5 per weight.   Error   on normal weights about 0.09 of their norm.
Differs  scales stay fp32: the paper's second quantisation, of the scales, is not there. Plain torch, on any device.

The weight is made where it is used, forward and backward, and never kept between them: a step keeps what it keeps on
the full base. State-dict keys of such a layer are `codes` and `scales`.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.adapters.call import Frozen
from core.adapters.choose import owners_of
from core.adapters.seam import ADAPTERS, computed_class, original
from core.adapters.sites import MATRICES, resolve
from core.errors import ConfigError, UnsupportedError

BLOCK = 64
# Quantiles of the normal distribution, 8 above zero and 7 below, over the outermost: the paper's appendix E.
LEVELS = torch.tensor([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
])  # fmt: skip
PAIRS = torch.stack([LEVELS.repeat_interleave(16), LEVELS.repeat(16)], 1)  # (256, 2): the two levels of a byte


def encode(W: Tensor) -> tuple[Tensor, Tensor]:
    """(codes (32 blocks) uint8, scales (blocks) fp32) of a weight of any shape; the last block is filled with zeros."""
    flat = W.detach().float().flatten()
    blocks = F.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    scales = blocks.abs().amax(1)
    own = LEVELS.to(W.device)
    code = torch.bucketize(blocks / scales.clamp_min(1e-30)[:, None], (own[1:] + own[:-1]) / 2).to(torch.uint8)
    return (code[:, ::2] * 16 + code[:, 1::2]).flatten(), scales


def decode(codes: Tensor, scales: Tensor, shape: tuple[int, ...]) -> Tensor:
    """fp32"""
    found = F.embedding(codes.int(), PAIRS.to(codes.device)).view(-1, BLOCK) * scales[:, None]
    return found.flatten()[: torch.Size(shape).numel()].view(shape)


class QuantisedLinear(nn.Linear):
    """What `quantise` makes of a Linear in its place; never constructed. `codes` and `scales` are buffers."""

    made_of = {"weight": "codes"}

    @property
    def weight(self) -> Tensor:
        """(out, in) in the dtype that the layer had, made anew."""
        return decode(self.codes, self.scales, (self.out_features, self.in_features)).to(self.weight_dtype)

    def _apply(self, fn, recurse=True):
        """`.to(dtype)` is the weight's: scales stay fp32."""
        scales, like = self.scales, torch.empty(0, dtype=self.weight_dtype, device=self.scales.device)
        super()._apply(fn, recurse)
        self.weight_dtype, self.scales = fn(like).dtype, scales.to(self.scales.device)
        return self

    def forward(self, x):
        adapted = "weight" in self.__dict__.get(ADAPTERS, {})  # on the weight path: what is read then has gradients
        if adapted or torch.compiler.is_compiling() or not (torch.is_grad_enabled() and x.requires_grad):
            return F.linear(x, self.weight, self.bias)
        return Frozen.apply(x, self.bias, functools.partial(getattr, self, "weight"))


@torch.no_grad()
def quantise(model: nn.Module) -> list[str]:
    """Give every plain Linear layer of the body (those that `model.roles` name) 4-bit weights, in place; their paths.

    Tied weights, convolutions and embeddings stay. ConfigError: a model with adapters.
    UnsupportedError: a network without such a layer."""
    from core.adapters.model import STATE, network

    if STATE in model._modules:
        raise ConfigError("quantise", "a model with adapters", "the base alone", "quantise before attach")
    net, roles = network(model), getattr(model, "roles", {})
    own = [role for role in MATRICES if role in roles]
    paths = list(dict.fromkeys(site.path for site in resolve(net, roles, own))) if own else []
    plain = [p for p in paths if type(m := net.get_submodule(p)) is nn.Linear and len(owners_of(net, m.weight)) == 1]
    if not plain:
        kinds = ", ".join(sorted({type(net.get_submodule(path)).__name__ for path in paths})) or "no matrices"
        raise UnsupportedError("quantise", f"a network of {kinds}", "a network with Linear layers", "quantise=null")
    if spoilt := [path for path in plain if not torch.isfinite(net.get_submodule(path).weight).all()]:
        raise ConfigError(f"quantise: {spoilt[0]}", "a weight that is not finite", "finite weights", "quantise=null")
    for path in plain:
        host = net.get_submodule(path)
        W = host._parameters.pop("weight")
        host.__class__, host.weight_dtype = QuantisedLinear, W.dtype
        codes, scales = encode(W)
        host.register_buffer("codes", codes)
        host.register_buffer("scales", scales)
    return plain


@torch.no_grad()
def dequantise(model: nn.Module) -> nn.Module:
    """The inverse, in place, adapters kept: plain Linear layers that hold the values which the 4 bits stand for."""
    for host in list(model.modules()):
        if original(host) is QuantisedLinear:
            W, (_, names, forwards) = host.weight, getattr(type(host), "_switch", (None, (), ()))
            del host.codes, host.scales, host.weight_dtype
            host.__class__ = computed_class(nn.Linear, names, forwards) if names or forwards else nn.Linear
            host._parameters["weight"] = nn.Parameter(W, requires_grad=False)
    return model
