"""DeLoRA.  W' = W + D - D0,  D = (lam / r) B diag(1 / (|a_k| |b_k|)) A diag(c)        c_j = ||W[:, j]||
Bini et al. 2025, arXiv 2503.18225; a_k are the rows of A, b_k the columns of B; D0 is D at the start, frozen
Parameters  r (in + out) + 1 per site; A0 and B0 are kept beside them, frozen.
Start       A, B random and lam = lambda_initial, so D = D0 and W' = W to the bit.
Differs     the norm of W is taken per column, as the authors' code and HF peft do; the paper's formula has one norm.
            The paper subtracts D0 from W; here W stays. HF peft starts with B = 0 instead, where |b_k| is cut at 1e-4
            and the first gradients are 10^4 times too long.
            A matrix smaller than r gets the rank it has room for; the divisor stays r.
Hosts       all.
Shapes      W (out, in)   A, A0 (r, in)   B, B0 (out, r)   lam ()   c (in)
"""

from __future__ import annotations

import torch
from torch import nn

from core.adapters.base import kaiming
from core.adapters.low_rank import OffsetMethod, offset, refuses_sign, room
from core.adapters.peft_form import PeftForm, lora_form

SHORTEST = 1e-4  # |a_k| and |b_k| count as this much at least


class DeLoRA(OffsetMethod):
    def __init__(self, W, *, rank: int = 8, lambda_initial: float = 15.0):
        super().__init__()
        rows, self.rank, self.lam0 = room(W, rank), rank, lambda_initial
        self.begin(kaiming(rows, W.shape[1]).to(W), kaiming(W.shape[0], rows).to(W), 1.0)
        self.register_buffer("c", torch.linalg.vector_norm(W.detach(), dim=0), persistent=False)
        self.lam = nn.Parameter(W.new_tensor(lambda_initial))

    def factors(self):
        """D and D0 as products of unit vectors; both are computed alike, so that they cancel to the bit."""
        A, A0 = (unit(M, 1) * self.c for M in (self.A, self.A0))
        B, B0 = (
            unit(self.B, 0) * (self.lam / self.rank),
            unit(self.B0, 0) * (self.lam.new_tensor(self.lam0) / self.rank),
        )
        return offset(A, B, A0, B0, self.scale)

    @classmethod
    def refuses(cls, host, shape, options):
        return super().refuses(host, shape, options) or refuses_sign("lambda_initial", options["lambda_initial"])


def unit(M, axis: int):
    return M / torch.linalg.vector_norm(M, dim=axis, keepdim=True).clamp_min(SHORTEST)


# In Hugging Face peft: no D0, since B starts at zero there. So D - D0 is written as LoRA of rank 2r.


def _read(config, tensors, shapes):
    names = {"delora_A": "A", "delora_B": "B", "delora_lambda": "lam"}
    fill = {path: {names[end]: t for end, t in own.items()} for path, own in tensors.items()}
    return {"rank": config["r"]}, {p: {**own, "A0": own["A"], "B0": 0 * own["B"]} for p, own in fill.items()}


DeLoRA.peft = PeftForm(
    "DELORA",
    names=("delora_A", "delora_B", "delora_lambda"),
    keys={"r": "rank", "delora_lambda": "lambda_initial"},
    hosts=("Linear",),
    read=_read,
    as_another=lora_form(),
)
