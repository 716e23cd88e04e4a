"""FourierFT.  W' = W + alpha Re(F^-1(S))        S (out, in): n trained numbers at random places; F^-1 orthonormal
Gao et al. 2024, arXiv 2405.03003
Parameters  n per site.   Start  S = 0, so W' = W to the bit; the paper starts at N(0, 1), which is not the identity.
Differs     the transform is orthonormal, so the change's length does not depend on the layer's size: alpha here is
            alpha / sqrt(out in) of the paper (its 150 on 768 x 768 is 0.2). S is real, so the change is a sum of
            cosines: half a transform makes it, and the same one its gradient. A matrix smaller than n trains all its
            places. They are not saved: the seed makes them again, the same for all layers of one shape.
Hosts       all.
Shapes      W (out, in)   s (n)   places (n): row * in + column
"""

from __future__ import annotations

import math

import torch
from torch import nn

from core.adapters.base import WeightMethod
from core.adapters.peft_form import LINEAR, PeftForm
from core.adapters.projection import Seeded, generator


class FourierFT(WeightMethod, Seeded):
    size = "frequencies"

    def __init__(self, W, *, frequencies: int = 1000, alpha: float = 1.0, projection_seed: int = 0):
        super().__init__()
        count = min(frequencies, W.numel())
        self.draw(scattered, W.numel(), count, projection_seed, like=W)
        self.s = nn.Parameter(W.new_zeros(count))
        self.alpha = alpha

    def weight(self, W):
        S = self.s.new_zeros(W.numel()).scatter(0, self.places, self.s).view(W.shape)
        return W.add(_Cosines.apply(S), alpha=self.alpha)

    @classmethod
    def refuses(cls, host, shape, options):
        return "" if options["frequencies"] >= 1 else f"frequencies {options['frequencies']}: 1 or more"

    @classmethod
    def refuses_all(cls, shapes, options):
        most = max(out * columns for out, columns in shapes)
        given = options["frequencies"]
        return "" if given <= most else f"frequencies {given} is more than every layer has places: 1 to {most}"


def scattered(numel: int, count: int, seed: int):
    """`count` of `numel` places."""
    return {"places": torch.randperm(numel, generator=generator(seed))[:count]}


class _Cosines(torch.autograd.Function):
    """Re(F^-1(S))[p, q] = sum_uv S[u, v] cos(2 pi (u p / out + v q / in)) / sqrt(out in): its own adjoint."""

    @staticmethod
    def forward(ctx, S):
        columns = S.shape[1]
        half = torch.fft.rfft2(S, norm="ortho").real  # columns 0 to in / 2; the others mirror them at the origin
        mirrored = half[:, 1 : (columns + 1) // 2].flip(0, 1).roll(1, 0)
        return torch.cat([half, mirrored], 1)

    @staticmethod
    def backward(ctx, g):
        return _Cosines.apply(g)


# In Hugging Face peft: the transform divides by out in, and `scaling` (150) makes up for it.


def _write(place, options):
    return {"fourierft_spectrum": place.methods[0].s * (options["alpha"] * place.W.numel() ** 0.5 / SCALING)}


def _read(config, tensors, shapes):
    scaling = config.get("scaling", SCALING)
    s = {path: {"s": t["fourierft_spectrum"] * scaling / math.prod(shapes[path]) ** 0.5} for path, t in tensors.items()}
    return {**FourierFT.peft.options(config), "alpha": 1.0}, s


SCALING = 150.0
FourierFT.peft = PeftForm(
    "FOURIERFT",
    names=("fourierft_spectrum",),
    keys={"n_frequency": "frequencies", "random_loc_seed": "projection_seed"},
    fixed={"n_frequency_pattern": {}},
    writes={"scaling": SCALING},
    hosts=LINEAR,
    refuses=lambda place, options: (
        "" if options["frequencies"] <= place.W.numel() else "more frequencies than places: theirs refuses that"
    ),
    write=_write,
    read=_read,
)
