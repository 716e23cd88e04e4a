"""Pfeiffer adapter.  h' = h + U f(D h + d) + u        once per block, after the feed-forward
Pfeiffer et al. 2020, arXiv 2005.00247
Parameters  2 dim size + dim + size per site, size = dim / reduction.   Start  U = u = 0, so h' = h to the bit.
Differs     the paper starts U near zero; where a block has its norms is left to the block.
Hosts       any module with features on one axis; roles that name a linear layer adapt its output.   Not mergeable.
Shapes      h (..., dim), or dim on `axis`   D (size, dim)   U (dim, size)
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F

from core.adapters.base import ActivationMethod
from core.adapters.bottleneck import along, projections


class Pfeiffer(ActivationMethod):
    targets = ("mlp.out",)
    size = "reduction"
    divides = True

    def __init__(
        self,
        dim: int,
        *,
        axis: int = -1,
        reduction: float = 16.0,
        activation: Literal["gelu", "relu", "silu"] = "relu",
        bias: bool = True,
    ):
        super().__init__(dim, axis=axis)
        self.down, self.up = projections(dim, max(1, round(dim / reduction)), dim, bias=bias)
        self.activation = activation

    def forward(self, h, x):
        f = getattr(F, self.activation)
        return h + along(self.axis, h, lambda h: self.up(f(self.down(h))))
