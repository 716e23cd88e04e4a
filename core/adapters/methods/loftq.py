"""LoftQ.  W' = Q + s B A,  Q in 4 bits and s B A fitted to W together        s = alpha / r
Li et al. 2023, arXiv 2310.08659, algorithm 1
Parameters  r (in + out) per site.
Start       the base is Q, and s B A = B0 A0 of rank r, from  min |W - Q - B0 A0|  by T alternations: Q is NF4 of
            W - B0 A0, then B0 A0 the leading r directions of W - Q. Alone among the methods it starts away from its
            base, nearer to the full weights; switched off, it is the base.
Differs     `quantise(model, rank=r, steps=T)` makes Q and keeps B0, A0 (core/adapters/quantised.py), so the base stays
            what it is under any number of adapters; T = 5 as in the paper. B0 A0 is divided by s: the start is the same
            at every alpha. Directions by power iterations, factors rounded to bf16, scales in fp32.
            Layers that stay at full precision (convolutions, embeddings) lose nothing, and start as LoRA's do.
Hosts       all, beside 4-bit Linear layers.
Shapes      W, Q (out, in)   A, A0 (r, in)   B, B0 (out, r)
"""

from __future__ import annotations

from dataclasses import replace

import torch

from core.adapters.low_rank import refuses_sign
from core.adapters.methods.lora import LoRA
from core.adapters.peft_form import lora_form
from core.adapters.seam import coded
from core.errors import ConfigError

FIX = "quantise(model, rank=..., targets=...) as the adapter has them, before attach; adapter=loftq does it"


class LoftQ(LoRA):
    needs_codes = f"it starts from what 4-bit layers have lost, beside such layers as LoRA: {FIX}"
    size = ""  # the base is made for one rank
    peft = replace(
        lora_form(),
        is_for=lambda config: False,  # a folder does not tell which base it was fitted with
        refuses=lambda place, options: (
            "theirs has no base with these 4 bits: dequantise(model), save the network, then export"
            if coded(place.host)
            else ""
        ),
    )

    def __init__(self, W, *, rank: int = 8, alpha: float = 16.0, dropout: float = 0.0):
        super().__init__(W, rank=rank, alpha=alpha, dropout=dropout)

    @torch.no_grad()
    def start(self, host, rows):
        if not coded(host):
            return
        if rows not in host.starts:
            raise ConfigError("adapter.targets", "4-bit weights that keep no start here", "roles that do", FIX)
        A, B = host.starts[rows]
        if len(A) != len(self.A):
            raise ConfigError("adapter.rank", len(self.A), f"{len(A)}, the rank of the base's starts", FIX)
        self.A.copy_(A.to(self.A) / self.scale**0.5)
        self.B.copy_(B.to(self.B) / self.scale**0.5)

    @classmethod
    def refuses(cls, host, shape, options):
        return super().refuses(host, shape, options) or refuses_sign("alpha", options["alpha"])
