"""Visual prompt tuning, shallow.  x_0' = [x_cls; P; x_0]: p trained vectors among the tokens of the first block
Jia et al. 2022, arXiv 2203.12119
Parameters  p dim, once per network.   Start  uniform +-sqrt(6 / (3 patch^2 + dim)), Xavier's for a colour patch.
            Not the identity: real tokens attend to the vectors from the first step on.
Differs     no dropout on the prompts. Their outputs are dropped behind the last block: heads that pool all tokens see
            real ones only. Where the network embeds words this is prompt tuning with another start.
Hosts       networks with a token port.   Shapes  P (p, dim)
"""

from __future__ import annotations

import torch
from torch import nn

from core.adapters.base import TokenMethod


class VPTShallow(TokenMethod):
    def __init__(self, dim, *, tokens: int = 50, patch: int = 16):
        super().__init__(tokens)
        self.value = nn.Parameter(uniform(tokens, dim, patch))

    def forward(self):
        return self.value


def uniform(tokens: int, dim: int, patch: int) -> torch.Tensor:
    """(tokens, dim) as the paper starts them."""
    bound = (6 / (3 * patch**2 + dim)) ** 0.5
    return torch.empty(tokens, dim).uniform_(-bound, bound)
