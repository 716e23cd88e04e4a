"""MiSS.  W' = W + [D^T D^T ... D^T], the last copy cut        shards of r columns share one change
Kang and Yin 2024, arXiv 2409.15371
Parameters  r out per site.   Start  D = 0, so W' = W to the bit.
Differs     nothing. W' = W + D^T A with A = [I I ... I], so A x is the sum of the shards of x, and that alone is kept:
            r numbers per token, not the input. A matrix with fewer than r columns gets as many as it has.
Hosts       all but embeddings, whose columns are entries of a table: every r-th entry would share a change.
Shapes      W (out, in)   D (r, out)   A (r, in)   x (..., in)   y (..., out)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from core.adapters.base import Factors
from core.adapters.low_rank import LowRankMethod
from core.adapters.peft_form import PeftForm
from core.adapters.projection import Seeded


class MiSS(LowRankMethod, Seeded):
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
        rows, columns = min(rank, W.shape[1]), W.shape[1]
        self.draw(shards, rows, columns, like=W)
        self.D = nn.Parameter(W.new_zeros(rows, len(W)))

    def weight(self, W):
        return W + self.D.T @ self.A

    def factors(self):
        return Factors(self.A, self.D.T, 1.0, down=self.folded)

    def output(self, x, y, op, W, b):
        h = self.folded(x) if op.linear else op.down(x, self.A)
        return y + op.up(h, self.D.T)

    def folded(self, x):
        """(..., in) -> (..., r): the sum of the shards, the last one filled with zeros."""
        r, columns = self.A.shape
        whole = columns - columns % r
        h = x[..., :whole].unflatten(-1, (-1, r)).sum(-2)
        return h if whole == columns else h + F.pad(x[..., whole:], (0, whole + r - columns))

    @classmethod
    def refuses(cls, host, shape, options):
        if host == "Embedding":
            return "its columns are entries of a table, every r-th of which would share a change: use lora"
        return super().refuses(host, shape, options)

    @classmethod
    def refuses_all(cls, shapes, options):
        most = max(columns for _, columns in shapes)
        rank = options["rank"]
        return "" if rank <= most else f"rank {rank} is more than the columns of every layer: 1 to {most}"


def shards(rank: int, columns: int):
    """[I I ... I], the last one cut."""
    return {"A": torch.eye(rank).repeat(1, -(-columns // rank))[:, :columns]}
