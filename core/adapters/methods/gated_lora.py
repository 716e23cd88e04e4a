"""Gated LoRA.  h' = h + g(x) s B A x,  g(x) = sigmoid(w^T x + c),  s = alpha / r        LoRA that tokens turn down
UniPELT, Mao et al. 2021, arXiv 2110.07577
Parameters  r (in + dim) + in + 1 per site.   Start  B = 0, so h' = h to the bit; w = c = 0, so g = 1/2.
Differs     each position has its own gate; the paper takes the mean over an example's positions, padding included, so
            that an answer would depend on how much padding stands beside it.
Hosts       modules whose output has the input's shape but for the channels: a linear, rows of a fused one.
            Not mergeable: the gate reads the input.
Shapes      h (..., dim), x (..., in), or channels on `axis`   A (r, in)   B (dim, r)   w (in)   c ()
"""

from __future__ import annotations

import torch
from torch import nn

from core.adapters.base import ActivationMethod, kaiming
from core.adapters.bottleneck import along, refuses_change
from core.errors import UnsupportedError


class GatedLoRA(ActivationMethod):
    targets = ("attn.q", "attn.v")
    size = "rank"
    reads_input = True

    def __init__(self, dim: int, input_dim: int, *, axis: int = -1, rank: int = 8, alpha: float = 16.0):
        super().__init__(dim, axis=axis)
        self.A = nn.Parameter(kaiming(rank, input_dim))
        self.B = nn.Parameter(torch.zeros(dim, rank))
        self.w, self.c = nn.Parameter(torch.zeros(input_dim)), nn.Parameter(torch.zeros(()))
        self.scale = alpha / rank

    def forward(self, h, x):
        branch = along(self.axis, x, self.branch)
        if h.shape != branch.shape:  # never a broadcast
            got = f"input {tuple(x.shape)}, output {tuple(h.shape)}"
            raise UnsupportedError("adapter=gated_lora", got, "modules that keep all axes but channels", "another role")
        return h + branch

    def branch(self, x):
        gate = torch.sigmoid(x @ self.w[:, None] + self.c)
        return gate * (self.scale * ((x @ self.A.T) @ self.B.T))

    @classmethod
    def refuses(cls, host, x, h, options):
        return refuses_change(x, h, options["axis"])
