"""The adapter layer: any method on any layer of any model. Names below are the public interface; see docs/design.md."""

from core.adapters.merge import MergeReport, merge, unmerge
from core.adapters.model import attach, check_live, detach, head, mix, network, set_active, trainable, use
from core.adapters.table import adapters, plan, summary

__all__ = [
    "MergeReport", "adapters", "attach", "check_live", "detach", "head", "merge", "mix", "network", "plan",
    "set_active", "summary", "trainable", "unmerge", "use",
]  # fmt: skip
