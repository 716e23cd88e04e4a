"""JSON lines, one protein each: for what a table cannot hold, such as contacts.

{"id": "P1", "sequence": "MKV...", "label": "HHC..." | "class" | 1.5, "contacts": [[3, 17], ...], "split": "train"}
"""

from __future__ import annotations

import json
from typing import Any, Literal

from core.data.text import Faults, json_lines, read_text
from domains.protein.data.crop import Shortening
from domains.protein.data.proteins import (
    Proteins,
    TargetType,
    read_label,
    read_resolved,
    read_sequence,
    read_split,
)
from domains.protein.data.splits import Splitting


class Jsonl(Proteins):
    """Proteins of a .jsonl file (or .jsonl.gz), one object per line.

    path         id and sequence in every line; group, resolved, contacts, sites, wildtype, split where there are any
    target       key of the label, None: no labels     target_type   number, class, or residue (a letter for each)
    others       splits.Splitting and crop.Shortening say
    """

    def __init__(
        self,
        path: str,
        *,
        target: str | None = None,
        target_type: TargetType = "number",
        split: str = "identity",
        seed: int = 0,
        val: float = 0.1,
        test: float = 0.2,
        threshold: float = 0.3,
        clusters: str | None = None,
        limit: dict[str, int] | None = None,
        drop_leaks: bool = False,
        max_length: int | None = None,
        too_long: Literal["crop", "drop", "error"] = "crop",
    ):
        splitting = Splitting(split, seed, val, test, limit, threshold, clusters, drop_leaks)
        super().__init__(splitting, Shortening(max_length, too_long))
        self.path, self.target, self.target_type = path, target, target_type

    def read(self) -> tuple[str, list[dict[str, Any]]]:
        file, text = read_text(self.path)
        faults, rows = Faults(file), []
        for line, found in json_lines(text, faults):
            if not isinstance(found, dict) or not {"id", "sequence"} <= found.keys():
                faults.add(line, "", json.dumps(found)[:40], "an object with `id` and `sequence`")
                continue
            rows.append(self._row(faults, line, found))
        faults.check()
        return file, rows

    def _row(self, faults: Faults, line: int, found: dict[str, Any]) -> dict[str, Any]:
        name = str(found["id"])
        sequence = read_sequence(faults, line, "sequence", str(found["sequence"]))
        row = {"id": name, "group": str(found.get("group") or name), "sequence": sequence, "split": "", "line": line}
        if self.target:
            text = found.get(self.target)
            label = "" if text is None else str(text)
            row["label"] = read_label(faults, line, self.target, label, self.target_type, sequence)
        if "resolved" in found:
            row["resolved"] = read_resolved(faults, line, "resolved", str(found["resolved"]), sequence)
        if "split" in found:
            row["split"] = read_split(faults, line, "split", str(found["split"] or ""))
        for key, width in (("contacts", 2), ("sites", 0)):
            if key in found:
                row[key] = found[key]
                if not _positions(found[key], width, len(sequence)):
                    shape = "pairs [i, j]" if width else "numbers"
                    faults.add(line, key, str(found[key])[:40], f"a list of {shape} from 0 to {len(sequence) - 1}")
        if found.get("wildtype"):
            row["wildtype"] = read_sequence(faults, line, "wildtype", str(found["wildtype"]))
        return row


def _positions(value: Any, width: int, length: int) -> bool:
    """Whether `value` is a list of 0-based positions, or of lists of `width` of them."""
    if not isinstance(value, list):
        return False
    if width:
        return all(isinstance(pair, list) and len(pair) == width and _positions(pair, 0, length) for pair in value)
    return all(isinstance(i, int) and 0 <= i < length for i in value)
