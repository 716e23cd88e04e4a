"""Sequences over a length limit: cut to a window, left out, or refused. Labels, resolved flags and sites go along.

Around mutated sites   the window is centred on them, in every split
Elsewhere              a random window in train, drawn anew each time (`draw`), the centre in val and test
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from core.errors import ConfigError, DataError, Problem

Policy = Literal["crop", "drop", "error"]


@dataclass(frozen=True)
class Shortening:
    """max_length   residues, None: no limit of the data's own     too_long   crop, drop or error"""

    max_length: int | None = None
    too_long: Policy = "crop"

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 1:
            raise ConfigError(where="data.max_length", got=self.max_length, allowed="1 or more residues, or null")
        if self.too_long not in ("crop", "drop", "error"):
            raise ConfigError(where="data.too_long", got=self.too_long, allowed=["crop", "drop", "error"])

    def __call__(self, items: list[dict[str, Any]], split: str, limit: int) -> tuple[list[dict[str, Any]], int]:
        """(items no longer than `limit`, how many were over it). Train items without sites keep their full sequence
        and carry `crop: limit`: `draw` cuts them when a batch is made."""
        long = [item for item in items if len(item["sequence"]) > limit]
        if long and self.too_long == "error":
            shown = [
                Problem(f"{item['id']} ({split})", f"{len(item['sequence']):,} residues", f"at most {limit:,}")
                for item in long[:20]
            ]
            fix = "data.too_long=crop, or data.too_long=drop"
            raise DataError(problems=[*shown, Problem("data.too_long", "error", f"{len(long)} too long", fix)])
        if self.too_long == "drop":
            return [item for item in items if len(item["sequence"]) <= limit], len(long)
        return [shortened(item, split, limit) for item in items], len(long)


def shortened(item: dict[str, Any], split: str, limit: int) -> dict[str, Any]:
    """The item, its window, or (train, no sites) the item marked for `draw`."""
    length = len(item["sequence"])
    if length <= limit:
        return item
    sites = item.get("sites")
    if sites:
        return window(item, (min(sites) + max(sites) + 1 - limit) // 2, limit)
    if split == "train":
        return {**item, "crop": limit}
    return window(item, (length - limit) // 2, limit)


def draw(item: dict[str, Any]) -> dict[str, Any]:
    """The item, or a random window of one that is marked with `crop`. Draws from torch's generator: call it where a
    batch is collated, under the loader's seed."""
    limit = item.get("crop")
    if not limit or len(item["sequence"]) <= limit:
        return item
    import torch

    start = int(torch.randint(len(item["sequence"]) - limit + 1, ()))
    return window({k: v for k, v in item.items() if k != "crop"}, start, limit)


def window(item: dict[str, Any], start: int, width: int) -> dict[str, Any]:
    """`width` residues from `start` (moved inside the sequence) with everything that is counted per residue."""
    length = len(item["sequence"])
    start = max(0, min(start, length - width))
    inside = slice(start, start + width)
    out = {**item, "sequence": item["sequence"][inside]}
    for key in ("label", "resolved", "wildtype"):
        value = item.get(key)
        if isinstance(value, str) and len(value) == length:
            out[key] = value[inside]
    if "sites" in item:
        out["sites"] = [site - start for site in item["sites"] if start <= site < start + width]
    return out
