"""Added bias.  h' = h + b        BitFit where a network has no biases (Llama): new ones, zero at the start
Ben Zaken et al. 2021, arXiv 2106.10199, trains the biases that are there (adapter=bitfit)
Parameters  dim per site.   Start  b = 0, so h' = h to the bit.
Differs     the paper has no new biases; a norm layer's shift is one at the role of its output.
Hosts       any module with features on one axis.   Not mergeable: the host may have no bias to merge into.
Shapes      h (..., dim), or dim on `axis`   b (dim)
"""

from __future__ import annotations

import torch
from torch import nn

from core.adapters.base import ActivationMethod
from core.adapters.bottleneck import along


class Bias(ActivationMethod):
    targets = ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.in", "mlp.out")

    def __init__(self, dim: int, *, axis: int = -1):
        super().__init__(dim, axis=axis)
        self.b = nn.Parameter(torch.zeros(dim))

    def forward(self, h, x):
        return along(self.axis, h, lambda h: h + self.b)
