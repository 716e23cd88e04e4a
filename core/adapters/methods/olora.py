"""OLoRA.  W' = W + s (B A - B0 A0),  W = Q R,  B0 = Q[:, :r],  A0 = R[:r]        s = alpha / r
Büyükakyüz 2024, arXiv 2406.01775
Parameters  r (in + out) per site; A0 and B0 are kept beside them, frozen.
Start       B = B0 with orthonormal columns, A = A0, so W' = W to the bit.
Differs     the paper trains B A on W - s B0 A0; here W stays, the offset is part of W'.
            A matrix smaller than r gets the rank it has room for; the scale stays that of r.
Hosts       all.
Shapes      W (out, in)   A, A0 (r, in)   B, B0 (out, r)
"""

from __future__ import annotations

import torch

from core.adapters.low_rank import OffsetMethod, room


class OLoRA(OffsetMethod):
    def __init__(self, W, *, rank: int = 8, alpha: float = 16.0):
        super().__init__()
        rows = room(W, rank)
        Q, R = torch.linalg.qr(W.detach())
        self.begin(R[:rows].clone(), Q[:, :rows].clone(), alpha / rank)
