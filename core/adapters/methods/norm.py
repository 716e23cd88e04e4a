"""Norm tuning.  g' = any value, b' = any value, for the gain g and the shift b of every normalisation layer
Qi et al. 2022, arXiv 2211.08682; of the attention's norms only: Zhao et al. 2023, arXiv 2312.11420
Parameters  2 channels per norm, channels for RMSNorm.   Start  g' = g, b' = b to the bit.
Differs     running statistics never move.
Hosts       torch's norm classes, classes named ...Norm whose parameters are vectors, the role `norm` where declared.
Shapes      g, b (channels)
"""

from __future__ import annotations

from core.adapters.base import Selection
from core.adapters.peft_form import PeftForm
from core.adapters.selection import choose, is_norm
from core.adapters.sites import resolve


class Norm(Selection):
    vectors = True
    peft = PeftForm("LN_TUNING", names=("ln_tuning_layers",), whole=True)

    @classmethod
    def select(cls, net, roles, targets=()):
        declared = resolve(net, roles, ["norm"]) if "norm" in roles else []
        norms = {net.get_submodule(site.path) for site in declared} | {m for m in net.modules() if is_norm(m)}
        return choose(net, roles, targets, "norm", lambda module, name, p: module in norms, instead="adapter=bitfit")
