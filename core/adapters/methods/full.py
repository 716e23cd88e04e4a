"""Full fine-tuning.  W' = any value, trained in place; the upper anchor of every comparison.
Parameters  all of the network's.   Start  the network itself.
Differs     the only method that changes the base: it cannot be detached, switched or mixed.
Hosts       every parameter, each once where tied.
Shapes      W as the network keeps it
"""

from __future__ import annotations

from core.adapters.base import Chosen, Selection
from core.adapters.selection import inside, parameters, roots_of


class Full(Selection):
    in_place = True

    @classmethod
    def select(cls, net, roles, targets=()):
        roots = roots_of(net, roles, targets)
        return [Chosen(path, name, "all") for path, _, name, _ in parameters(net) if inside(path, roots)]
