"""Norm tuning.  g' = any value, b' = any value, for the gain g and the shift b of every normalisation layer
Qi et al. 2022, arXiv 2211.08682; of the attention's norms only: Zhao et al. 2023, arXiv 2312.11420
Parameters  2 channels per norm, channels for RMSNorm.   Start  g' = g, b' = b to the bit.
Differs     running statistics never move.
Hosts       torch's norm classes, and classes named ...Norm whose parameters are vectors.
Shapes      g, b (channels)
"""

from __future__ import annotations

from core.adapters.base import Selection
from core.adapters.selection import choose, is_norm


class Norm(Selection):
    @classmethod
    def select(cls, net, roles, *, targets: list[str] | None = None):
        return choose(net, roles, targets, "norm", lambda module, name, p: is_norm(module), instead="adapter=bitfit")
