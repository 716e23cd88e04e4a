"""Residual adapter.  h' = h + U f(D LN(h) + d) + u        after each block
Tomanek et al. 2021, arXiv 2109.06952.  form linear:  h' = h + W h, a 1 x 1 convolution or a linear
layer beside the identity, Rebuffi et al. 2017, arXiv 1705.08045 (images)
Parameters  bottleneck: 2 dim size + 3 dim + size per site; linear: dim^2.
Start       U = u = 0, or W = 0, so h' = h to the bit.
Differs     Rebuffi: the paper also trains the batch norms (compose with `norm`).
Hosts       any module with features on one axis.   Not mergeable.
Shapes      h (..., dim), or dim on `axis`   D (size, dim)   U (dim, size)   W (dim, dim)
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import nn

from core.adapters.base import ActivationMethod
from core.adapters.bottleneck import along, projections


class Residual(ActivationMethod):
    targets = ("block",)

    def __init__(
        self,
        dim: int,
        *,
        axis: int = -1,
        form: Literal["bottleneck", "linear"] = "bottleneck",
        size: int = 64,
        activation: Literal["gelu", "relu", "silu"] = "relu",
    ):
        super().__init__(dim, axis=axis)
        if form == "linear":
            self.linear = nn.Linear(dim, dim, bias=False)
            nn.init.zeros_(self.linear.weight)
        else:
            self.norm = nn.LayerNorm(dim)
            self.down, self.up = projections(dim, size, dim)
        self.form, self.activation = form, activation

    def branch(self, h):
        if self.form == "linear":
            return self.linear(h)
        return self.up(getattr(F, self.activation)(self.down(self.norm(h))))

    def forward(self, h, x):
        return h + along(self.axis, h, self.branch)
