"""IA3.  W' = diag(l) W  (side out: keys and values),  W' = W diag(l)  (side in: the feed-forward's inner activations)
Liu et al. 2022, arXiv 2205.05638
Parameters  out, or in, per site.   Start  l = 1, so W' = W to the bit.
Differs     the bias is not scaled (the paper's model has none). Convolutions, side in: a number per channel and tap.
Hosts       all.
Shapes      W (out, in)   l (out) or (in)   x (..., in)   y (..., out)
"""

from __future__ import annotations

from typing import Literal

from torch import nn

from core.adapters.base import WeightMethod
from core.adapters.peft_form import PeftForm, matching


class IA3(WeightMethod):
    targets = ("attn.k", "attn.v", "mlp.out")

    def __init__(self, W, *, side: Literal["by_role", "out", "in"] = "by_role"):
        super().__init__()
        self.side = "out" if side == "by_role" else side
        self.l = nn.Parameter(W.new_ones(W.shape[0 if self.side == "out" else 1]))

    def weight(self, W):
        return W * (self.l[:, None] if self.side == "out" else self.l)

    @property
    def gain(self):
        return self.scaling if self.side == "out" else None

    def scaling(self, W):
        return self.l

    def into(self, x):
        return x * self.l if self.side == "in" else None

    def output(self, x, y, op, W, b):
        if self.side == "in":
            z = op.apply(x, self.weight(W))
        else:
            z = op.scale(y if b is None else y - b, self.l)
        return z if b is None else z + b

    @classmethod
    def options_for(cls, role, options):
        by_role = options.get("side", "by_role") == "by_role"
        return {**options, "side": "in" if role == "mlp.out" else "out"} if by_role else options

    @property
    def order(self):
        return "output" if self.side == "out" else "weight"


# In Hugging Face peft: the side is that of `feedforward_modules`.


def _write(place, options):
    if place.methods[0].side == "in":
        return {"ia3_l": place.methods[0].l.view(1, -1)}
    scales = place.W.new_ones(len(place.W))
    for part, method in enumerate(place.methods):
        scales[place.index(part).to(scales.device)] = method.l
    return {"ia3_l": scales.view(-1, 1)}


def _refuses(place, options):
    sides = {method.side for method in place.methods}
    if "in" in sides and place.rows[0] is not None:
        return "inputs scaled for part of a fused weight: theirs has one scale for all of it"
    return _unfit(place.host, {"ia3_l": place.W.new_ones(2, 1)}) if "out" in sides else ""


def _unfit(host, tensors):
    scales_output = tensors["ia3_l"].shape[0] != 1
    return "a bias, which theirs scales too" if scales_output and host.bias is not None else ""


def _role(config, path, role):
    if matching(config.get("feedforward_modules"), path):
        return "mlp.out"
    return "peft" if role == "mlp.out" else role


def _config(places, options):
    return {"feedforward_modules": [place.path for place in places if place.methods[0].side == "in"]}


IA3.peft = PeftForm(
    "IA3", {"ia3_l": "l"}, fused=True, write=_write, refuses=_refuses, unfit=_unfit, role=_role, config=_config
)
