"""LoReFT.  h' = h + R^T (W h + b - R h)        R has orthonormal rows
Wu et al. 2024, arXiv 2404.03592
Parameters  rank (2 dim + 1) per site.   Start  W = R and b = 0, so h' = h to the bit.
Differs     the paper starts W at random. R = Q^T of the QR decomposition of a free matrix, the signs fixed, so that it
            moves smoothly. A module narrower than `rank` gets the rank it has room for. `first` and `last` count
            positions of what the module sees, padding included; both 0: all positions.
Hosts       any module with features on one axis; chosen positions need (batch, positions, dim).   Not mergeable.
Shapes      h (..., dim), or dim on `axis`   R, W (rank, dim)   b (rank)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from core.adapters.base import ActivationMethod
from core.adapters.bottleneck import along
from core.errors import UnsupportedError


class LoReFT(ActivationMethod):
    targets = ("block",)
    size = "rank"

    def __init__(self, dim: int, *, axis: int = -1, rank: int = 8, first: int = 0, last: int = 0):
        super().__init__(dim, axis=axis)
        rows = min(rank, dim)
        self.A = nn.Parameter(torch.randn(rows, dim) * dim**-0.5)
        self.W = nn.Parameter(self.R().detach().clone())
        self.b = nn.Parameter(torch.zeros(rows))
        self.rank, self.first, self.last = rank, first, last

    @classmethod
    def join(cls, methods):
        rank, most = methods[0].rank, max(m.A.shape[1] for m in methods)
        if rank > most:
            raise UnsupportedError("adapter.rank", rank, f"1 to {most}", f"rank={most}: no module is wider")

    def R(self):
        """(rank, dim), orthonormal rows that span what A's do: Gram-Schmidt, so that no sign jumps while A moves."""
        Q, upper = torch.linalg.qr(self.A.T)
        return (Q * upper.diagonal().sign()).T

    def edit(self, h):
        R = self.R()
        return h + F.linear(h, self.W - R, self.b) @ R

    def forward(self, h, x):
        if not self.first and not self.last:
            return along(self.axis, h, self.edit)
        if h.shape[-2] <= self.first + self.last:
            return self.edit(h)
        head, middle, tail = h.split([self.first, h.shape[-2] - self.first - self.last, self.last], dim=-2)
        return torch.cat([self.edit(head), middle, self.edit(tail)], dim=-2)

    @classmethod
    def refuses(cls, host, x, h, options):
        axis = options["axis"] % len(h)
        if options["rank"] < 1:
            return f"rank {options['rank']}: 1 or more"
        if options["first"] < 0 or options["last"] < 0:
            return "first and last count positions: 0 or more"
        if (options["first"] or options["last"]) and (len(h) < 3 or axis != len(h) - 1):
            return "first and last need one axis of positions before the channels: use first=0, last=0"
        return ""
