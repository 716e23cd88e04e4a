"""Gated adapter.  h' = h + g(h) (U f(D h + d) + u),  g(h) = sigmoid(w^T h + c)      an adapter that tokens turn down
UniPELT, Mao et al. 2021, arXiv 2110.07577
Parameters  2 dim size + dim + size + dim + 1 per site.   Start  U = u = 0, so h' = h to the bit; w = c = 0, so g = 1/2.
Differs     each position has its own gate; the paper takes the mean over an example's positions, padding included, so
            that an answer would depend on how much padding stands beside it.
Hosts       any module with features on one axis; roles that name a linear layer adapt its output.   Not mergeable.
Shapes      h (..., dim), or dim on `axis`   D (size, dim)   U (dim, size)   w (dim)   c ()
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from core.adapters.base import ActivationMethod
from core.adapters.bottleneck import along, projections


class GatedAdapter(ActivationMethod):
    targets = ("mlp.out",)

    def __init__(
        self, dim: int, *, axis: int = -1, size: int = 48, activation: Literal["gelu", "relu", "silu"] = "relu"
    ):
        super().__init__(dim, axis=axis)
        self.down, self.up = projections(dim, size, dim)
        self.w, self.c = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(()))
        self.activation = activation

    def forward(self, h, x):
        return h + along(self.axis, h, self.branch)

    def branch(self, h):
        f = getattr(F, self.activation)
        return torch.sigmoid(h @ self.w[:, None] + self.c) * self.up(f(self.down(h)))
