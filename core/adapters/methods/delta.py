"""Delta.  W' = W + D        a whole matrix per site: what arithmetic on adapters gives where no rank is asked for
Task vectors: Ilharco et al. 2022, arXiv 2212.04089
Parameters  out in per site.   Start  D = 0, so W' = W to the bit.
Differs     the paper's task vectors change every parameter; here the matrices at the chosen roles.
Hosts       all.
Shapes      W, D (out, in)
"""

from __future__ import annotations

import torch
from torch import nn

from core.adapters.base import WeightMethod


class Delta(WeightMethod):
    size = ""

    def __init__(self, W):
        super().__init__()
        self.D = nn.Parameter(torch.zeros_like(W))

    def weight(self, W):
        return W + self.D
