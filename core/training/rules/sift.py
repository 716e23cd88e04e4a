"""SIFT.  AdamW on the entries whose first gradient is largest: a share `density` of every tensor; the others stay
Song et al. 2023, arXiv 2312.11875
Memory   moments and an index (int64) for the chosen entries alone.
Differs  the choice is that of the first optimiser step, over all of its items; the paper's code chooses by tensors that
         are named by hand, ours takes every tensor, norms and biases too. The head trains whole.
"""

from __future__ import annotations

from core.errors import ConfigError
from core.training.rules import OwnState, Rule, adam


class SIFT(Rule):
    """density: share of the entries that train, at least one of each tensor"""

    def __init__(self, density: float = 0.01):
        if not 0 < density <= 1:
            raise ConfigError("optim.rule.density", str(density), "0 < density <= 1, a share of the entries")
        self.density = float(density)

    def settings(self, tensors, model):
        return {key: {"density": self.density} for key in tensors if not key.startswith("head|")}

    def spared(self, tensors):
        own = (p.numel() for key, p in tensors.items() if not key.startswith("head|"))
        return sum(size - chosen(size, self.density) for size in own)

    def optimizer(self, groups, seed, **options):
        return SparseAdamW(groups, **options)


def chosen(size: int, density: float) -> int:
    return max(1, round(density * size))


class SparseAdamW(OwnState):
    def marked(self, group):
        return "density" in group

    def move(self, p, gradient, state, group):
        if "index" not in state:
            count = chosen(p.numel(), group["density"])
            state["index"] = gradient.abs().flatten().topk(count).indices.sort().values
        index = state["index"]
        values = p.take(index)
        step = adam(gradient.take(index), state, group).to(p.dtype)
        p.put_(index, values.mul_(1 - group["lr"] * group["weight_decay"]).sub_(step, alpha=group["lr"]))
