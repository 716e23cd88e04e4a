"""Last k blocks.  W' = any value, for every parameter of the last k blocks and of the norms that follow them
Parameters  those of the blocks, of the roles in `targets` where given.   Start  W' = W to the bit.
Differs     nothing. Backward stops at the first trained block, so the saved activations are k / blocks of full's.
Hosts       backbones with the role `block`.
Shapes      W as the network keeps it
"""

from __future__ import annotations

from core.adapters.base import Chosen, Selection
from core.adapters.selection import inside, is_norm, parameters, roots_of
from core.adapters.sites import resolve
from core.errors import ConfigError


class LastK(Selection):
    size = "k"

    @classmethod
    def select(cls, net, roles, targets=(), *, k: int = 1, final_norm: bool = True):
        paths = [path for path, _ in net.named_modules()]
        blocks = sorted({site.path for site in resolve(net, roles, ["block"])}, key=paths.index)
        if not 1 <= k <= len(blocks):
            raise ConfigError("adapter.k", k, f"1 to {len(blocks)}, the number of blocks")
        end = max(paths.index(p) for p in paths if inside(p, blocks[-1:]))
        norms = [p for p in paths[end + 1 :] if final_norm and is_norm(net.get_submodule(p))]
        chosen, roots = {*blocks[-k:], *norms}, roots_of(net, roles, targets)
        found = [(path, name) for path, _, name, _ in parameters(net) if inside(path, chosen) and inside(path, roots)]
        return [Chosen(path, name, "block") for path, name in found]
