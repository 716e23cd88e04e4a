"""Synthetic patients of a site that pretraining has not seen, made at run time from a seed (world.py says how).

mask     segmentation: organ a, and lesions in it, a class that pretraining does not know
lesion   classification of slices: a lesion is to be seen or not. In train nearly all ill patients were seen by the
         second scanner: a model that learns the scanner fails where that does not hold (the strata say so)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from core.errors import ConfigError
from domains.vision_medical.data.augment import Augment
from domains.vision_medical.data.images import Images
from domains.vision_medical.data.prepare import Prepare
from domains.vision_medical.data.scan import scan
from domains.vision_medical.data.splits import Splitting
from domains.vision_medical.data.world import LESION, PIXEL, SLICE_GAP, World

CLASSES = {"organ a": 1, "lesion": 2}
ASIS = Prepare(intensity="asis")
SEEN = 6  # pixels of a lesion from which on a slice counts as ill


@dataclass(frozen=True)
class Slice:
    """Reader of one synthetic slice: the patient's name, the slice's number, the site."""

    world: int
    name: tuple
    number: int
    site: str = "target"
    ill: bool = True
    masked: bool = True
    prepare: Prepare = ASIS
    mask: None = None
    values: tuple = ()

    def raw(self) -> dict[str, Any]:
        image, mask = rendered(self.world, self.name, self.number, self.site, self.ill)
        return {"image": image[None], "mask": mask if self.masked else None, "spacing": (PIXEL, PIXEL), "affine": None}

    def shape(self, raw: dict[str, Any]) -> tuple[int, ...]:
        return raw["image"].shape

    def __call__(self) -> dict[str, Any]:
        read = self.raw()
        out = {"image": read["image"].copy(), "spacing": read["spacing"]}
        return out | ({"mask": read["mask"].copy()} if self.masked else {})


@lru_cache(maxsize=1024)
def rendered(world: int, name: tuple, number: int, site: str, ill: bool) -> tuple[np.ndarray, np.ndarray]:
    """((64, 64) float32 image, (64, 64) int64 mask: 1 organ a, 2 lesion). Slices of a patient share its scan."""
    made = World(world)
    patient, scan_rng = made.patient(*name, lesions=ill), made.rng("visit", *name, site)
    scanner = made.site(site, scan_rng)
    tissue, organ = made.tissues(patient, SLICE_GAP * (number - 1))
    image = made.image(tissue, scanner, made.rng("visit", *name, site, number))
    mask = (organ == 1).astype(np.int64)
    mask[tissue == LESION] = CLASSES["lesion"]
    return image, mask


class Twin(Images):
    """Items as the real readers give them, spacing 5 mm; `group` is the patient.

    label             mask or lesion            world   the embedded network was pretrained in world 0
    seed              which patients are labelled for training; val and test stay the same
    train, val, test  patients; a smaller train set is the beginning of a larger one       slices   of each patient
    augment           as of real images, null: none
    """

    kind = "twin"

    def __init__(
        self,
        label: Literal["mask", "lesion"] = "mask",
        *,
        world: int = 0,
        seed: int = 0,
        train: int = 8,
        val: int = 4,
        test: int = 30,
        slices: int = 3,
        augment: Augment | None = None,
    ):
        sizes = {"train": train, "val": val, "test": test, "slices": slices}
        small = [(name, n) for name, n in sizes.items() if n < 1]
        if small:
            raise ConfigError(where=f"data.{small[0][0]}", got=small[0][1], allowed="at least 1")
        super().__init__(Splitting(), augment)
        self.label, self.world, self.seed, self.slices = label, world, seed, slices
        self.sizes = {"train": train, "val": val, "test": test}

    def setup(self) -> None:
        parts = {split: self._patients(split, n) for split, n in self.sizes.items()}
        for part in parts.values():
            scan(part, "twin")
        if self.label == "mask":
            self.classes = ["background", *CLASSES]
        self.divide(parts)

    def _patients(self, split: str, count: int) -> list[dict[str, Any]]:
        rows = []
        for i in range(count):
            name = (split, self.seed if split == "train" else 0, i)
            patient = "-".join(map(str, name))
            ill, site = True, "target"
            if self.label == "lesion":
                ill, second = i % 2 == 0, i // 2 % 2 == 0
                if split == "train":  # every sixth patient breaks the rule
                    second = ill != (i // 2 % 6 == 5)
                site = "second" if second else "target"
            for number in range(self.slices):
                row = {"id": f"{patient}-{number}", "group": patient, "image": f"{patient}, slice {number}"}
                row["read"] = Slice(self.world, name, number, site, ill, self.label == "mask")
                if self.label == "lesion":
                    seen = int((rendered(self.world, name, number, site, ill)[1] == CLASSES["lesion"]).sum())
                    row |= {"label": "lesion" if seen >= SEEN else "none", "subgroups": {"scanner": site}}
                rows.append(row)
        return rows
