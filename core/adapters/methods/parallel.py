"""Parallel adapter.  h' = h + s (U f(D x + d) + u)        x the module's input: a second branch beside the feed-forward
He et al. 2021, arXiv 2110.04366; AdaptFormer (arXiv 2205.13535) is size 64, scale 0.1
Parameters  (in + dim) size + dim + size per site.   Start  U = u = 0, so h' = h to the bit.
Differs     s is fixed, not learned.
Hosts       modules whose output has the input's shape but for the channels: a feed-forward, a linear.   Not mergeable.
Shapes      h (..., dim), x (..., in), or channels on `axis`   D (size, in)   U (dim, size)
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F

from core.adapters.base import ActivationMethod
from core.adapters.bottleneck import along, projections, refuses_change
from core.errors import UnsupportedError


class Parallel(ActivationMethod):
    targets = ("mlp",)
    reads_input = True

    def __init__(
        self,
        dim: int,
        input_dim: int,
        *,
        axis: int = -1,
        size: int = 64,
        scale: float = 4.0,
        activation: Literal["gelu", "relu", "silu"] = "relu",
        bias: bool = True,
    ):
        super().__init__(dim, axis=axis)
        self.down, self.up = projections(input_dim, size, dim, bias=bias)
        self.scale, self.activation = scale, activation

    def forward(self, h, x):
        f = getattr(F, self.activation)
        branch = along(self.axis, x, lambda x: self.up(f(self.down(x))))
        if h.shape != branch.shape:  # never a broadcast
            got = f"input {tuple(x.shape)}, output {tuple(h.shape)}"
            raise UnsupportedError("adapter=parallel", got, "modules that keep all axes but channels", "another role")
        return h + self.scale * branch

    @classmethod
    def refuses(cls, host, x, h, options):
        return refuses_change(x, h, options["axis"])
