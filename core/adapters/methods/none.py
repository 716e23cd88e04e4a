"""Probe.  W' = W: only the head trains, on frozen features; the lower anchor of every comparison.
Parameters  none.   Start  the network itself.
Differs     nothing.
Hosts       none.
Shapes      -
"""

from __future__ import annotations

from core.adapters.base import Selection


class Probe(Selection):
    empty = True

    @classmethod
    def select(cls, net, roles):
        return []
