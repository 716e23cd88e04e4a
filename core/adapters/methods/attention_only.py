"""Attention only.  W' = any value, for every parameter of the attention's projections
Touvron et al. 2022, arXiv 2203.09795
Parameters  those of the modules at the attention's roles: 4 D^2 + 4 D per block of a plain transformer of width D.
Start       W' = W to the bit.
Differs     nothing; the norms before the attention stay.
Hosts       backbones with attention roles; others are refused.
Shapes      W as the network keeps it
"""

from __future__ import annotations

from core.adapters.base import Chosen, Selection
from core.adapters.selection import inside, parameters, roots_of
from core.adapters.sites import MATRICES
from core.errors import UnsupportedError


class AttentionOnly(Selection):
    @classmethod
    def select(cls, net, roles, targets=()):
        attention = [role for role in MATRICES if role.startswith(("attn.", "xattn.")) and role in roles]
        if not attention:
            got, allowed = f"no attention in {type(net).__name__}", "a backbone with attention roles"
            raise UnsupportedError("adapter", got, allowed, "adapter=last_k, or adapter=lora for convolutions")
        chosen, roots = roots_of(net, roles, attention), roots_of(net, roles, targets)
        found = [(path, name) for path, _, name, _ in parameters(net) if inside(path, chosen) and inside(path, roots)]
        return [Chosen(path, name, "attn") for path, name in found]
