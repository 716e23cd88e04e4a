"""HRA.  W' = W H_1 ... H_r,  H_k = I - 2 u_k u_k^T / |u_k|^2: a chain of Householder reflections of the input
Yuan et al. 2024, arXiv 2405.17484
Parameters  r in per site.   Start  u_1 = u_2, u_3 = u_4, ...: each pair undoes itself, so W' = W to rounding.
Differs     the chain is I - U T U^T with T (r, r) (compact WY form), applied to x as a low-rank branch; in x in, which
            HF peft forms, is never made. `orthogonality` is the paper's regulariser, lambda |I - U^T U|^2 on the unit
            vectors. Odd r, no identity at the start, is refused. `side: out` reflects the output, W' = H W.
Hosts       all; embeddings with `side: out` alone: their in counts the rows of the table.
Shapes      W (out, in)   U (r, in): its rows are u_k   T (r, r)   x (..., in)
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from core.adapters.base import WeightMethod, kaiming
from core.adapters.call import without_autocast
from core.adapters.peft_form import PeftForm
from core.adapters.rotation import reflected


def _refuses(kernel: tuple[int, ...], side: str) -> str:
    """For Hugging Face peft."""
    if len(set(kernel)) > 1:
        return f"kernel {kernel}: theirs needs a square one"
    return "" if side == "in" else "side out: theirs reflects the input"


class HRA(WeightMethod):
    peft = PeftForm(
        "HRA",
        {"hra_u": "U.T"},
        keys={"r": "rank"},
        fixed={"apply_GS": False},
        hosts=("Linear", "Conv2d"),
        refuses=lambda place, options: _refuses(place.kernel, options["side"]),
    )

    def __init__(self, W, *, rank: int = 8, orthogonality: float = 0.0, side: Literal["in", "out"] = "in"):
        super().__init__()
        self.side, self.orthogonality = side, orthogonality
        width = W.shape[1 if side == "in" else 0]
        self.U = nn.Parameter(kaiming(rank // 2, width).repeat_interleave(2, 0).to(W))

    def chain(self):
        """(U, V), both (in, r): H_1 ... H_r = I - U V^T"""
        with without_autocast(self.U):
            U = F.normalize(self.U, dim=1)
            # T^-1 is half the identity plus what lies above the diagonal of U U^T.
            inverse = torch.triu(U @ U.T, 1) + torch.eye(len(U), dtype=U.dtype, device=U.device) / 2
            V = torch.linalg.solve_triangular(inverse, U, upper=True)  # T U, so U^T T U = U^T V
            return U.T, V.T

    def weight(self, W):
        U, V = self.chain()
        return reflected(W, U, V) if self.side == "in" else reflected(W.mT, V, U).mT

    def into(self, x):
        if self.side == "out":
            return None
        U, V = self.chain()
        return reflected(x, V, U)

    def penalty(self):
        if not self.orthogonality:
            return None
        U = F.normalize(self.U, dim=1)
        return self.orthogonality * (torch.eye(len(U), dtype=U.dtype, device=U.device) - U @ U.T).square().sum()

    @classmethod
    def refuses(cls, host, shape, options):
        rank, side = options["rank"], options["side"]
        if rank < 2 or rank % 2:
            return f"rank {rank}: even, 2 or more, so that the reflections undo each other at the start"
        if side == "in" and host == "Embedding":
            return "side in would mix rows of the table: side=out reflects the embedding itself"
        return "" if options["orthogonality"] >= 0 else f"orthogonality {options['orthogonality']}: 0 or more"
