"""Layer-wise learning rates.  lr_l = lr * decay^(n + 1 - l):  l = 0 before the first of n blocks, l = n + 1 in the head
Howard & Ruder 2018, arXiv 1801.06146 (decay 1 / 2.6); as here, per block: Bao et al. 2021, arXiv 2106.08254
Differs  nothing; works with any adapter, whose tensors lie where their sites do.
"""

from __future__ import annotations

from core.errors import ConfigError
from core.training.rules import Rule, levels


class Layerwise(Rule):
    """decay: factor on the learning rate per block, from the head down"""

    def __init__(self, decay: float = 0.85):
        if not 0 < decay <= 1:
            raise ConfigError("optim.rule.decay", str(decay), "0 < decay <= 1; 1 is one rate for all")
        self.decay = float(decay)

    def settings(self, tensors, model):
        depth, blocks = levels(tensors, model, "layer-wise learning rates")
        return {key: {"factor": self.decay ** (blocks + 1 - level)} for key, level in depth.items()}
