"""SSF.  h' = g * h + b, a scale and a shift per channel        after every linear layer, convolution and norm
Lian et al. 2022, arXiv 2210.08823
Parameters  2 dim per module.   Start  g = 1, b = 0, so h' = h to the bit; the paper draws N(1, 0.02) and N(0, 0.02).
Differs     the bias of the layer is scaled with its output. It would fold into the layer before, W' = diag(g) W,
            bias' = g bias + b; here it stays beside it, for layers without a bias too.   Not mergeable.
Hosts       any module with features on one axis; rows of a fused projection. Attention's packed in_proj has no output.
Shapes      h (..., dim), or dim on `axis`   g (dim)   b (dim)
"""

from __future__ import annotations

import torch
from torch import nn

from core.adapters.base import ActivationMethod
from core.adapters.sites import MATRICES


class SSF(ActivationMethod):
    targets = ("patch", *(role for role in MATRICES if role != "rnn"), "norm", "norm.final")
    size = ""

    def __init__(self, dim: int, *, axis: int = -1):
        super().__init__(dim, axis=axis)
        self.g, self.b = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, h, x):
        shape = [1] * h.ndim
        shape[self.axis] = -1
        return torch.addcmul(self.b.view(shape), h, self.g.view(shape))
