"""Items to batches, the same for every task: sequences are cropped where marked, tokenised, checked for length."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from core.contracts import Backbone, Data
from core.errors import DataError, Problem
from domains.protein.data.crop import draw

SPLITS = ("train", "val", "test")


def read(items: list[dict[str, Any]], tokenizer: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(items after their random crops, batch with tokens, mask, residues, ids)."""
    items = [draw(item) for item in items]
    batch = tokenizer([item["sequence"] for item in items])
    return items, {**batch, "ids": [str(item["id"]) for item in items]}


def every(data: Data) -> Iterable[tuple[str, dict[str, Any]]]:
    """(split, item) of all splits."""
    for split in SPLITS:
        for item in data.items(split):
            yield split, item


def check_lengths(data: Data, backbone: Backbone, *, whole: bool = False) -> None:
    """Brings the data under the backbone's limit by the data's own policy, if any; DataError for what is left.

    whole   the task has no meaning on a part of a protein: nothing is cut"""
    limit = getattr(backbone.tokenizer, "limit", None)
    if limit is None:
        return
    if not whole and hasattr(data, "shorten"):
        data.shorten(limit)
    lengths = [(s, i, min(len(i["sequence"]), i.get("crop") or 10**9)) for s, i in every(data)]
    long = [(split, item, length) for split, item, length in lengths if length > limit]
    if long:
        fix = f"data.max_length={limit} (crops), or data.too_long=drop, or a backbone without a limit"
        found = [Problem(f"{i['id']} ({s})", f"{n:,} residues", f"at most {limit:,}") for s, i, n in long[:3]]
        raise DataError(
            problems=[Problem("sequence", f"{len(long)} too long", f"at most {limit:,} residues", fix), *found]
        )
