"""Houlsby adapter.  h' = h + U f(D h + d) + u        after attention and after the feed-forward, before the residual
Houlsby et al. 2019, arXiv 1902.00751
Parameters  2 dim size + dim + size per site.   Start  U = u = 0, so h' = h to the bit.
Differs     the paper starts U near zero, and trains the layer norms too (compose with `norm`).
Hosts       any module with features on one axis; roles that name a linear layer adapt its output.   Not mergeable.
Shapes      h (..., dim), or dim on `axis`   D (size, dim)   U (dim, size)
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F

from core.adapters.base import ActivationMethod
from core.adapters.bottleneck import along, projections


class Houlsby(ActivationMethod):
    targets = ("attn.out", "mlp.out")

    def __init__(
        self,
        dim: int,
        *,
        axis: int = -1,
        size: int = 64,
        activation: Literal["gelu", "relu", "silu"] = "gelu",
        bias: bool = True,
    ):
        super().__init__(dim, axis=axis)
        self.down, self.up = projections(dim, size, dim, bias=bias)
        self.activation = activation

    def forward(self, h, x):
        f = getattr(F, self.activation)
        return h + along(self.axis, h, lambda h: self.up(f(self.down(h))))
