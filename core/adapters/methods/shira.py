"""SHiRA.  W' = W + V, V zero but at n fixed places        a sparse change of high rank
Bhardwaj et al. 2024, arXiv 2406.13175
Parameters  n = r (in + out) per site, as many as LoRA has.   Start  v = 0, so W' = W to the bit.
Differs     masks: `random` places of a seed, `magnitude` the n largest of |W|, `struct` r rows and r columns, evenly
            spaced, and the diagonal (about as many numbers). The paper's masks by gradient and by SNIP are not there.
            Places of a seed are not saved; those of `magnitude` are. A matrix with fewer than n entries trains all.
Hosts       all.
Shapes      W (out, in)   v (n)   places (n): row * in + column, ascending
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from core.adapters.low_rank import RankedMethod
from core.adapters.peft_form import PeftForm
from core.adapters.projection import Seeded, generator


class SHiRA(RankedMethod, Seeded):
    def __init__(
        self,
        W,
        *,
        rank: int = 8,
        mask: Literal["random", "magnitude", "struct"] = "random",
        projection_seed: int = 0,
    ):
        super().__init__()
        count = min(rank * sum(W.shape), W.numel())
        if mask == "random":
            self.draw(scattered, W.numel(), count, projection_seed, like=W)
        elif mask == "struct":
            self.draw(lines, *W.shape, rank, like=W)
        else:
            largest = W.detach().abs().flatten().topk(count).indices
            self.register_buffer("places", largest.sort().values)
        self.v = nn.Parameter(W.new_zeros(len(self.places)))

    def weight(self, W):
        return W.flatten().index_add(0, self.places, self.v).view(W.shape)

    def sparse(self):
        return self.places, self.v


def scattered(numel: int, count: int, seed: int):
    """`count` of `numel` places."""
    return {"places": torch.randperm(numel, generator=generator(seed))[:count].sort().values}


def lines(out: int, columns: int, rank: int):
    """`rank` rows and columns, and the diagonal."""
    mask = torch.zeros(out, columns, dtype=torch.bool)
    mask.fill_diagonal_(True)
    mask[torch.linspace(0, out - 1, min(rank, out)).round().long()] = True
    mask[:, torch.linspace(0, columns - 1, min(rank, columns)).round().long()] = True
    return {"places": mask.flatten().nonzero()[:, 0]}


# In Hugging Face peft: places are saved. Read, they are kept as those of `magnitude` are.


def _write(place, options):
    method = place.methods[0]
    where = torch.stack([method.places // place.W.shape[1], method.places % place.W.shape[1]])
    return {"shira_weight": method.v, "shira_indices": where.int()}


def _read(config, tensors, shapes):
    fill = {}
    for path, own in tensors.items():
        rows, columns = own["shira_indices"].long()
        places, order = (rows * shapes[path][1] + columns).sort()
        fill[path] = {"v": own["shira_weight"][order], "places": places}
    return {"rank": config["r"], "mask": "magnitude"}, fill


SHiRA.peft = PeftForm(
    "SHIRA",
    names=("shira_weight", "shira_indices"),
    keys={"r": "rank"},
    hosts=("Linear",),
    refuses=lambda place, options: (
        "" if len(place.methods[0].v) == options["rank"] * sum(place.W.shape) else "theirs trains r (in + out) numbers"
    ),
    write=_write,
    read=_read,
)
