"""Lily.  y' = y + s sum_e p_e B_e z        z = A x,  p = softmax(R z) for each position
Zhong et al. 2024, arXiv 2407.09946
Parameters  of n sites of one role and shape: ceil(n / stride) rank in + experts rank out + n experts rank. A is shared
            by `stride` neighbouring sites, the B_e by all n; R is a site's own.
Start       B = 0, so y' = y to the bit.
Differs     the change depends on the input, so there is no W' to compute and the method acts on the layer's output.
            The peer averages p over the whole batch: a row's answer then depends on its neighbours. Here it does not.
Hosts       modules whose output has the input's shape but for the channels: linear layers, 1 x 1 convolutions, rows of
            a fused projection.   Not mergeable.
Shapes      x (..., in)   y (..., out), or channels on `axis`
            A (rank, in)   B (experts, rank, out)   R (experts, rank)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from core.adapters.base import ActivationMethod, kaiming
from core.adapters.bottleneck import along, refuses_change


class Lily(ActivationMethod):
    targets = ("attn.q", "attn.v")
    size = "rank"
    reads_input = True

    def __init__(
        self,
        dim: int,
        input_dim: int,
        *,
        axis: int = -1,
        rank: int = 16,
        stride: int = 2,
        experts: int = 4,
        scale: float = 1.0,
    ):
        super().__init__(dim, axis=axis)
        self.A = nn.Parameter(kaiming(rank, input_dim))
        self.B = nn.Parameter(torch.zeros(experts, rank, dim))
        self.R = nn.Parameter(kaiming(experts, rank))
        self.stride, self.scale = stride, scale

    @classmethod
    def join(cls, methods):
        groups: dict[tuple, list[Lily]] = {}
        for m in methods:
            groups.setdefault((m.role, m.A.shape, m.B.shape), []).append(m)
        for group in groups.values():
            for i, m in enumerate(group):
                m.B, m.A = group[0].B, group[i - i % m.stride].A

    def branch(self, x):
        z = F.linear(x, self.A)
        p = F.linear(z, self.R).softmax(-1).to(z.dtype)
        mixed = (p[..., :, None] * z[..., None, :]).flatten(-2)  # (..., experts rank)
        return self.scale * (mixed @ self.B.flatten(0, 1).to(z.dtype))

    def forward(self, h, x):
        return h + along(self.axis, x, self.branch)

    @classmethod
    def refuses(cls, host, x, h, options):
        for name, least in (("rank", 1), ("stride", 1), ("experts", 2)):
            if options[name] < least:
                return f"{name} {options[name]}: {least} or more"
        return refuses_change(x, h, options["axis"])
