"""A csv or tsv that names images: `path,label,patient_id,...`; classification or, with a mask column, segmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from core.data.splits import GIVEN
from core.data.text import Faults, read_table, require
from core.errors import did_you_mean
from core.paths import locate
from domains.vision_medical.data import files
from domains.vision_medical.data.augment import Augment
from domains.vision_medical.data.folders import unknown_patients
from domains.vision_medical.data.images import Images
from domains.vision_medical.data.prepare import Prepare
from domains.vision_medical.data.splits import Splitting

MISSING = frozenset({"", "na", "nan", "n/a", "none", "null", "-"})


class Csv(Images):
    """One image per row; paths are relative to `root`, or to the table's own folder.

    image, label     columns; label null: no class labels        mask       column of mask files, null: none
    patient          column that splits keep together, null: every image counts as a patient of its own
    subgroups        columns that are scored on their own (sex, site, scanner); `modality` is one column of that kind
    classes          foreground name -> value in the masks          spacing    mm per pixel of pictures
    split_column     for split given; null looks for `split`, `set`     missing   rows without a label: error or drop
    """

    def __init__(
        self,
        path: str,
        *,
        image: str = "path",
        label: str | None = "label",
        mask: str | None = None,
        id: str | None = None,
        patient: str | None = "patient_id",
        subgroups: list[str] | None = None,
        modality: str | None = None,
        root: str | None = None,
        classes: dict[str, int] | None = None,
        spacing: list[float] | None = None,
        missing: Literal["error", "drop"] = "error",
        prepare: Prepare | None = None,
        augment: Augment | None = None,
        split: str = "random",
        split_column: str | None = None,
        seed: int = 0,
        val: float = 0.1,
        test: float = 0.2,
        limit: dict[str, int] | None = None,
        drop_leaks: bool = False,
    ):
        super().__init__(Splitting(split, seed, val, test, limit, drop_leaks), augment, classes)
        self.path, self.root, self.image, self.mask = path, root, image, mask
        self.label = None if mask else label
        self.id, self.patient, self.subgroups, self.modality = id, patient, list(subgroups or []), modality
        self.spacing, self.missing, self.split_column = spacing, missing, split_column
        self.prepare = prepare or Prepare()

    def read(self) -> tuple[str, list[dict[str, Any]]]:
        table = read_table(self.path)
        named = {"data.image": self.image, "data.label": self.label, "data.mask": self.mask, "data.id": self.id}
        named |= {"data.patient": self.patient, "data.modality": self.modality}
        named |= {f"data.subgroups[{i}]": column for i, column in enumerate(self.subgroups)}
        splits = self.split_column or next((c for c in table.columns if c.lower() in ("split", "set")), None)
        if self.splitting.kind == "given":
            named["data.split_column"] = splits or "split"
        require(table, [(key, column) for key, column in named.items() if column])
        root = files.folder(self.root, "data.root") if self.root else locate(self.path).parent
        faults, rows = Faults(table.file), []
        for line, cells in table.rows:
            label = cells[self.label].strip() if self.label else ""
            if self.label and label.lower() in MISSING:
                if self.missing == "drop":
                    self.notes["rows without a label, left out"] = (
                        self.notes.get("rows without a label, left out", 0) + 1
                    )
                    continue
                faults.add(line, self.label, "no label", "a class name", "data.missing=drop leaves such rows out")
            image = existing(faults, line, self.image, root, cells[self.image])
            mask = existing(faults, line, self.mask, root, cells[self.mask]) if self.mask else None
            if image is None or (self.mask and mask is None):
                continue
            name = cells[self.id].strip() if self.id else files.stem(Path(cells[self.image].strip()))
            row = {"id": name, "group": (cells[self.patient].strip() if self.patient else "") or name}
            row |= {"image": str(image), "split": "", "line": line}
            row["read"] = files.read_with(image, mask, self.prepare, self.spacing, faults)
            if self.label:
                row["label"] = label
            if self.subgroups:
                row["subgroups"] = {column: cells[column].strip() or "unknown" for column in self.subgroups}
            if self.modality:
                row["modality"] = cells[self.modality].strip() or "unknown"
            if self.splitting.kind == "given" and (text := cells[splits].strip()):
                if text.lower() in GIVEN:
                    row["split"] = GIVEN[text.lower()]
                else:
                    faults.add(line, splits, repr(text), ", ".join(GIVEN))
            rows.append(row)
        faults.check()
        self.notes |= unknown_patients(self.patient)
        return table.file, rows


def existing(faults: Faults, line: int, column: str, root: Path, text: str) -> Path | None:
    """The file of a cell, or None where a fault was noted."""
    name = text.strip()
    path = root / Path(name).expanduser() if name else root
    if not name:
        faults.add(line, column, "no path", "a file")
    elif not path.is_file():
        near = did_you_mean(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
        faults.add(line, column, f"no file {name}", f"a file below {root} (data.root)", near)
    elif files.suffix(name) not in (*files.PICTURES, *files.VOLUMES):
        faults.add(line, column, name, f"a file of {', '.join((*files.PICTURES, *files.VOLUMES))}")
    else:
        return path
    return None
