"""LoRA.  W' = W + s B A        s = alpha / r, rank-stabilised alpha / sqrt(r)
Hu et al. 2021, arXiv 2106.09685; the scale: Kalajdzievski 2023, arXiv 2312.03732
Parameters  r (in + out) per site.   Start  B = 0, so W' = W to the bit.
Differs     convolutions: A has the host's kernel, B is 1 x 1. Groups share A. Dropout's p is a multiple of 1/256.
            A matrix smaller than r gets the rank it has room for; the scale stays that of r.
Hosts       all. Dropout needs a host that is bound at its input: no lookups, no bare tensors.
Shapes      W (out, in)   A (r, in)   B (out, r)   x (..., in)   y (..., out)
"""

from __future__ import annotations

from typing import Literal

from torch import nn

from core.adapters.base import Factors, kaiming
from core.adapters.dropout import dropped_down, quantised
from core.adapters.low_rank import RankedMethod, room
from core.adapters.peft_form import lora_form


class LoRA(RankedMethod):
    targets = ("attn.q", "attn.v")
    peft = lora_form()

    def __init__(
        self,
        W,
        *,
        rank: int = 8,
        alpha: float = 16.0,
        scaling: Literal["standard", "rank_stabilised"] = "standard",
        dropout: float = 0.0,
    ):
        super().__init__()
        rows = room(W, rank)
        self.A = nn.Parameter(kaiming(rows, W.shape[1]).to(W))
        self.B = nn.Parameter(W.new_zeros(W.shape[0], rows))
        self.scale = alpha / (rank if scaling == "standard" else rank**0.5)
        self.dropout = quantised(dropout)

    def weight(self, W):
        return W + self.scale * self.B @ self.A

    def factors(self):
        return Factors(self.A, self.B, self.scale, self.dropout if self.needs_output() else 0.0)

    def output(self, x, y, op, W, b):
        h = dropped_down(x, self.A, op, self.dropout) if self.needs_output() else op.down(x, self.A)
        return y + op.up(h, self.scale * self.B)

    def needs_output(self):
        return self.training and self.dropout > 0
