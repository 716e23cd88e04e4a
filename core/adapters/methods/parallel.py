"""Parallel adapter.  h' = h + s (U f(D x + d) + u)        x the module's input: a second branch beside the feed-forward
He et al. 2021, arXiv 2110.04366; AdaptFormer (arXiv 2205.13535) is size 64, scale 0.1
Parameters  2 dim size + dim + size per site.   Start  U = u = 0, so h' = h to the bit.
Differs     s is fixed, not learned.
Hosts       modules whose input and output have the same shape (a feed-forward, an attention, a block).   Not mergeable.
Shapes      h, x (..., dim), or dim on `axis`   D (size, dim)   U (dim, size)
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F

from core.adapters.base import ActivationMethod
from core.adapters.bottleneck import along, projections
from core.errors import UnsupportedError


class Parallel(ActivationMethod):
    targets = ("mlp",)

    def __init__(
        self,
        dim: int,
        *,
        axis: int = -1,
        size: int = 64,
        scale: float = 4.0,
        activation: Literal["gelu", "relu", "silu"] = "relu",
        bias: bool = True,
    ):
        super().__init__(dim, axis=axis)
        self.down, self.up = projections(dim, size, dim, bias=bias)
        self.scale, self.activation = scale, activation

    def forward(self, h, x):
        if h.shape != x.shape:  # never a broadcast
            got = f"input {tuple(x.shape)}, output {tuple(h.shape)}"
            raise UnsupportedError("adapter=parallel", got, "modules that keep the shape", "target the role `mlp`")
        f = getattr(F, self.activation)
        return h + self.scale * along(self.axis, x, lambda x: self.up(f(self.down(x))))
