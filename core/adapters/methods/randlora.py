"""RandLoRA.  W' = W + s sum_j B_j diag(l_j) A diag(g_j),  j = 1..n,  n = ceil(min(in, out) / r)        s = alpha / r
Albert et al. 2025, arXiv 2502.00987; for in > out the sum is transposed, so that g_j has the shorter side
Parameters  n (r + min(in, out)) per site: a smaller r trains more.   Start  l = 0, so W' = W to the bit.
Differs     A and the B_j are uniform, frozen, of variance 1, shared by sites of one shape, and not saved: the seed
            makes them again, in bfloat16 as HF peft does. HF pairs the columns of its B with other rows of A; here they
            are put in that order when drawn: the formula stays the paper's, and equal seeds give equal adapters.
            `projection_shape` is the (out, in) of one projection for all shapes, each site taking its part.
Order       in >= 2 out: low rank with B^T as its frozen A, which keeps n r numbers a token of x's `in`.
Hosts       all but embeddings, where the B_j would be as large as the table.
Shapes      W (out, in)   A (r, short)   B (long, n, r)   l (n, r)   g (n, short)
"""

from __future__ import annotations

import torch
from torch import nn

from core.adapters.base import Factors, WeightMethod
from core.adapters.low_rank import refuses_rank
from core.adapters.peft_form import LINEAR, PeftForm
from core.adapters.projection import Seeded, cut, generator, largest, refuses_shape, unlike


class RandLoRA(WeightMethod, Seeded):
    size = ""  # a larger rank trains less

    def __init__(
        self,
        W,
        *,
        rank: int = 32,
        alpha: float = 640.0,
        projection_seed: int = 0,
        projection_shape: list[int] | None = None,
    ):
        super().__init__()
        short, long = sorted(W.shape)
        self.draw(bases, long, short, rank, projection_seed, projection_shape and tuple(projection_shape), like=W)
        self.l = nn.Parameter(W.new_zeros(self.B.shape[1], rank))
        self.g = nn.Parameter(W.new_full((self.B.shape[1], short), 1 / max(self.B.shape[1], short)))
        self.scale, self.wide = alpha / rank, W.shape[0] < W.shape[1]
        self.order = "low rank" if self.wide and 2 * self.l.numel() <= long else "weight"

    def scaled(self):
        return (self.l[:, :, None] * self.A * self.g[:, None]).flatten(0, 1)  # (n r, short)

    def weight(self, W):
        change = self.scale * self.B.flatten(1) @ self.scaled()
        return W + (change.T if self.wide else change)

    @property
    def factors(self):
        return self.transposed if self.order == "low rank" else None

    def transposed(self):
        return Factors(self.B.flatten(1).T, self.scaled().T, self.scale)

    @classmethod
    def refuses(cls, host, shape, options):
        if host == "Embedding":
            return f"its random bases would be as large as the table, {shape[1]} x {shape[0]}: use lora"
        return refuses_rank(options["rank"]) or refuses_shape(shape, options["projection_shape"])


def bases(long: int, short: int, rank: int, seed: int, shape: tuple[int, int] | None):
    """A (rank, short) and B (long, n, rank), cut from those for `shape` where it is given."""
    full_short, full_long = sorted(shape or (long, short))
    source = generator(seed)

    def uniform(*shape):
        return nn.init.kaiming_uniform_(torch.empty(shape, dtype=torch.bfloat16), a=5**0.5, generator=source)

    A = uniform(rank, 1, full_short)[:, 0]
    B = torch.cat([uniform(full_long, 1, rank) for _ in range(-(-full_short // rank))], 1)
    A, n = A / A.std(), -(-short // rank)
    B = (B / B.std())[:long, :n].reshape(long, rank, n)  # column k n + j of the drawn ones is column k of B_j
    return {"A": A[:, :short].contiguous(), "B": B.transpose(1, 2).contiguous()}


RandLoRA.peft = PeftForm(
    "RANDLORA",
    {"randlora_lambda": "l.T", "randlora_gamma": "g"},
    keys={"r": "rank", "randlora_alpha": "alpha", "projection_prng_key": "projection_seed"},
    fixed={"sparse": False, "very_sparse": False},
    writes={"save_projection": False},  # theirs draws the same matrices from the same seed
    hosts=LINEAR,
    shared=("randlora_A", "randlora_B"),
    config=largest,
    read=lambda *folder: cut(RandLoRA.peft, *folder),
    agrees=lambda method, shared: unlike(method.A, shared.get("randlora_A")),
)
