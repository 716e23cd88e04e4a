"""LISA.  AdamW on the embeddings, the head and `active` blocks drawn at random, others every `every` steps
Pan et al. 2024, arXiv 2403.17919
Memory   a frozen block has no gradient and no moments: those are dropped when it is frozen, and start from 0 when it is
         drawn again.
Differs  blocks are drawn with equal chances (the paper's own choice). What lies outside blocks always trains. With
         several processes frozen blocks still get gradients, which are not used: DDP has fixed its buckets.
"""

from __future__ import annotations

import torch

from core.data.seeding import derive
from core.errors import ConfigError, Problem
from core.training.rules import Rule, levels


class LISA(Rule):
    """active: blocks that train at a time;  every: steps until others are drawn"""

    def __init__(self, active: int = 2, every: int = 20):
        given = {"active": active, "every": every}
        if problems := [Problem(f"optim.rule.{name}", str(n), "1 or more") for name, n in given.items() if n < 1]:
            raise ConfigError(problems=problems)
        self.active, self.every = active, every

    def settings(self, tensors, model):
        depth, blocks = levels(tensors, model, "LISA")
        if self.active > blocks:
            raise ConfigError("optim.rule.active", str(self.active), f"1 to {blocks}, the number of blocks")
        return {key: {"block": int(level)} for key, level in depth.items() if level in range(1, blocks + 1)}

    def optimizer(self, groups, seed, **options):
        return SampledAdamW(groups, seed, self.active, self.every, **options)


class SampledAdamW(torch.optim.AdamW):
    """Which blocks train is a function of the seed and of the steps done, which lie in the first group."""

    def __init__(self, groups, seed: int, active: int, every: int, **options):
        super().__init__(groups, **options)
        self.seed, self.active, self.every = seed, active, every
        self.param_groups[0]["done"] = 0
        self.blocks = sorted({group["block"] for group in self.param_groups if "block" in group})
        self.freeze()

    def training(self) -> set[int]:
        """The blocks that train now."""
        draw = torch.Generator().manual_seed(derive(self.seed, "lisa", self.param_groups[0]["done"] // self.every))
        order = torch.randperm(len(self.blocks), generator=draw).tolist()
        return {self.blocks[i] for i in order[: self.active]}

    def freeze(self) -> None:
        """Blocks that do not train lose gradients and moments."""
        on, alone = self.training(), not (torch.distributed.is_available() and torch.distributed.is_initialized())
        for group in self.param_groups:
            resting = "block" in group and group["block"] not in on
            for p in group["params"]:
                if alone:
                    p.requires_grad_(not resting)
                if resting:
                    p.grad = None
                    self.state.pop(p, None)

    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.freeze()  # the gradients that DDP has made for them
        super().step()
        self.param_groups[0]["done"] += 1
        if self.param_groups[0]["done"] % self.every == 0:
            self.freeze()
        return loss

    def load_state_dict(self, state_dict) -> None:
        super().load_state_dict(state_dict)
        self.freeze()
