"""HiRA.  W' = W * (1 + B A), elementwise
Huang et al., Hadamard high-rank adaptation, ICLR 2025, OpenReview TwJrTz9cRS
Parameters  r (in + out) per site.   Start  B = 0, so W' = W to the bit.
Differs     nothing; no scale, as in the paper. The change is relative to W: zeros stay zeros.
            A matrix smaller than r gets the rank it has room for.
Hosts       all but embeddings, where B A would be as large as the table.
Shapes      W (out, in)   A (r, in)   B (out, r)
"""

from __future__ import annotations

from torch import nn

from core.adapters.base import kaiming
from core.adapters.low_rank import RankedMethod, room
from core.adapters.peft_form import CONVOLUTIONS, LINEAR, PeftForm, capped


class HiRA(RankedMethod):
    peft = PeftForm(
        "HIRA", {"hira_A": "A.k", "hira_B": "B.1"}, keys={"r": "rank"}, hosts=(*LINEAR, *CONVOLUTIONS), refuses=capped
    )

    def __init__(self, W, *, rank: int = 32):
        super().__init__()
        rows = room(W, rank)
        self.A = nn.Parameter(kaiming(rows, W.shape[1]).to(W))
        self.B = nn.Parameter(W.new_zeros(W.shape[0], rows))

    def weight(self, W):
        return W.addcmul(W, self.B @ self.A)

    @classmethod
    def refuses(cls, host, shape, options):
        if host == "Embedding":
            return f"B A would be as large as the table, {shape[1]} x {shape[0]}, at every step: use lora"
        return super().refuses(host, shape, options)
