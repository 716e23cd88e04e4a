"""The MNI152 average head (Fonov et al. 2011, NeuroImage 54, 313), T1 with grey and white matter, from package nilearn.

One head, and a symmetric one: left and right are mirror images, so the splits are slabs from front to back. Nothing
measured here says anything about another head; it shows that a 3-D network, its adapter and its metrics work.
"""

from __future__ import annotations

import importlib.util
import itertools
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import ConfigError, EnvironmentError_
from domains.vision_medical.data.augment import Augment
from domains.vision_medical.data.images import Images
from domains.vision_medical.data.prepare import Prepare
from domains.vision_medical.data.reading import nifti
from domains.vision_medical.data.splits import Splitting

FILES = "mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"
SLABS = {"test": (0.0, 0.28), "val": (0.28, 0.56), "train": (0.56, 1.0)}  # shares of the way from back to front
BRAIN = 0.15  # a patch has at least this share of grey and white matter


@dataclass(frozen=True)
class Patch:
    """Reader of a cube of the head: its corner in voxels, its edge, the size of a voxel in mm."""

    corner: tuple[int, int, int]
    edge: int
    mm: float
    prepare: Prepare = field(default_factory=lambda: Prepare(intensity="zscore"))
    mask: None = None
    values: tuple = ((1, 1), (2, 2))

    def raw(self) -> dict[str, Any]:
        head, tissue, affine = volumes(self.mm)
        at = tuple(slice(c, c + self.edge) for c in self.corner)
        moved = affine.copy()
        moved[:3, 3] += affine[:3, :3] @ np.array(self.corner)
        return {"image": head[at][None], "mask": tissue[at], "spacing": (self.mm,) * 3, "affine": moved}

    def shape(self, raw: dict[str, Any]) -> tuple[int, ...]:
        return raw["image"].shape

    def __call__(self) -> dict[str, Any]:
        read = self.raw()
        return {**read, "image": self.prepare.image(read["image"]), "mask": self.prepare.mask(read["mask"])}


@lru_cache(maxsize=2)
def volumes(mm: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(T1 float32 0..1, tissue uint8: 1 grey, 2 white matter, affine) on voxels of `mm`."""
    from domains.vision_medical.data.prepare import resized

    found = importlib.util.find_spec("nilearn")
    folder = Path(found.origin).parent / "datasets" / "data" if found and found.origin else None
    if folder is None or not (folder / FILES.format("t1")).is_file():
        fix = "pip install --no-deps nilearn==0.14.1"
        raise EnvironmentError_("data", "the package nilearn is not installed", "nilearn 0.14.1, for MNI152", fix)
    stacks, affine = [], np.eye(4)
    for name in ("t1", "gm", "wm"):
        array, affine, spacing = nifti(str(folder / FILES.format(name)))
        size = [round(n * s / mm) for n, s in zip(array.shape[1:], spacing, strict=True)]
        stacks.append(resized(array, size)[0] / 255)
    head, grey, white = stacks
    tissue = np.zeros(head.shape, np.uint8)
    tissue[(grey > 0.3) & (grey >= white)] = 1
    tissue[(white > 0.3) & (white > grey)] = 2
    scaled = affine.copy()
    scaled[:3, :3] *= mm / np.linalg.norm(affine[:3, :3], axis=0)
    return head.astype(np.float32), tissue, scaled


class Template(Images):
    """Patches of the head as items, each its own group (an interval over them is one over places in one head).

    patch     edge of the cubes in voxels, 16 or more       spacing   mm per voxel
    """

    def __init__(
        self,
        *,
        patch: int = 32,
        spacing: float = 2.0,
        augment: Augment | None = None,
        seed: int = 0,
        limit: dict[str, int] | None = None,
    ):
        if patch < 16 or not 1.0 <= spacing <= 4.0:
            raise ConfigError("data.patch, data.spacing", f"{patch}, {spacing}", "at least 16 voxels; 1 to 4 mm")
        super().__init__(Splitting("given", seed, limit=limit), augment)
        self.patch, self.spacing = patch, spacing

    def read(self) -> tuple[str, list[dict[str, Any]]]:
        head, tissue, _ = volumes(self.spacing)
        rows, edge = [], self.patch
        for split, (low, high) in SLABS.items():
            starts = [range(0, n - edge + 1, edge // 2) for n in head.shape]
            first, last = round(low * head.shape[1]), round(high * head.shape[1])
            starts[1] = range(first, last - edge + 1, edge // 2)
            for corner in itertools.product(*starts):
                at = tuple(slice(c, c + edge) for c in corner)
                if (tissue[at] > 0).mean() < BRAIN:
                    continue
                name = f"{split}-{'-'.join(map(str, corner))}"
                row = {"id": name, "group": name, "image": f"MNI152 T1 from voxel {corner}", "split": split, "line": 0}
                rows.append(row | {"read": Patch(corner, edge, self.spacing)})
        self.notes["one average head, patches as items: no claim about any other head (data.patch)"] = 1
        return "MNI152", rows

    def name_classes(self, rows: list[dict[str, Any]], file: str) -> None:
        self.classes = ["background", "grey matter", "white matter"]
