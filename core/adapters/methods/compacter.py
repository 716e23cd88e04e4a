"""Compacter.  h' = h + U f(D h + d) + u        D = sum_c S_c (x) a_c b_c^T, U likewise; (x) the Kronecker product
Mahabadi et al. 2021, arXiv 2106.04647
Parameters  2 (dim + size) + dim + size per site, and n^3 for all sites together.
Start       U's b and u are 0, so h' = h to the bit.
Differs     the paper starts U near zero, and trains the layer norms too (compose with `norm`).
Hosts       any module with features on one axis whose width n divides.   Not mergeable.
Shapes      h (..., dim), or dim on `axis`   S (n, n, n)   a (n, out/n)   b (n, in/n)   D (size, dim)   U (dim, size)
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from core.adapters.base import ActivationMethod
from core.adapters.bottleneck import along


class Compacter(ActivationMethod):
    targets = ("attn.out", "mlp.out")

    def __init__(
        self,
        dim: int,
        *,
        axis: int = -1,
        size: int = 24,
        n: int = 4,
        activation: Literal["gelu", "relu", "silu"] = "gelu",
    ):
        super().__init__(dim, axis=axis)
        self.S = nn.Parameter(torch.randn(n, n, n) * n**-0.5)
        self.down_a, self.down_b = (nn.Parameter(nn.init.xavier_uniform_(torch.empty(n, k // n))) for k in (size, dim))
        self.up_a = nn.Parameter(nn.init.xavier_uniform_(torch.empty(n, dim // n)))
        self.up_b = nn.Parameter(torch.zeros(n, size // n))
        self.down_bias, self.up_bias = nn.Parameter(torch.zeros(size)), nn.Parameter(torch.zeros(dim))
        self.activation = activation

    @classmethod
    def join(cls, methods):
        for m in methods[1:]:
            m.S = methods[0].S

    def matrix(self, a, b):
        """(out, in) = sum_c kron(S_c, a_c b_c^T)"""
        return torch.einsum("cij,cp,cq->ipjq", self.S, a, b).reshape(self.S.shape[1] * a.shape[1], -1)

    def forward(self, h, x):
        f = getattr(F, self.activation)
        D, U = self.matrix(self.down_a, self.down_b), self.matrix(self.up_a, self.up_b)
        return h + along(self.axis, h, lambda h: F.linear(f(F.linear(h, D, self.down_bias)), U, self.up_bias))

    @classmethod
    def refuses(cls, host, x, h, options):
        n, size, width = options["n"], options["size"], h[options["axis"]]
        if n < 1 or size < n or size % n:
            return f"size {size} with n {n}: a multiple of n"
        divisors = [k for k in range(1, 17) if width % k == 0]
        return "" if width % n == 0 else f"n {n} at width {width}: n divides the width, here one of {divisors}"
