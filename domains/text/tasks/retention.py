"""Forgetting: what the model says of general text, before and after. -log p in nat per token, every token counted once.

The data names that text: the twin has its plain style, a reader its option `general`.
"""

from __future__ import annotations

from typing import Any

from core.contracts import Backbone, Data, Metric
from domains.text.data.rendering import Rendering
from domains.text.tasks import reading


def general_nll(model: Backbone, data: Data, most: int) -> Metric | None:
    """Over the first `most` items; None where the data names no general text."""
    items = data.general_items()[:most] if most and hasattr(data, "general_items") else []
    if not items:
        return None
    from domains.text.tasks.fine_tuning import FineTuning, likelihood

    task = FineTuning()
    task.rendering = Rendering(model.tokenizer.limit)
    if not model.tokenizer.one_sequence:
        items = [item for item in items if "text" not in item]
    found: list[dict[str, Any]] = reading.rows(task, model, items)
    return likelihood(found)["nll"] if found else None
