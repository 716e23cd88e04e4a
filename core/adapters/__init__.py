"""The adapter layer: any method on any layer of any model. Names below are the public interface; see docs/design.md."""

from core.adapters.arithmetic import combine_adapters
from core.adapters.cost import cost
from core.adapters.io import fingerprint, load_adapter, save_adapter
from core.adapters.merge import MergeReport, merge, unmerge
from core.adapters.model import acting_head, attach, check_live, detach, head, mix, network, set_active, trainable, use
from core.adapters.peft_format import export_peft
from core.adapters.peft_import import import_peft
from core.adapters.quantised import dequantise, quantise
from core.adapters.search import search_weights
from core.adapters.table import adapters, plan, summary

__all__ = [
    "MergeReport", "acting_head", "adapters", "attach", "check_live", "combine_adapters", "cost", "dequantise",
    "detach", "export_peft", "fingerprint", "head", "import_peft", "load_adapter", "merge", "mix", "network", "plan",
    "quantise", "save_adapter", "search_weights", "set_active", "summary", "trainable", "unmerge", "use",
]  # fmt: skip
