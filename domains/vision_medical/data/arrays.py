"""Many images in one npz file, as MedMNIST and prepared sets have them. Opened once per process, never unpickled."""

from __future__ import annotations

from typing import Any

import numpy as np

from core.data.splits import GIVEN, SPLITS
from core.errors import ConfigError, DataError, did_you_mean
from core.paths import locate
from domains.vision_medical.data.augment import Augment
from domains.vision_medical.data.folders import unknown_patients
from domains.vision_medical.data.images import Images
from domains.vision_medical.data.prepare import Prepare
from domains.vision_medical.data.reading import Rows, stored
from domains.vision_medical.data.splits import Splitting


class Npz(Images):
    """Images (n, height, width[, 3]) and what belongs to them, by the names of arrays; `{split}` in a name stands for
    train, val and test.

    labels     array of class numbers (n,), named by `names`       masks    array (n, height, width)
    instances  masks number objects: everything above 0 is the class `names[0]`
    split_array, id, patient, modality   arrays (n,) of words       where   array -> the one value that is wanted
    spacing    mm per pixel
    """

    def __init__(
        self,
        path: str,
        images: str = "{split}_images",
        *,
        labels: str | None = None,
        masks: str | None = None,
        names: list[str] | None = None,
        instances: bool = False,
        split_array: str | None = None,
        id: str | None = None,
        patient: str | None = None,
        modality: str | None = None,
        where: dict[str, str] | None = None,
        spacing: list[float] | None = None,
        prepare: Prepare | None = None,
        augment: Augment | None = None,
        split: str = "given",
        seed: int = 0,
        val: float = 0.1,
        test: float = 0.2,
        limit: dict[str, int] | None = None,
        drop_leaks: bool = False,
    ):
        if instances and len(names or []) != 1:
            raise ConfigError("data.names", names, "one name, for the class of all instances")
        super().__init__(Splitting(split, seed, val, test, limit, drop_leaks), augment)
        self.path, self.images, self.labels, self.masks = path, images, labels, masks
        self.names, self.instances, self.where = [str(n) for n in names or []], instances, dict(where or {})
        self.arrays = {"split": split_array, "id": id, "group": patient, "modality": modality}
        self.spacing, self.prepare = tuple(spacing) if spacing else None, prepare or Prepare()

    def read(self) -> tuple[str, list[dict[str, Any]]]:
        file = str(locate(self.path))
        named = {"data.images": self.images, "data.labels": self.labels, "data.masks": self.masks}
        named |= {f"data.{key}": name for key, name in self.arrays.items()}
        named |= {f"data.where.{name}": name for name in self.where}
        parts = SPLITS if "{split}" in self.images else ("",)
        self.check_names(file, {key: name for key, name in named.items() if name}, parts)
        rows = [row for part in parts for row in self._part(file, part)]
        if not rows:
            raise DataError(self.path, f"no image with {self.where}", "values that occur")
        if self.spacing is None and self.masks:
            self.notes["images without spacing: distances count pixels (data.spacing)"] = len(rows)
        self.notes |= unknown_patients(self.arrays["group"])
        return self.path, rows

    def check_names(self, file: str, named: dict[str, str], parts: tuple[str, ...]) -> None:
        try:
            with np.load(file, allow_pickle=False) as arrays:
                have = list(arrays.files)
        except (OSError, ValueError) as error:
            raise DataError(self.path, f"not readable: {str(error)[:120]}", "an npz file of arrays") from None
        wanted = [(key, name.replace("{split}", part)) for key, name in named.items() for part in parts]
        absent = [(key, name) for key, name in dict.fromkeys(wanted) if name not in have]
        if absent:
            key, name = absent[0]
            raise DataError(self.path, f"no array `{name}` ({key})", ", ".join(have), did_you_mean(name, have))

    def _part(self, file: str, part: str) -> list[dict[str, Any]]:
        def column(name: str | None) -> np.ndarray | None:
            return None if name is None else stored(file, name.replace("{split}", part))

        key = self.images.replace("{split}", part)
        count, labels = len(stored(file, key)), column(self.labels)
        words = {name: column(array) for name, array in self.arrays.items() if array}
        wanted = np.ones(count, bool)
        for name, value in self.where.items():
            wanted &= column(name).astype(str) == str(value)
        mask = None if self.masks is None else self.masks.replace("{split}", part)
        rows = []
        for i in np.flatnonzero(wanted):
            at = {name: str(values[i]) for name, values in words.items()}
            name = at.get("id") or f"{part or key}-{i}"
            row = {"id": name, "group": at.get("group") or name, "image": f"{self.path}, {key}[{i}]", "line": 0}
            row["read"] = Rows(file, mask, self.prepare, None, self.spacing, key, int(i), self.instances)
            given = at.get("split", part)
            row["split"] = GIVEN.get(given.lower(), "") if self.splitting.kind == "given" else ""
            if labels is not None:
                number = int(np.ravel(labels[i])[0])
                row["label"] = self.names[number] if number < len(self.names) else str(number)
            if "modality" in at:
                row["modality"] = at["modality"]
            rows.append(row)
        return rows

    def name_classes(self, rows: list[dict[str, Any]], file: str) -> None:
        if self.masks and self.names:
            self.named = {name: value for value, name in enumerate(self.names, 1)}
        super().name_classes(rows, file)
