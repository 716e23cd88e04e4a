"""AdamW over the adapter and its head: parameter groups by rule, and the learning rate as a function of the step.
What an optimiser-side method does otherwise is a rule of its own (`optim.rule`, core/training/rules).

Rules       no weight decay on vectors (biases, gains, scales);  `lr_ratio` multiplies the learning rate of the tensors
            named B: LoRA+ (Hayou et al. 2024, arXiv 2402.12354);  `head_lr` gives the fresh head a rate of its own
Schedules   linear warm-up, then constant, linear or cosine down to `floor` times lr at the last step
"""

from __future__ import annotations

import math
from typing import Literal

import torch

from core.errors import ConfigError, Problem, did_you_mean
from core.training.rules import Rule


class Optim:
    """What `optim:` in a config says; `lr` alone is enough.

    lr             peak learning rate
    weight_decay   decoupled, on matrices only
    schedule       shape after the warm-up
    warmup         steps if >= 1, else the fraction of all steps
    floor          share of lr that is left at the last step
    lr_ratio       factor on lr for tensors named B
    head_lr        learning rate of the head; null: lr
    betas, eps     AdamW's own
    rule           what is done otherwise than by AdamW: `{_target_: core.training.rules.galore.GaLore, rank: 8}`
    """

    def __init__(
        self,
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        schedule: Literal["constant", "linear", "cosine"] = "cosine",
        warmup: float = 0.05,
        floor: float = 0.0,
        lr_ratio: float = 1.0,
        head_lr: float | None = None,
        betas: list[float] | tuple[float, ...] = (0.9, 0.999),
        eps: float = 1e-8,
        rule: Rule | None = None,
    ):
        problems = [
            Problem(f"optim.{name}", str(value), "a positive number")
            for name, value in (("lr", lr), ("lr_ratio", lr_ratio), ("head_lr", head_lr))
            if value is not None and not 0 < value < float("inf")
        ]
        if not weight_decay >= 0:
            problems.append(Problem("optim.weight_decay", str(weight_decay), "0 or more"))
        if not warmup >= 0:
            problems.append(Problem("optim.warmup", str(warmup), "0 or more: steps, or a fraction below 1"))
        if not 0 <= floor <= 1:
            problems.append(Problem("optim.floor", str(floor), "0..1, a share of lr"))
        if schedule not in SHAPES:
            near = did_you_mean(str(schedule), SHAPES)
            problems.append(Problem("optim.schedule", str(schedule), ", ".join(SHAPES), near))
        if rule is not None and not isinstance(rule, Rule):
            problems.append(Problem("optim.rule", str(rule), "a class of core.training.rules, by its _target_"))
        if problems:
            raise ConfigError(problems=problems)
        self.rule, self.seed = rule or Rule(), 0
        self.lr, self.weight_decay, self.schedule = float(lr), float(weight_decay), schedule
        self.warmup, self.floor = warmup, float(floor)
        self.lr_ratio, self.head_lr = float(lr_ratio), float(lr if head_lr is None else head_lr)
        self.betas, self.eps = tuple(betas), float(eps)

    def build(self, tensors: dict[str, torch.nn.Parameter], steps: int, model: torch.nn.Module | None = None):
        """(AdamW or the rule's own, LambdaLR stepped once per optimiser step) for `tensors` by key, `steps` in all.

        model   the adapted model, for rules that ask where in the network a tensor lies"""
        groups = self.rules(tensors, model)
        optimizer = self.rule.optimizer(groups, self.seed, lr=self.lr, betas=self.betas, eps=self.eps)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.factor(step, steps))

    def rules(self, tensors: dict[str, torch.nn.Parameter], model: torch.nn.Module | None = None) -> list[dict]:
        """AdamW's parameter groups. A key is `...|<tensor name>`, a head's `head|<its own name>`."""
        groups: dict[tuple, list] = {}
        own = self.rule.settings(tensors, model)
        for key, tensor in tensors.items():
            owner, name = key.split("|", 1)[0], key.rsplit("|", 1)[-1]
            rate = self.head_lr if owner == "head" else self.lr * (self.lr_ratio if name == "B" else 1.0)
            more = dict(own.get(key, {}))
            rate *= more.pop("factor", 1.0)
            decay = self.weight_decay if tensor.ndim > 1 else 0.0
            groups.setdefault((rate, decay, tuple(more.items())), []).append(tensor)
        if self.lr_ratio != 1 and not any(key.rsplit("|", 1)[-1] == "B" for key in tensors):
            raise ConfigError("optim.lr_ratio", f"{self.lr_ratio}, but no tensor is named B", "a method with A and B")
        return [
            {"params": group, "lr": rate, "weight_decay": decay, **dict(more)}
            for (rate, decay, more), group in groups.items()
        ]

    def factor(self, step: int, steps: int) -> float:
        """Share of lr at `step` (0-based) of `steps`."""
        warmup = self.warmup if self.warmup >= 1 else round(self.warmup * steps)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = min(1.0, (step - warmup) / max(1, steps - warmup))
        return self.floor + (1 - self.floor) * SHAPES[self.schedule](done)


SHAPES = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
}
