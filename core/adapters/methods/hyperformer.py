"""HyperFormer.  h' = h + U f(D h + d) + u        D, d, U, u = G e + g,  e = LN(P2 relu(P1 z)),  z the site's own vector
Mahabadi et al. 2021, arXiv 2106.04489
Parameters  embedding per site; G, g, P and LN once for all sites of one width:
            (embedding + 1) (2 dim size + dim + size) + 2 embedding (embedding + 1) + 2 embedding.
Start       the rows of G and g that make U and u are 0, so h' = h to the bit.
Differs     one task, so no task embedding; a site has one vector instead of a layer's and a position's; the adapter has
            no layer norm of its own.
Hosts       any module with features on one axis.   Not mergeable.
Shapes      h (..., dim), or dim on `axis`   z, e (embedding)   D (size, dim)   U (dim, size)
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from core.adapters.base import ActivationMethod
from core.adapters.bottleneck import along


class _Hypernet(nn.Module):
    """A site's vector -> (D, d) and (U, u), flat."""

    def __init__(self, dim: int, size: int, embedding: int):
        super().__init__()
        self.project = nn.Sequential(nn.Linear(embedding, embedding), nn.ReLU(), nn.Linear(embedding, embedding))
        self.norm = nn.LayerNorm(embedding)
        self.down, self.up = nn.Linear(embedding, size * dim + size), nn.Linear(embedding, dim * size + dim)
        for tensor, std in ((self.down.weight, (embedding * dim) ** -0.5), (self.down.bias, 0.0)):
            nn.init.normal_(tensor, std=std)
        for tensor in self.up.parameters():
            nn.init.zeros_(tensor)

    def forward(self, z):
        e = self.norm(self.project(z))
        return self.down(e), self.up(e)


class HyperFormer(ActivationMethod):
    targets = ("attn.out", "mlp.out")

    def __init__(
        self,
        dim: int,
        *,
        axis: int = -1,
        size: int = 24,
        embedding: int = 64,
        activation: Literal["gelu", "relu", "silu"] = "gelu",
    ):
        super().__init__(dim, axis=axis)
        self.z = nn.Parameter(torch.randn(embedding))
        self.hypernet = _Hypernet(dim, size, embedding)
        self.dim, self.width, self.activation = dim, size, activation

    @classmethod
    def join(cls, methods):
        first: dict[int, HyperFormer] = {}
        for m in methods:
            m.hypernet = first.setdefault(m.dim, m).hypernet

    def forward(self, h, x):
        down, up = self.hypernet(self.z)
        D, d = down[: -self.width].view(self.width, self.dim), down[-self.width :]
        U, u = up[: -self.dim].view(self.dim, self.width), up[-self.dim :]
        f = getattr(F, self.activation)
        return h + along(self.axis, h, lambda h: F.linear(f(F.linear(h, D, d)), U, u))
