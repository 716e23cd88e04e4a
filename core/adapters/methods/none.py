"""Probe.  W' = W: only the head trains, on frozen features; the lower anchor of every comparison.
Parameters  none.   Start  the network itself.
Differs     nothing.
Hosts       none.
Shapes      -
"""

from __future__ import annotations

from core.adapters.base import Selection
from core.errors import ConfigError


class Probe(Selection):
    vectors = True
    empty = True

    @classmethod
    def select(cls, net, roles, targets=()):
        if targets:
            raise ConfigError("adapter.targets", targets, "none: a probe trains its head alone", "remove `targets`")
        return []
