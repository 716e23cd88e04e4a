"""Bone.  W'_pq = W_pq + W_pq D_p + D_p        W in blocks of r x r, one D per row of blocks
Kang and Yin 2024, arXiv 2409.15371, the variant "bat"
Parameters  r out per site.   Start  D = 0, so W' = W to the bit.
Differs     nothing. A change of full rank; for the low-rank one see miss.
Hosts       those whose `in` and `out` are multiples of r; no embeddings, whose columns are entries of a table.
Shapes      W (out, in)   D (out / r, r, r)
"""

from __future__ import annotations

from math import gcd

import torch
from torch import nn

from core.adapters.base import WeightMethod
from core.adapters.low_rank import refuses_rank
from core.adapters.peft_form import PeftForm


class Bone(WeightMethod):
    peft = PeftForm(
        "MISS",
        {"miss_block": "D"},
        keys={"r": "rank"},
        fixed={"init_weights": "bat"},
        hosts=("Linear",),
        is_for=lambda config: config.get("init_weights") == "bat",
    )

    def __init__(self, W, *, rank: int = 16):
        super().__init__()
        self.D = nn.Parameter(W.new_zeros(W.shape[0] // rank, rank, rank))

    def weight(self, W):
        r = self.D.shape[-1]
        rows = W.reshape(len(self.D), -1, r)  # (out / r, r in / r, r): a row of blocks is one matrix, as it lies
        turned = torch.baddbmm(rows, rows, self.D).view(len(self.D), r, -1, r)
        return (turned + self.D[:, :, None]).view(W.shape)

    @classmethod
    def refuses(cls, host, shape, options):
        rank = options["rank"]
        if host == "Embedding":
            return "its columns are entries of a table, which blocks would mix: use lora"
        if rank >= 1 and any(size % rank for size in shape):
            return f"rank {rank} does not divide {shape} into blocks: use miss, or a divisor of {gcd(*shape)}"
        return refuses_rank(rank)
