"""DoRA.  W' = diag(m / ||V||) V,  V = W + s B A,  ||V|| the norm of each row        s = alpha / r
Liu et al. 2024, arXiv 2402.09353; the gradient takes the norm for a constant, as in the paper
Parameters  r (in + out) + out per site.   Start  B = 0 and m = ||W||, so W' = W.
Differs     a row is one output unit: of a convolution all (in, kernel) taps of a channel. V is never formed: its norms
            come from ||W||^2 + 2 s <W, BA> + s^2 ||BA||^2, row by row. The bias is not scaled.
Hosts       all. Dropout needs a host that is bound at its input: no lookups, no bare tensors.
Shapes      W (out, in)   A (r, in)   B (out, r)   m (out)   x (..., in)   y (..., out)
"""

from __future__ import annotations

import torch
from torch import nn

from core.adapters.base import Factors, kaiming
from core.adapters.dropout import dropped_down, quantised
from core.adapters.low_rank import RankedMethod, room
from core.adapters.peft_form import lora_form


class DoRA(RankedMethod):
    targets = ("attn.q", "attn.v")
    peft = lora_form(magnitude=True)

    def __init__(self, W, *, rank: int = 8, alpha: float = 16.0, dropout: float = 0.0):
        super().__init__()
        rows = room(W, rank)
        self.A = nn.Parameter(kaiming(rows, W.shape[1]).to(W))
        self.B = nn.Parameter(W.new_zeros(W.shape[0], rows))
        self.scale = alpha / rank
        self.dropout = quantised(dropout)
        self.m = nn.Parameter(self.norm(W))

    @torch.no_grad()
    def norm(self, W):
        """||V||, (out), without an (out, in) temporary."""
        A, B = self.A, self.scale * self.B
        square = torch.linalg.vector_norm(W, dim=1).square()
        square = square + 2 * ((W @ A.T) * B).sum(1) + ((B @ (A @ A.T)) * B).sum(1)
        return square.clamp_min(torch.finfo(W.dtype).tiny).sqrt()  # a row of zeros stays one

    def gain(self, W):
        return self.m / self.norm(W)

    def weight(self, W):
        c = self.gain(W)[:, None]
        return (c * W).addmm_(c * self.B, self.A, alpha=self.scale)

    def factors(self):
        return Factors(self.A, self.B, self.scale, self.dropout if self.needs_output() else 0.0)

    def output(self, x, y, op, W, b):
        h = dropped_down(x, self.A, op, self.dropout) if self.needs_output() else op.down(x, self.A)
        z = op.scale((y if b is None else y - b) + op.up(h, self.scale * self.B), self.gain(W))
        return z if b is None else z + b

    def needs_output(self):
        return self.training and self.dropout > 0
