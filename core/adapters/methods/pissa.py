"""PiSSA.  W' = W + s (B A - B0 A0),  s B0 A0 = U_r S_r V_r^T, the largest singular values of W        s = alpha / r
Meng et al. 2024, arXiv 2404.02948
Parameters  r (in + out) per site; A0 and B0 are kept beside them, frozen.
Start       B = B0 = U_r sqrt(S_r / s),  A = A0 = sqrt(S_r / s) V_r^T, so W' = W to the bit.
Differs     the paper trains B A on the residual W - s B0 A0; here W stays, the offset is part of W'.
            niter > 0 takes the singular values by that many power iterations (seconds, not minutes, on a large layer).
            A matrix smaller than r gets the rank it has room for; the scale stays that of r.
Hosts       all.
Shapes      W (out, in)   A, A0 (r, in)   B, B0 (out, r)
"""

from __future__ import annotations

from core.adapters.low_rank import OffsetMethod, leading, refuses_power, refuses_sign, room


class PiSSA(OffsetMethod):
    def __init__(self, W, *, rank: int = 16, alpha: float = 16.0, niter: int = 0):
        super().__init__()
        U, S, Vt = leading(W, room(W, rank), niter)
        root = (S / (alpha / rank)).sqrt()
        self.begin(root[:, None] * Vt, U * root, alpha / rank)

    @classmethod
    def refuses(cls, host, shape, options):
        wrong = super().refuses(host, shape, options) or refuses_power(options["niter"])
        return wrong or refuses_sign("alpha", options["alpha"])
