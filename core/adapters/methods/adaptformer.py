"""AdaptFormer.  h' = h + s U dropout(relu(D x + d)) + s u        beside the feed-forward, x its input
Chen et al. 2022, arXiv 2205.13535
Parameters  (in + dim) size + dim + size per site.   Start  U = u = 0, so h' = h to the bit.
Differs     the paper's branch reads the stream before the feed-forward's norm; a module's own input is after it.
Hosts       modules whose output has the input's shape but for the channels: a feed-forward, a linear.   Not mergeable.
Shapes      h (..., dim), x (..., in), or channels on `axis`   D (size, in)   U (dim, size)
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn

from core.adapters.base import ActivationMethod
from core.adapters.bottleneck import along, projections, refuses_change
from core.adapters.low_rank import refuses_dropout


class AdaptFormer(ActivationMethod):
    targets = ("mlp",)
    reads_input = True

    def __init__(
        self, dim: int, input_dim: int, *, axis: int = -1, size: int = 64, scale: float = 0.1, dropout: float = 0.1
    ):
        super().__init__(dim, axis=axis)
        self.down, self.up = projections(input_dim, size, dim)
        nn.init.kaiming_uniform_(self.down.weight, a=5**0.5)
        nn.init.zeros_(self.down.bias)
        self.scale, self.dropout = scale, dropout

    def branch(self, x):
        return self.scale * self.up(F.dropout(F.relu(self.down(x)), self.dropout, self.training))

    def forward(self, h, x):
        return h + along(self.axis, x, self.branch)

    @classmethod
    def refuses(cls, host, x, h, options):
        return refuses_dropout("", options["dropout"]) or refuses_change(x, h, options["axis"])
