"""Visual prompt tuning, deep.  x_l' = [x_cls; P_l; x_l]: p trained vectors among the tokens of every block
Jia et al. 2022, arXiv 2203.12119
Parameters  L p dim.   Start  as vpt_shallow: uniform +-sqrt(6 / (3 patch^2 + dim)). Not the identity.
            The outputs of a block's prompts are dropped, the next block gets its own: nothing is carried along.
Differs     no dropout on the prompts.
Hosts       networks whose token port names their blocks: encoders. A decoder's cache would need places for the tokens
            of every block; prefix tuning is the deep form there.
Shapes      P (L, p, dim)
"""

from __future__ import annotations

import torch
from torch import nn

from core.adapters.base import TokenMethod
from core.adapters.methods.vpt_shallow import uniform


class VPTDeep(TokenMethod):
    seam = "deep"

    def __init__(self, dim, layers, *, tokens: int = 10, patch: int = 16):
        super().__init__(tokens)
        self.value = nn.Parameter(torch.stack([uniform(tokens, dim, patch) for _ in range(layers)]))

    def forward(self, layer):
        return self.value[layer]
