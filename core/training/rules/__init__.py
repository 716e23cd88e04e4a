"""What an optimiser-side method does otherwise than AdamW: one file per rule, named by `optim.rule._target_`.

    settings   tensor key -> entries of its parameter group; `factor` multiplies its learning rate
    optimizer  AdamW, or a subclass that reads those entries

All state lies in the optimiser, so that a resumed run goes on with the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from core.adapters.model import network, state_of
from core.adapters.sites import resolve
from core.errors import ConfigError


class Rule:
    """Plain AdamW."""

    def settings(self, tensors: dict[str, nn.Parameter], model: nn.Module | None) -> dict[str, dict[str, Any]]:
        return {}

    def spared(self, tensors: dict[str, nn.Parameter]) -> int:
        """How many numbers of these tensors never change in a run."""
        return 0

    def optimizer(self, groups: list[dict], seed: int, **adam: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, **adam)


class OwnState(torch.optim.AdamW):
    """AdamW whose groups may be treated otherwise: `move` gets those that `marked` names, AdamW the others."""

    def marked(self, group: dict) -> bool:
        raise NotImplementedError

    def move(self, p: Tensor, gradient: Tensor, state: dict[str, Any], group: dict) -> None:
        """One step of one tensor; `state` is empty the first time."""
        raise NotImplementedError

    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        held = []
        for group in self.param_groups:
            for p in group["params"] if self.marked(group) else []:
                if p.grad is not None:
                    with torch.no_grad():
                        self.move(p, p.grad, self.state[p], group)
                    held.append((p, p.grad))
                    p.grad = None
        super().step()
        for p, gradient in held:
            p.grad = gradient
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """torch casts state to its parameter's dtype and steps to fp32 tensors; ours stays as it was saved."""
        super().load_state_dict(state_dict)
        ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        for i, p in zip(ids, [p for group in self.param_groups for p in group["params"]], strict=True):
            for name, value in state_dict["state"].get(i, {}).items():
                if not isinstance(value, Tensor):
                    self.state[p][name] = value
                elif name != "step":
                    self.state[p][name] = value.to(p.device, copy=True)


def adam(gradient: Tensor, state: dict[str, Any], group: dict) -> Tensor:
    """AdamW's direction, m / (sqrt(v) + eps) of bias-corrected moments, in fp32; they are kept in `state`."""
    gradient, (b1, b2) = gradient.float(), group["betas"]
    if "exp_avg" not in state:
        state |= {"step": 0, "exp_avg": torch.zeros_like(gradient), "exp_avg_sq": torch.zeros_like(gradient)}
    state["step"] += 1
    m = state["exp_avg"].lerp_(gradient, 1 - b1)
    v = state["exp_avg_sq"].mul_(b2).addcmul_(gradient, gradient, value=1 - b2)
    correct1, correct2 = 1 - b1 ** state["step"], 1 - b2 ** state["step"]
    return (m / correct1).div_((v / correct2).sqrt_().add_(group["eps"]))


def levels(tensors: dict[str, nn.Parameter], model: nn.Module | None, what: str) -> tuple[dict[str, float], int]:
    """(tensor key -> level, number of blocks n): 0 before the first block, 1 to n in a block, n + 1 behind the last and
    in the head, half a level more than the block before between two. ConfigError where a network has no blocks."""
    roles = state_of(model).roles if model is not None else {}
    if "block" not in roles:
        allowed = "a backbone with the role `block`"
        raise ConfigError("optim.rule", f"{what}, which goes by blocks", allowed, "optim=adamw")
    net = network(model)
    blocks = [site.path for site in resolve(net, roles, ["block"])]
    found, level = {}, 0
    for path, _ in net.named_modules():  # a block's modules follow it
        inside = [i for i, block in enumerate(blocks, 1) if path == block or path.startswith(f"{block}.")]
        level = inside[-1] if inside else level
        outside = {0: 0, len(blocks): len(blocks) + 1}.get(level, level + 0.5)
        found[path] = level if inside else outside
    ends = {"head": len(blocks) + 1, "tokens": 0}
    owners = {key: key.split("|", 1)[0] for key in tensors}
    return {key: ends.get(owner, found.get(owner.partition(":")[0], 0)) for key, owner in owners.items()}, len(blocks)
