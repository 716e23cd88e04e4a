"""What all readers of images share: one scan of the files, classes, splits by patient, augmentation, the audit.

Row     a dict of id, group (patient), image (file, for people), read (see reading.py), split ('' unless given), line
        (of a table, 0 elsewhere), and, where there is one: label, modality, subgroups {column: value}
Item    the row with what the scan found (shape, channels, spacing), without split, line and the audit's fingerprints
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from core.contracts import Audit, Data, Split
from core.data.text import Faults
from core.errors import DataError
from domains.vision_medical.data.augment import Augment, Augmented
from domains.vision_medical.data.scan import class_values, scan
from domains.vision_medical.data.splits import Splitting

HIDDEN = ("split", "line", "digest", "thumbnail", "present", "stored")
SMALLEST = 4  # items of a stratum


class Images(Data):
    """Base of the readers: a subclass gives `read() -> (file name, rows)`.

    classes   after setup: names of a mask's classes from the background on; [] where the items have class labels
    """

    def __init__(self, splitting: Splitting, augment: Augment | None = None, classes: dict[str, int] | None = None):
        self.splitting, self.augment, self.named = splitting, augment, classes
        self.classes: list[str] = []
        self.notes: dict[str, int] = {}  # what the reader left out or assumed, for the audit
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self._items: dict[str, list[dict[str, Any]]] = {}

    def read(self) -> tuple[str, list[dict[str, Any]]]:
        raise NotImplementedError

    def setup(self) -> None:
        file, rows = self.read()
        refuse_repeated_ids(file, rows)
        scan(rows, file)
        self.name_classes(rows, file)
        self.divide(self.splitting(rows, file))
        if left := len(rows) - sum(len(part) for part in self._rows.values()):
            self.notes["images in no split, or left out as leaks"] = left

    def name_classes(self, rows: list[dict[str, Any]], file: str) -> None:
        masked = [row for row in rows if "present" in row]
        if not masked:
            return
        if len(masked) < len(rows):
            bare = next(row for row in rows if "present" not in row)
            raise DataError(bare["image"], "no mask", "a mask for every image")
        self.classes, values = class_values(masked, self.named, file)
        for row in masked:
            row["read"] = replace(row["read"], values=values)

    def divide(self, parts: dict[str, list[dict[str, Any]]]) -> None:
        """Items of each split from its rows; those of train are augmented when they are read."""
        self._rows = parts
        for split, part in parts.items():
            self._items[split] = [{k: v for k, v in row.items() if k not in HIDDEN} for row in part]
        if self.augment is not None:
            for item in self._items["train"]:
                item["read"] = Augmented(item["read"], self.augment)

    def items(self, split: Split) -> Sequence[dict[str, Any]]:
        return self._items[split]

    def length(self, item: dict[str, Any]) -> int:
        """Pixels (voxels) of the image; of one that is cropped, those of the crop."""
        read = item["read"]
        patch = read.augment.patch if isinstance(read, Augmented) else None
        return int(np.prod(patch or item["shape"]))

    def load(self, item: dict[str, Any]) -> dict[str, Any]:
        """Arrays of an item without augmentation: image, mask, spacing, affine as reading.py says."""
        read = item["read"]
        return read.plain() if isinstance(read, Augmented) else read()

    def audit(self) -> Audit:
        from domains.vision_medical.data.audit import audit

        return audit(self._rows, classes=self.classes, notes=self.notes)

    def strata(self, split: Split) -> dict[str, list[str]]:
        """Items by each value of a subgroup column and by modality, where a value has at least four."""
        found: dict[str, list[str]] = {}
        for item in self._items[split]:
            named = dict(item.get("subgroups") or {})
            if item.get("modality"):
                named["modality"] = item["modality"]
            for column, value in named.items():
                found.setdefault(f"{column} {value}", []).append(item["id"])
        columns = {name.rsplit(" ", 1)[0] for name in found}
        return {
            name: ids
            for name, ids in sorted(found.items())
            if len(ids) >= SMALLEST and (len(columns) > 1 or len(ids) < len(self._items[split]))
        }


def refuse_repeated_ids(file: str, rows: list[dict[str, Any]]) -> None:
    faults, seen = Faults(file), set()
    for row in rows:
        if row["id"] in seen:
            faults.add(row["line"] or None, "id", f"`{row['id']}` again", "each id once")
        seen.add(row["id"])
    faults.check()
