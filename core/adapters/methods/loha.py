"""LoHa.  W' = W + s (B1 A1) * (B2 A2), elementwise: of rank up to r^2        s = alpha / r
FedPara, Hyeon-Woo et al. 2021, arXiv 2108.06098; LoHa: LyCORIS, Yeh et al. 2023, arXiv 2309.14859
Parameters  2 r (in + out) per site.
Start       B2 = 0, so W' = W to the bit; A1, A2 ~ N(0, 1), B1 ~ N(0, 0.1), as in LyCORIS: alpha 1 then moves W about as
            fast as LoRA's 16 does.
Differs     HF peft draws smaller ones and zeroes A2. Convolutions: the matrix form alone, without a core tensor.
            A matrix smaller than r gets the rank it has room for; the scale stays that of r.
Hosts       all but embeddings, where the product would be as large as the table.
Shapes      W (out, in)   A1, A2 (r, in)   B1, B2 (out, r)
"""

from __future__ import annotations

import torch
from torch import nn

from core.adapters.low_rank import RankedMethod, room
from core.adapters.peft_form import PeftForm, capped


class LoHa(RankedMethod):
    peft = PeftForm(
        "LOHA",
        {"hada_w1_a": "B1", "hada_w1_b": "A1", "hada_w2_a": "B2", "hada_w2_b": "A2"},
        keys={"r": "rank", "alpha": "alpha"},
        fixed={"use_effective_conv2d": False, "rank_pattern": {}, "alpha_pattern": {}},
        hosts=("Linear", "Conv1d", "Conv2d"),
        refuses=capped,
    )

    def __init__(self, W, *, rank: int = 8, alpha: float = 1.0):
        super().__init__()
        rows, (out, columns) = room(W, rank), W.shape
        self.A1 = nn.Parameter(torch.randn(rows, columns).to(W))
        self.B1 = nn.Parameter(torch.randn(out, rows).mul_(0.1).to(W))
        self.A2 = nn.Parameter(torch.randn(rows, columns).to(W))
        self.B2 = nn.Parameter(W.new_zeros(out, rows))
        self.scale = alpha / rank

    def weight(self, W):
        return W.addcmul(self.B1 @ self.A1, self.B2 @ self.A2, value=self.scale)

    @classmethod
    def refuses(cls, host, shape, options):
        if host == "Embedding":
            return f"the change would be as large as the table, {shape[1]} x {shape[0]}, at every step: use lora"
        return super().refuses(host, shape, options)
