"""Frozen Linear layers of 4 bits a weight, for adapters beside them: QLoRA's base.
Dettmers et al. 2023, arXiv 2305.14314, section 3 and appendix E

    w = scale[block] * LEVELS[code]     blocks of 64 weights of one row after the other     scale = max |w| of the block

Bits     4 + 32 / 64 = 4.5 per weight.   Error   on normal weights about 0.09 of their norm.
Differs  scales stay fp32: the paper's second quantisation, of the scales, is not there. Plain torch, on any device.

The weight is made where it is used, forward and backward, and never kept between them: a step keeps what it keeps on
the full base. State-dict keys of such a layer are `codes` and `scales`.

With a rank, codes and a low-rank part are fitted to W together, for adapters that start from that part (LoftQ):

    repeat   Q = NF4(W - B0 A0)     B0 A0 = the leading `rank` directions of W - Q     Li et al. 2023, arXiv 2310.08659
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.adapters.call import Frozen
from core.adapters.choose import owners_of
from core.adapters.hosts import op_for
from core.adapters.low_rank import OVER
from core.adapters.op import Op, Rows
from core.adapters.seam import ADAPTERS, computed_class, original
from core.adapters.sites import MATRICES, choose_targets, resolve
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


Start = tuple[Tensor, Tensor]  # A0 (rank, in), B0 (out, rank)


def fitted(W: Tensor, parts: dict[Rows | None, Op], rank: int, steps: int) -> tuple[Tensor, Tensor, dict]:
    """(codes, scales, rows -> start): what 4 bits and a product of `rank` on each part of the rows make of W together.

    Another machine must find the same base, so what the codes depend on does not hang on the last bits of a
    decomposition: directions by power iterations in fp64 from a fixed start, factors rounded to bf16, whose product
    is exact. The error is at most 0.1 % above that with exact decompositions (measured on SmolLM2's layers)."""
    W = W.detach().float()
    change, starts = torch.zeros_like(W, dtype=torch.float64), {}
    for _ in range(steps):
        codes, scales = encode((W - change).float())
        lost = W - decode(codes, scales, W.shape).double()
        change = torch.zeros_like(change)
        for rows, op in parts.items():
            A, B = starts[rows] = _leading(op.matrix(lost - change), rank, starts.get(rows))
            change = op.put(change, op.matrix(change) + B.double() @ A.double())
    return codes, scales, starts


def _leading(R: Tensor, rank: int, last: Start | None, rounds: int = 8) -> Start:
    """A, B in bf16 of the leading directions of R (out, in) fp64, balanced: B A = U_r S_r V_r^T to rounding.

    last   the result for a similar R"""
    generator = torch.Generator().manual_seed(0)
    V = torch.randn(R.shape[1], min(rank + OVER, *R.shape), generator=generator, dtype=R.dtype).to(R.device)
    if last is not None:
        V[:, : len(last[0])] = F.normalize(last[0].to(R), dim=1).T
    for _ in range(rounds):
        V = torch.linalg.qr(R.T @ (R @ V)).Q
    U, S, Vt = torch.linalg.svd(R @ V, full_matrices=False)
    root = S[:rank].sqrt()
    return (root[:, None] * (Vt @ V.T)[:rank]).bfloat16(), (U[:, :rank] * root).bfloat16()


class QuantisedLinear(nn.Linear):
    """What `quantise` makes of a Linear in its place; never constructed. `codes` and `scales` are buffers.

    starts   rows -> (A0 (rank, in), B0 (rows, rank)) in bf16, what adapters on them start from; empty without a rank"""

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


def code(host: nn.Linear, parts: dict[Rows | None, Op] | None = None, rank: int = 0, steps: int = 1) -> nn.Linear:
    """The same layer, with 4-bit weights."""
    W = host._parameters.pop("weight")
    codes, scales, starts = fitted(W, parts, rank, steps) if parts else (*encode(W), {})
    host.__class__, host.weight_dtype, host.starts = QuantisedLinear, W.dtype, starts
    host.register_buffer("codes", codes)
    host.register_buffer("scales", scales)
    return host


@torch.no_grad()
def quantise(
    model: nn.Module,
    each: Callable[[list[str]], Iterable[str]] = iter,
    *,
    rank: int = 0,
    steps: int = 5,
    targets: str | list[str] | None = None,
) -> list[str]:
    """Give every plain Linear layer of the body (those that `model.roles` name) 4-bit weights, in place; their paths.

    each      goes through the paths, and may tell how far it is: about an hour for 7 billion weights with a rank of 64
              on two cores; without a rank, minutes
    rank      of the start that layers keep for LoftQ, which must have the same; 0: none, plain NF4
    steps     how often codes and start are fitted to each other
    targets   roles whose adapters will start there, as `attach` takes them; None: all. Other rows are plain NF4

    Tied weights, convolutions and embeddings stay. ConfigError: a model with adapters; a rank or steps below their
    least; an unknown role. UnsupportedError: a network without such a layer."""
    from core.adapters.model import STATE, network

    if rank < 0 or steps < 1:
        raise ConfigError("quantise", f"rank {rank}, steps {steps}", "rank 0 or more, steps 1 or more")
    if STATE in model._modules:
        raise ConfigError("quantise", "a model with adapters", "the base alone", "quantise before attach")
    net, roles = network(model), getattr(model, "roles", {})
    own = [role for role in MATRICES if role in roles]
    paths = list(dict.fromkeys(site.path for site in resolve(net, roles, own))) if own else []
    plain = [p for p in paths if type(m := net.get_submodule(p)) is nn.Linear and len(owners_of(net, m.weight)) == 1]
    if not plain:
        kinds = ", ".join(sorted({type(net.get_submodule(path)).__name__ for path in paths})) or "no matrices"
        raise UnsupportedError("quantise", f"a network of {kinds}", "a network with Linear layers", "quantise=none")
    parts: dict[str, dict] = {path: {} for path in plain}
    chosen = choose_targets(targets or "all", (), "weight", roles) if rank else ()
    for site in resolve(net, roles, chosen) if rank else ():
        if site.path in parts and site.parameter == "weight":
            parts[site.path][site.rows] = op_for(net.get_submodule(site.path), "weight", site.rows)
    if spoilt := [path for path in plain if not torch.isfinite(net.get_submodule(path).weight).all()]:
        raise ConfigError(f"quantise: {spoilt[0]}", "a weight that is not finite", "finite weights", "quantise=none")
    for path in each(plain):
        code(net.get_submodule(path), parts[path], rank, steps)
    return plain


@torch.no_grad()
def dequantise(model: nn.Module) -> nn.Module:
    """The inverse, in place, adapters kept: plain Linear layers that hold the values which the 4 bits stand for."""
    for host in list(model.modules()):
        if original(host) is QuantisedLinear:
            W, (_, names, forwards) = host.weight, getattr(type(host), "_switch", (None, (), ()))
            del host.codes, host.scales, host.weight_dtype, host.starts
            host.__class__ = computed_class(nn.Linear, names, forwards) if names or forwards else nn.Linear
            host._parameters["weight"] = nn.Parameter(W, requires_grad=False)
    return model
