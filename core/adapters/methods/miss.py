"""MiSS.  W' = W + [D^T D^T ... D^T], the last copy cut        shards of r columns share one change
Kang and Yin 2024, arXiv 2409.15371
Parameters  r out per site.   Start  D = 0, so W' = W to the bit.
Differs     nothing. y += (sum of the shards of x) D: the output form keeps r numbers per token, not the input.
            A matrix with fewer than r columns gets as many as it has.
Hosts       all but embeddings, whose columns are entries of a table: every r-th entry would share a change.
Shapes      W (out, in)   D (r, out)   x (..., in)   y (..., out)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from core.adapters.base import WeightMethod
from core.adapters.low_rank import refuses_rank
from core.adapters.peft_form import PeftForm


class MiSS(WeightMethod):
    peft = PeftForm(
        "MISS",
        {"miss_block": "D"},
        keys={"r": "rank"},
        hosts=("Linear",),
        is_for=lambda config: config.get("init_weights") not in ("bat", "mini"),
    )
    order = "output"

    def __init__(self, W, *, rank: int = 64):
        super().__init__()
        self.columns = W.shape[1]
        self.D = nn.Parameter(W.new_zeros(min(rank, self.columns), W.shape[0]))

    def weight(self, W):
        return W + self.tiled(self.D.T)

    def output(self, x, y, op, W, b):
        if op.linear:  # added as it is multiplied
            return torch.addmm(y.flatten(0, -2), self.folded(x).flatten(0, -2), self.D).view(y.shape)
        h = op.down(x, self.tiled(torch.eye(len(self.D)).to(self.D)))
        return y + op.up(h, self.D.T)

    def tiled(self, M):
        """(rows, r) -> (rows, in)"""
        return M.repeat(1, -(-self.columns // len(self.D)))[:, : self.columns]

    def folded(self, x):
        """(..., in) -> (..., r): the sum of the shards, the last one filled with zeros."""
        r = len(self.D)
        whole = self.columns - self.columns % r
        h = x[..., :whole].unflatten(-1, (-1, r)).sum(-2)
        return h if whole == self.columns else h + F.pad(x[..., whole:], (0, whole + r - self.columns))

    @classmethod
    def refuses(cls, host, shape, options):
        if host == "Embedding":
            return "its columns are entries of a table, every r-th of which would share a change: use lora"
        return refuses_rank(options["rank"])

    @classmethod
    def refuses_all(cls, shapes, options):
        most = max(columns for _, columns in shapes)
        rank = options["rank"]
        return "" if rank <= most else f"rank {rank} is more than the columns of every layer: 1 to {most}"
