"""What methods with a rank share: which ranks have a meaning, the output form that follows from `factors`, and starts
taken from W.

Starts away from zero are written as an offset, W' = W + s (B A - B0 A0) with A0, B0 frozen copies of the start: the
base stays what it is. The offset is computed as B (A - A0) + (B - B0) A0, which is zero to the bit at the start.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from core.adapters.base import Factors, WeightMethod

OVER = 8  # directions beside the wanted ones in power iterations: without them the last ones converge slowly


class RankedMethod(WeightMethod):
    """Methods whose rank is at most a matrix's own, with or without dropout on the input of the change."""

    @classmethod
    def refuses(cls, host, shape, options):
        return refuses_rank(options["rank"]) or refuses_dropout(host, options.get("dropout", 0.0))

    @classmethod
    def refuses_all(cls, shapes, options):
        most = max(min(shape) for shape in shapes)
        return "" if options["rank"] <= most else f"rank {options['rank']} is larger than every layer: 1 to {most}"


class LowRankMethod(RankedMethod):
    """Subclasses write `weight` and `factors`."""

    def factors(self) -> Factors:
        raise NotImplementedError

    def output(self, x, y, op, W, b):
        A, B, scale, *_ = self.factors()
        return y + op.up(op.down(x, A), scale * B)


class OffsetMethod(LowRankMethod):
    """W' = W + s (B A - B0 A0), from a start (A0, B0) that `begin` is given: frozen buffers, saved with A and B."""

    def begin(self, A0: Tensor, B0: Tensor, scale: float) -> None:
        self.scale = scale
        self.register_buffer("A0", A0)
        self.register_buffer("B0", B0)
        self.A, self.B = nn.Parameter(A0.clone()), nn.Parameter(B0.clone())

    def weight(self, W):
        A, B, scale, *_ = self.factors()
        return W + scale * B @ A

    def factors(self):
        return offset(self.A, self.B, self.A0, self.B0, self.scale)


def offset(A: Tensor, B: Tensor, A0: Tensor, B0: Tensor, scale: float) -> Factors:
    """B A - B0 A0 as one product of twice the rank."""
    return Factors(torch.cat([A - A0, A0]), torch.cat([B, B - B0], 1), scale)


@torch.no_grad()
def leading(W: Tensor, rank: int, niter: int) -> tuple[Tensor, Tensor, Tensor]:
    """U (out, rank), S (rank), Vt (rank, in) of the largest singular values: exact, or by `niter` power iterations."""
    if niter:
        U, S, V = torch.svd_lowrank(W, q=min(rank + OVER, *W.shape), niter=niter)
        Vt = V.T
    else:
        U, S, Vt = torch.linalg.svd(W, full_matrices=False)
    return U[:, :rank], S[:rank], Vt[:rank]


def room(W: Tensor, rank: int) -> int:
    """The rank that a matrix has room for: one preset serves a network's first convolution (one input channel) too."""
    return min(rank, *W.shape)


def refuses_rank(rank: int) -> str:
    return "" if rank >= 1 else f"rank {rank}: 1 or more"


def refuses_dropout(host: str, p: float) -> str:
    if not 0 <= p < 1:
        return f"dropout {p}: a probability, 0 <= p < 1"
    lookup = host in ("Embedding", "tensor")
    return f"dropout {p} on {host}: the change has no input that could be dropped" if p and lookup else ""


def refuses_power(niter: int) -> str:
    return "" if niter >= 0 else f"niter {niter}: a number of power iterations, 0 for the exact decomposition"


def refuses_sign(name: str, value: float) -> str:
    return "" if value > 0 else f"{name} {value}: a positive number"
