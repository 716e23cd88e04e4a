"""VeRA.  W' = W + diag(b) B diag(d) A        A, B random and frozen, from a seed
Kopiczko et al. 2023, arXiv 2310.11454
Parameters  r + out per site.   Start  b = 0 and d = d_initial, so W' = W to the bit.
Differs     sites of one shape share one pair A, B; the paper adapts sites of one shape only. `projection_shape` is the
            (out, in) of one pair for all shapes, each site taking its first columns and rows.
            A and B are not saved: the seed makes them again.
Hosts       all but embeddings, where A would be r random numbers per entry of the table.
Shapes      W (out, in)   A (r, in)   d (r)   B (out, r)   b (out)
"""

from __future__ import annotations

from torch import nn

from core.adapters.base import Factors
from core.adapters.low_rank import LowRankMethod
from core.adapters.peft_form import LINEAR, PeftForm
from core.adapters.projection import Seeded, cut, generator, he_uniform, largest, refuses_shape, unlike


class VeRA(LowRankMethod, Seeded):
    def __init__(
        self,
        W,
        *,
        rank: int = 256,
        d_initial: float = 0.1,
        projection_seed: int = 0,
        projection_shape: list[int] | None = None,
    ):
        super().__init__()
        self.draw(pair, *W.shape, rank, projection_seed, projection_shape and tuple(projection_shape), like=W)
        self.d = nn.Parameter(W.new_full((rank,), d_initial))
        self.b = nn.Parameter(W.new_zeros(W.shape[0]))

    def weight(self, W):
        return W + (self.b[:, None] * self.B * self.d) @ self.A

    def factors(self):
        return Factors(self.A, self.b[:, None] * self.B * self.d, 1.0)

    @classmethod
    def refuses(cls, host, shape, options):
        if host == "Embedding":
            return f"A would be {options['rank']} random numbers for each of {shape[1]} entries: use lora"
        return super().refuses(host, shape, options) or refuses_shape(shape, options["projection_shape"])

    @classmethod
    def refuses_all(cls, shapes, options):
        return ""  # A and B are random: a rank larger than every layer has its meaning


def pair(out: int, columns: int, rank: int, seed: int, shape: tuple[int, int] | None):
    """A (rank, in) and B (out, rank), cut from a pair for `shape` where it is given."""
    rows, width = shape or (out, columns)
    source = generator(seed)
    A, B = he_uniform((rank, width), width, source), he_uniform((rows, rank), rank, source)
    return {"A": A[:, :columns].contiguous(), "B": B[:out]}


VeRA.peft = PeftForm(
    "VERA",
    {"vera_lambda_b": "b", "vera_lambda_d": "d"},
    keys={"r": "rank", "projection_prng_key": "projection_seed", "d_initial": "d_initial"},
    writes={"save_projection": False},  # theirs draws the same matrices from the same seed
    hosts=LINEAR,
    shared=("vera_A", "vera_B"),
    config=largest,
    read=lambda *folder: cut(VeRA.peft, *folder),
    agrees=lambda method, shared: unlike(method.A, shared.get("vera_A")),
)
