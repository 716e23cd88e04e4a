"""LoRA-XS.  W' = W + s U_r S_r R V_r^T,  U_r, S_r, V_r of the largest singular values of W, frozen        s = alpha / r
Bałazy et al. 2024, arXiv 2405.17604
Parameters  r^2 per site.   Start  R = 0, so W' = W to the bit.
Differs     the paper draws R from a normal distribution of standard deviation 1e-5; zero serves as well, since the
            frozen factors around it are not zero. They are saved with R: a decomposition has no unique signs.
            niter > 0 takes the singular values by that many power iterations.
            A matrix smaller than r gets the rank it has room for; the scale stays that of r.
Hosts       all but embeddings, where V would be r frozen numbers per entry of the table.
Shapes      W (out, in)   A = V_r^T (r, in)   B = U_r S_r (out, r)   R (r, r)
"""

from __future__ import annotations

from torch import nn

from core.adapters.base import Factors
from core.adapters.low_rank import LowRankMethod, leading, refuses_power, room


class LoRAXS(LowRankMethod):
    def __init__(self, W, *, rank: int = 25, alpha: float = 25.0, niter: int = 0):
        super().__init__()
        rows = room(W, rank)
        U, S, Vt = leading(W, rows, niter)
        self.register_buffer("A", Vt.clone())
        self.register_buffer("B", U * S)
        self.R = nn.Parameter(W.new_zeros(rows, rows))
        self.scale = alpha / rank

    def weight(self, W):
        return W + self.scale * (self.B @ self.R) @ self.A

    def factors(self):
        return Factors(self.A, self.B @ self.R, self.scale)

    @classmethod
    def refuses(cls, host, shape, options):
        if host == "Embedding":
            return f"V would be {options['rank']} frozen numbers for each of {shape[1]} entries: use lora"
        return super().refuses(host, shape, options) or refuses_power(options["niter"])
