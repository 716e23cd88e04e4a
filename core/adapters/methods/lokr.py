"""LoKr.  W' = W + s kron(C, D),  D full, or D = B A where r < max(out2, in2) / 2        s = alpha / r
LyCORIS, Yeh et al. 2023, arXiv 2309.14859; KronA, Edalati et al. 2022, arXiv 2212.10650
Parameters  out1 in1 + r (out2 + in2) per site, or out1 in1 + out2 in2;  out = out1 out2, in = in1 in2.
Start       C = 0, so W' = W to the bit.
Differs     s stays alpha / r where D is full, as in HF peft; LyCORIS then takes 1, and starts with D = 0 instead of C.
            C is always full. Convolutions: in, which is divided, counts channels times taps.
Hosts       all. A product or a lookup never forms kron(C, D).
Shapes      W (out, in)   C (out1, in1)   D (out2, in2)   A (r, in2)   B (out2, r)   x (..., in)   y (..., out)
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from core.adapters.base import WeightMethod, kaiming
from core.adapters.call import without_autocast
from core.adapters.low_rank import refuses_rank
from core.adapters.peft_form import PeftForm


class LoKr(WeightMethod):
    order = "linear"

    def __init__(self, W, *, rank: int = 8, alpha: float = 16.0, factor: int = -1):
        super().__init__()
        (out1, out2), (in1, in2) = (divided(n, factor) for n in W.shape)
        self.C = nn.Parameter(W.new_zeros(out1, in1))
        self.thin = rank < max(out2, in2) / 2
        if self.thin:
            self.A = nn.Parameter(kaiming(rank, in2).to(W))
            self.B = nn.Parameter(kaiming(out2, rank).to(W))
        else:
            self.D = nn.Parameter(kaiming(out2, in2).to(W))
        self.scale = alpha / rank

    def scaled(self):
        """s D, (out2, in2)"""
        return self.scale * (self.B @ self.A if self.thin else self.D)

    def weight(self, W):
        return W + torch.kron(self.C, self.scaled())

    def output(self, x, y, op, W, b):
        if op.linear:
            with without_autocast(y):
                C, D = self.C.to(y.dtype), self.scaled().to(y.dtype)
                return plus_product(x.to(y.dtype), y, C, D)
        if op.kind == "Embedding":
            D = self.scaled()
            first, second = x // D.shape[1], x % D.shape[1]
            change = F.embedding(first, self.C.T)[..., None] * F.embedding(second, D.T)[..., None, :]
            return y + change.flatten(-2)
        z = op.apply(x, self.weight(W))
        return z if b is None else z + b

    @classmethod
    def refuses(cls, host, shape, options):
        factor = options["factor"]
        if factor != -1 and factor < 1:
            return f"factor {factor}: 1 or more, or -1 for the divisor nearest to the square root"
        return refuses_rank(options["rank"])


def divided(n: int, factor: int) -> tuple[int, int]:
    """n = a b: a = `factor` where that divides n, else the largest divisor up to it with a <= b; -1: no bound."""
    if factor > 0 and n % factor == 0:
        return factor, n // factor
    most = math.isqrt(n) if factor == -1 else min(factor, math.isqrt(n))
    a = max(d for d in range(1, most + 1) if n % d == 0)
    return a, n // a


def plus_product(x, y, C, D):
    """y + kron(C, D) x"""
    if torch.compiler.is_compiling():  # our own function would break the graph
        return y + (C @ (x.unflatten(-1, (-1, D.shape[1])) @ D.T)).flatten(-2)
    return _PlusProduct.apply(x, y, C, D)


class _PlusProduct(torch.autograd.Function):
    """y + kron(C, D) x. Keeps x; D x, which is as large, is made again in backward."""

    @staticmethod
    def forward(ctx, x, y, C, D):
        ctx.save_for_backward(x, C, D)
        h = _inner(x, C, D)
        return torch.baddbmm(y.reshape(len(h), len(C), len(D)), C.expand(len(h), *C.shape), h).view(y.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        x, C, D = ctx.saved_tensors
        h = _inner(x, C, D)
        parts = g.reshape(len(h), len(C), len(D))
        dC = torch.bmm(parts, h.mT).sum(0)
        back = torch.matmul(C.T, parts).view(-1, len(D))  # (tokens in1, out2)
        dD = back.T @ x.reshape(-1, D.shape[1])
        dx = (back @ D).view(x.shape) if ctx.needs_input_grad[0] else None
        return dx, g, dC, dD


def _inner(x, C, D):
    """(tokens, in1, out2)"""
    return (x.reshape(-1, D.shape[1]) @ D.T).view(-1, C.shape[1], len(D))


# In Hugging Face peft: convolutions divide their channels there, channels times taps here.


def _write(place, options):
    method = place.methods[0]
    inner = {"lokr_w2_a": method.B, "lokr_w2_b": method.A} if method.thin else {"lokr_w2": method.D}
    return {"lokr_w1": method.C, **inner}


LoKr.peft = PeftForm(
    "LOKR",
    {"lokr_w1": "C", "lokr_w2": "D", "lokr_w2_a": "B", "lokr_w2_b": "A"},
    keys={"r": "rank", "alpha": "alpha", "decompose_factor": "factor"},
    fixed={"decompose_both": False, "rank_pattern": {}, "alpha_pattern": {}},
    hosts=("Linear",),
    write=_write,
)
