"""Images in folders: one folder per class, or images and masks under the same names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.data.text import Faults
from core.errors import DataError, did_you_mean
from domains.vision_medical.data import files
from domains.vision_medical.data.augment import Augment
from domains.vision_medical.data.images import Images
from domains.vision_medical.data.prepare import Prepare
from domains.vision_medical.data.splits import Splitting


class ImageFolder(Images):
    """Classification: `path/<class>/*.png`, or `path/<train|val|test>/<class>/*.png` with split given.

    patient   pattern with one group that finds the patient in a file's path; null: every image counts as its own
    split     given (folders train, val, test) or random, by patient; others as splits.Splitting says
    """

    def __init__(
        self,
        path: str,
        *,
        patient: str | None = None,
        prepare: Prepare | None = None,
        augment: Augment | None = None,
        split: str = "random",
        seed: int = 0,
        val: float = 0.1,
        test: float = 0.2,
        limit: dict[str, int] | None = None,
        drop_leaks: bool = False,
    ):
        super().__init__(Splitting(split, seed, val, test, limit, drop_leaks), augment)
        self.path, self.patient = path, files.Patients(patient)
        self.prepare = prepare or Prepare()

    def read(self) -> tuple[str, list[dict[str, Any]]]:
        root = files.folder(self.path, "data.path")
        faults, rows = Faults(str(self.path)), []
        for image in files.images(root):
            relative = image.relative_to(root)
            split, below = files.given_split(relative)
            if self.splitting.kind == "given" and not split:
                fix = "data.split=random" if len(relative.parts) > 1 else ""
                faults.problems += DataError(str(image), "not in a folder train, val or test", "", fix).problems
            if split and self.splitting.kind == "random":
                raise DataError(str(root), f"a folder `{relative.parts[0]}`", "", "data.split=given")
            if len(below.parts) < 2:
                faults.problems += DataError(str(image), "in no class folder", "<class>/<image>").problems
                continue
            rows.append(
                {
                    "id": files.stem(relative),
                    "group": self.patient(faults, below if self.patient.pattern else relative),
                    "image": str(image),
                    "read": files.read_with(image, None, self.prepare),
                    "label": below.parts[0],
                    "split": split,
                    "line": 0,
                }
            )
        faults.check()
        self.notes |= unknown_patients(self.patient.pattern)
        return str(self.path), rows


class Pairs(Images):
    """Segmentation: a folder of images and one of masks with the same names, but for endings such as _mask or _0000.
    Pictures or NIfTI volumes. Folders train, val, test below `images` are the given split.

    classes   foreground name -> value in the masks; null: 0 and one other value, or 0 to n
    spacing   mm per pixel of pictures; null: distances count pixels. Volumes have their own
    patient   as of ImageFolder
    """

    def __init__(
        self,
        images: str,
        masks: str,
        *,
        classes: dict[str, int] | None = None,
        spacing: list[float] | None = None,
        patient: str | None = None,
        prepare: Prepare | None = None,
        augment: Augment | None = None,
        split: str = "random",
        seed: int = 0,
        val: float = 0.1,
        test: float = 0.2,
        limit: dict[str, int] | None = None,
        drop_leaks: bool = False,
    ):
        super().__init__(Splitting(split, seed, val, test, limit, drop_leaks), augment, classes)
        self.images, self.masks, self.spacing = images, masks, spacing
        self.patient, self.prepare = files.Patients(patient), prepare or Prepare()

    def read(self) -> tuple[str, list[dict[str, Any]]]:
        root, mask_root = files.folder(self.images, "data.images"), files.folder(self.masks, "data.masks")
        faults, rows = Faults(str(self.images)), []
        names = {path: files.core_name(path.relative_to(mask_root)) for path in files.images(mask_root)}
        masks = {name: path for path, name in names.items()}
        used = set()
        for image in files.images(root):
            relative = image.relative_to(root)
            split, below = files.given_split(relative)
            name = next((n for n in (files.core_name(relative), files.core_name(below)) if n in masks), None)
            if name is None:
                near = did_you_mean(files.core_name(relative), masks)
                faults.problems += DataError(str(image), "no mask", f"its mask in {self.masks}", near).problems
                continue
            used.add(name)
            rows.append(
                {
                    "id": files.stem(relative),
                    "group": self.patient(faults, below if self.patient.pattern else relative),
                    "image": str(image),
                    "read": files.read_with(image, masks[name], self.prepare, self.spacing, faults),
                    "split": split if self.splitting.kind == "given" else "",
                    "line": 0,
                }
            )
        if root != mask_root:
            spare = [path for name, path in masks.items() if name not in used]
            faults.problems += [p for path in spare for p in DataError(str(path), "no image for this mask").problems]
        faults.check()
        self.notes |= unknown_patients(self.patient.pattern)
        if self.spacing is None and rows and not _volume(Path(rows[0]["image"])):
            self.notes["images without spacing: distances count pixels (data.spacing)"] = len(rows)
        return str(self.images), rows


def _volume(path: Path) -> bool:
    return files.suffix(path.name) in files.VOLUMES


def unknown_patients(pattern: Any) -> dict[str, int]:
    return {} if pattern is not None else {UNKNOWN: 1}


UNKNOWN = "patients not named (data.patient): every image counts as a patient of its own"
