"""OFT.  W' = W R^T,  R = blockdiag(R_1 ... R_n),  R_k = (I + Q_k)^-1 (I - Q_k),  Q_k skew: the input's blocks turn, x R
Qiu et al. 2023, arXiv 2306.07280; on the input: OFT v2, Qiu et al. 2025, arXiv 2506.19847
Parameters  in (block - 1) / 2 per site.   Start  Q = 0, so R = I and W' = W.
Differs     Cayley's inverse is exact; `cayley: neumann` is the series of v2. HF peft's series turns the other way, so
            its Q is -Q here. `side: out` turns the output, W' = R^T W: y R. No block for all blocks, no dropout.
Hosts       all whose matrix divides into blocks: in (a convolution's channels times taps), or out for `side: out`.
            Embeddings with `side: out` alone: their in counts the rows of the table.
Shapes      W (out, in)   Q (n, block (block - 1) / 2): upper triangles   R (n, block, block)   x (..., in)
"""

from __future__ import annotations

from typing import Literal

from torch import nn

from core.adapters.base import WeightMethod
from core.adapters.call import without_autocast
from core.adapters.peft_form import PeftForm, same
from core.adapters.rotation import cayley, divisors, in_blocks


class OFT(WeightMethod):
    size = "block"

    def __init__(
        self,
        W,
        *,
        block: int = 32,
        side: Literal["in", "out"] = "in",
        cayley: Literal["exact", "neumann"] = "exact",
    ):
        super().__init__()
        self.block, self.side, self.cayley = block, side, cayley
        width = W.shape[1 if side == "in" else 0]
        self.Q = nn.Parameter(W.new_zeros(width // block, block * (block - 1) // 2))

    def rotation(self):
        """(n, block, block)"""
        with without_autocast(self.Q):
            return cayley(self.Q, self.block, self.cayley)

    def weight(self, W):
        R = self.rotation()
        return in_blocks(W, R.mT) if self.side == "in" else in_blocks(W.mT, R).mT

    def turn(self):
        return self.rotation() if self.side == "in" and self.cayley == "exact" else None

    def into(self, x):
        return in_blocks(x, self.rotation()) if self.side == "in" else None

    @classmethod
    def refuses(cls, host, shape, options):
        block, side = options["block"], options["side"]
        if block < 2:
            return f"block {block}: 2 or more"
        if side == "in" and host == "Embedding":
            return "side in would mix rows of the table: side=out turns the embedding itself"
        width = shape[1 if side == "in" else 0]
        if width % block:
            return (
                f"{side} {width} does not divide into blocks of {block}: {divisors(width)}; or hra, which has no blocks"
            )
        return ""


# In Hugging Face peft: its series turns the other way, so its Q is -Q there.


def _sign(how: str) -> int:
    return -1 if how == "neumann" else 1


def _read(config, tensors, shapes):
    how = "neumann" if config.get("use_cayley_neumann") else "exact"
    block = same("oft_block_size", [shapes[path][1] // len(own["oft_R.weight"]) for path, own in tensors.items()])
    return {"block": block, "cayley": how}, {p: {"Q": _sign(how) * t["oft_R.weight"]} for p, t in tensors.items()}


OFT.peft = PeftForm(
    "OFT",
    {"oft_R.weight": "Q"},
    keys={"oft_block_size": "block"},
    fixed={"coft": False, "block_share": False, "num_cayley_neumann_terms": 5},
    writes={"r": 0},
    hosts=("Linear",),  # their unfolded patches of a convolution are another definition, and no identity at the start
    refuses=lambda place, options: "" if options["side"] == "in" else "side out: theirs turns the input",
    write=lambda place, options: {"oft_R.weight": _sign(options["cayley"]) * place.methods[0].Q},
    config=lambda places, options: {"use_cayley_neumann": options["cayley"] == "neumann"},
    read=_read,
)
