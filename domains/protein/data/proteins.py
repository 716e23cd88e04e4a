"""What all readers of proteins share: checks over all rows, splits, limits, cropping, the audit. A reader gives rows.

Row     a dict of id, group, sequence, split ('' unless given), line (in the file), and, where there is one: label,
        resolved, sites, wildtype
Item    the row without split and line

label     str per residue, class (str) or number (float)        resolved   0/1 per residue: score only where 1
sites     0-based positions that a variant changes (or its library varies)
wildtype  the unmutated sequence
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from core.contracts import Audit, Data, Split
from core.data.splits import GIVEN
from core.data.text import Faults, refuse_repeated_ids
from domains.protein.data.crop import Shortening
from domains.protein.data.residues import clean
from domains.protein.data.splits import Splitting

TargetType = Literal["number", "class", "residue"]
MISSING = frozenset({"", "na", "nan", "n/a", "none", "null", "-"})


class Proteins(Data):
    """Base of the readers: a subclass gives `read() -> (file name, rows)`."""

    def __init__(self, splitting: Splitting, shortening: Shortening):
        self.splitting, self.shortening = splitting, shortening
        self._items: dict[str, list[dict[str, Any]]] = {}
        self._whole: dict[str, list[dict[str, Any]]] = {}
        self._identity: dict[str, float] | None = None
        self.over_limit: dict[str, int] = {}
        self.notes: dict[str, int] = {}  # what the reader left out or changed, for the audit

    def read(self) -> tuple[str, list[dict[str, Any]]]:
        raise NotImplementedError

    def setup(self) -> None:
        file, rows = self.read()
        refuse_repeated_ids(file, rows)
        parts = self.splitting(rows, file)
        left = len(rows) - sum(len(part) for part in parts.values())
        if left:
            self.notes["rows in no split, left out"] = left
        hidden = ("split", "line")
        self._whole = {
            name: [{k: v for k, v in row.items() if k not in hidden} for row in part] for name, part in parts.items()
        }
        self._items = dict(self._whole)
        if self.shortening.max_length is not None:
            self.shorten(self.shortening.max_length)

    def shorten(self, limit: int) -> dict[str, int]:
        """Apply a length limit (the backbone's, or max_length) by the policy `too_long`; returns how many items of each
        split were over it. The smaller of two limits holds."""
        for split, items in self._items.items():
            self._items[split], self.over_limit[split] = self.shortening(items, split, limit)
        return self.over_limit

    def items(self, split: Split) -> Sequence[dict[str, Any]]:
        return self._items[split]

    def length(self, item: dict[str, Any]) -> int:
        return min(len(item["sequence"]), item.get("crop") or len(item["sequence"]))

    def identity(self) -> dict[str, float]:
        """Test id -> identity (0..1) to the most similar train sequence; computed once."""
        from domains.protein.data.audit import compared

        if self._identity is None:
            self._identity = compared(self._whole)
        return self._identity

    def audit(self) -> Audit:
        from domains.protein.data.audit import audit

        return audit(self._whole, over_limit=self.over_limit, notes=self.notes, identity=self.identity())

    def strata(self, split: Split) -> dict[str, list[str]]:
        """Test proteins by identity to the nearest train protein; variants of one protein are all alike: no strata."""
        from domains.protein.data.audit import bands

        if split != "test" or any(item.get("sites") for item in self._items["test"]):
            return {}
        return {f"identity {name}": ids for name, ids in bands(self.identity()).items() if ids}


def read_sequence(faults: Faults, line: int, field: str, text: str) -> str:
    sequence, fault = clean(text)
    if fault:
        faults.add(line, field, fault, "amino-acid letters")
    return sequence


def read_label(faults: Faults, line: int, field: str, text: str, kind: TargetType, sequence: str) -> str | float | None:
    """The label, or None where a fault was noted. A label string may cover the stop `*` that cleaning took away."""
    value = text.strip()
    if kind == "residue":
        value = text if len(text) == len(sequence) else value
        if value[len(sequence) :].strip("*-.") == "" and len(value) > len(sequence):
            value = value[: len(sequence)]
        if len(value) != len(sequence):
            faults.add(line, field, f"{len(value):,} labels", f"{len(sequence):,}, one per residue")
            return None
        return value
    if value.lower() in MISSING:
        faults.add(line, field, f"no value ({value!r})", "a label", "data.missing=drop leaves such rows out")
        return None
    if kind == "class":
        return value
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        fix = "data.target_type=class, if it names classes" if number != number else ""
        faults.add(line, field, repr(value), "a finite number", fix)
        return None
    return number


def read_resolved(faults: Faults, line: int, field: str, text: str, sequence: str) -> str | None:
    value = text.strip()[: len(sequence)]
    if len(value) != len(sequence) or set(value) - set("01"):
        got = f"{len(value):,} characters" if len(value) != len(sequence) else "other characters than 0 and 1"
        faults.add(line, field, got, f"0 or 1 for each of {len(sequence):,} residues")
        return None
    return value


def read_split(faults: Faults, line: int, field: str, text: str, validation: str = "") -> str:
    """train, val or test from a split cell (and FLIP's VALIDATION flag); '' for a cell that is empty."""
    name = text.strip().lower()
    if name in MISSING:
        return ""
    if name not in GIVEN:
        faults.add(line, field, repr(text), ", ".join(GIVEN))
        return ""
    flag = validation.strip().lower()
    if flag not in ("", "true", "false", "0", "1", "nan"):
        faults.add(line, "validation", repr(validation), "True or False")
    return "val" if GIVEN[name] == "train" and flag in ("true", "1") else GIVEN[name]
