"""LoRA-GA.  W' = W + s (B A - B0 A0),  A0, B0 from the gradient G = dL/dW at the start        s = alpha / sqrt(r)
Wang et al. 2024, arXiv 2407.05000
Parameters  r (in + out) per site; A0 and B0 are kept beside them, frozen.
Start       W' = W to the bit. With G = U S V^T:  B0 = c U[:, :r],  A0 = c V[:, r:2r]^T,  c = out^(1/4) / sqrt(gamma):
            the first step then moves W along the best approximation of G that has rank 2r.
Differs     calibration makes it LoRA-GA: the start of every run, or `calibrate(...)` after `attach`, which alone starts
            like LoRA (A0 = A, B0 = B = 0). The paper changes W by -s B0 A0; here W stays, the offset is part of W'.
            A matrix with fewer than 2r singular values takes A0 from the last r of them.
Hosts       all.
Shapes      W, G (out, in)   A, A0 (r, in)   B, B0 (out, r)
"""

from __future__ import annotations

import torch

from core.adapters.base import kaiming
from core.adapters.low_rank import OffsetMethod, room


class LoRAGA(OffsetMethod):
    needs = "gradients"

    def __init__(self, W, *, rank: int = 8, alpha: float = 16.0, gamma: float = 16.0):
        super().__init__()
        rows = room(W, rank)
        self.c = W.shape[0] ** 0.25 / gamma**0.5
        self.begin(kaiming(rows, W.shape[1]).to(W), W.new_zeros(W.shape[0], rows), alpha / rank**0.5)

    @classmethod
    def calibrate(cls, methods, seen):
        for i, method in enumerate(methods):
            G, seen[i] = seen[i].to(method.A), None
            U, _, Vt = torch.linalg.svd(G, full_matrices=False)
            r = len(method.A)
            last = min(2 * r, len(Vt))
            method.A0.copy_(method.c * Vt[last - r : last])
            method.B0.copy_(method.c * U[:, :r])
            method.A.copy_(method.A0)
            method.B.copy_(method.B0)

    @classmethod
    def refuses(cls, host, shape, options):
        if not options["gamma"] > 0:
            return f"gamma {options['gamma']}: a positive number"
        return super().refuses(host, shape, options)
