"""GaLore.  W <- W - lr (a P adam(P^T G) + decay W),  P (out, r) = the top left singular vectors of the gradient G
Zhao et al. 2024, arXiv 2403.03507
Memory   Adam's moments are (r, in) instead of (out, in); P is taken anew every `every` steps, moments stay.
Differs  the shorter side is projected (P on the right where out > in), as in the paper. A matrix whose shorter side is
         at most r, lookup tables, vectors and the head go by AdamW itself, without the scale a.
"""

from __future__ import annotations

import torch
from torch import nn

from core.adapters.model import network
from core.errors import ConfigError, Problem
from core.training.rules import OwnState, Rule, adam


class GaLore(Rule):
    """rank r of the projection;  every: steps until it is taken anew;  scale a on projected matrices"""

    def __init__(self, rank: int = 8, every: int = 200, scale: float = 0.25):
        problems = [
            Problem(f"optim.rule.{name}", str(value), least)
            for name, value, sound, least in (
                ("rank", rank, rank >= 1, "1 or more"),
                ("every", every, every >= 1, "1 or more"),
                ("scale", scale, scale > 0, "a positive number"),
            )
            if not sound
        ]
        if problems:
            raise ConfigError(problems=problems)
        self.rank, self.every, self.scale = rank, every, float(scale)

    def settings(self, tensors, model):
        tables = {id(m.weight) for m in network(model).modules() if isinstance(m, nn.Embedding)} if model else set()
        large = [
            key
            for key, p in tensors.items()
            if not key.startswith("head|")
            and id(p) not in tables
            and p.ndim > 1
            and min(p.flatten(1).shape) > self.rank
        ]
        if not large:
            got = f"{self.rank}, but no trained matrix is larger"
            raise ConfigError("optim.rule.rank", got, "less than the shorter side of a matrix", "a smaller rank")
        return {key: {"galore": (self.rank, self.every, self.scale)} for key in large}

    def optimizer(self, groups, seed, **options):
        return ProjectedAdamW(groups, **options)


class ProjectedAdamW(OwnState):
    def marked(self, group):
        return "galore" in group

    def move(self, p, gradient, state, group):
        rank, every, scale = group["galore"]
        G = gradient.flatten(1).float()
        wide = G.shape[0] <= G.shape[1]
        G = G if wide else G.T  # (short, long)
        if state.get("step", 0) % every == 0:
            state["P"] = torch.linalg.svd(G, full_matrices=False)[0][:, :rank].contiguous()
        change = state["P"] @ adam(state["P"].T @ G, state, group)
        change = (change if wide else change.T).reshape(p.shape).to(p.dtype)
        p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(change, alpha=group["lr"] * scale)
