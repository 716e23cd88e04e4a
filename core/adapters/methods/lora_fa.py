"""LoRA-FA.  W' = W + s B A, A random and frozen        s = alpha / r
Zhang et al. 2023, arXiv 2308.03303
Parameters  r out per site.   Start  B = 0, so W' = W to the bit.
Differs     nothing. The input of a layer is not kept for the backward pass, A x is: r numbers per token.
            A is saved beside B. A matrix smaller than r gets the rank it has room for; the scale stays that of r.
Hosts       all but embeddings: a lookup keeps no input, and A would be r random numbers per entry of the table.
Shapes      W (out, in)   A (r, in)   B (out, r)   x (..., in)   y (..., out)
"""

from __future__ import annotations

from torch import nn

from core.adapters.base import Factors, kaiming
from core.adapters.low_rank import LowRankMethod, room


class LoRAFA(LowRankMethod):
    def __init__(self, W, *, rank: int = 8, alpha: float = 16.0):
        super().__init__()
        rows = room(W, rank)
        self.register_buffer("A", kaiming(rows, W.shape[1]).to(W))
        self.B = nn.Parameter(W.new_zeros(W.shape[0], rows))
        self.scale = alpha / rank

    def weight(self, W):
        return W + self.scale * self.B @ self.A

    def factors(self):
        return Factors(self.A, self.B, self.scale)

    @classmethod
    def refuses(cls, host, shape, options):
        if host == "Embedding":
            return "a lookup keeps no input, so that freezing A saves nothing: use lora"
        return super().refuses(host, shape, options)
