"""Weights of attached adapters by search alone: W' = W + sum_k w_k D_k, no gradient, no change of the base.

    weights, score = search_weights(model, ["a", "b"], score=lambda model: accuracy(model))

After LoraHub (Huang et al. 2023, arXiv 2307.13269), whose sum is of factors instead (`how="hub"` of core.adapters.
arithmetic) and whose search is a library's; ours is a (1 + 1) evolution strategy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from core.adapters.model import record, use
from core.errors import ConfigError


def search_weights(
    model: nn.Module,
    names: Sequence[str],
    score: Callable[[nn.Module], float],
    *,
    steps: int = 40,
    bound: float = 1.5,
    penalty: float = 0.05,
    seed: int = 0,
) -> tuple[dict[str, float], float]:
    """(weight per attached adapter, its score): the best of `steps` tries, by score(model) - penalty mean |w|.

    No gradient is asked for: one weight vector, moved at random, kept where it is better, in steps that grow after a
    success and shrink after a failure (the 1/5 rule). From 0, which is the base, within +-bound, as LoraHub's."""
    for name in names:
        record(model, name)
    if not names or steps < 1:
        raise ConfigError("search_weights", f"{len(names)} adapters, {steps} steps", "one or more of both")
    generator = torch.Generator().manual_seed(seed)

    def value(w: Tensor) -> tuple[float, float]:
        with use(model, dict(zip(names, w.tolist(), strict=True))):
            found = float(score(model))
        return found - penalty * float(w.abs().mean()), found

    w, reach = torch.zeros(len(names), dtype=torch.float64), 0.5
    best = value(w)
    for _ in range(steps - 1):
        tried = (w + reach * torch.randn(len(names), generator=generator, dtype=torch.float64)).clamp(-bound, bound)
        now = value(tried)
        if now[0] > best[0]:
            w, best, reach = tried, now, min(reach * 1.5, bound)
        else:
            reach = max(reach * 1.5**-0.25, 1e-3)
    return dict(zip(names, w.tolist(), strict=True)), best[1]
