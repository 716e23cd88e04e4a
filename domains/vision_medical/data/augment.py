"""Augmentation of training images, by MONAI's transforms. Nothing is on unless an option says so: a flipped chest has
its heart on the wrong side.

Every draw comes from numpy's and torch's global generators, which the loader seeds for each batch (core.data.seeding):
the same run draws the same images in any number of workers.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from core.errors import ConfigError, Problem


@dataclass(frozen=True)
class Augment:
    """flips      spatial axes that may be flipped, each with probability .5
    rotate     degrees in the plane of the first two axes, up to
    contrast   gamma from 1 / (1 + c) to 1 + c, on the image's own range, probability .5
    shift      added to all grey values, up to this many of the image's deviations, probability .5
    noise      Gaussian, standard deviation up to this many of the image's deviations, probability .5
    patch      voxels of a random crop; where there is a mask, half of the crops are centred on foreground
    """

    flips: list[int] | None = None
    rotate: float = 0.0
    contrast: float = 0.0
    shift: float = 0.0
    noise: float = 0.0
    patch: list[int] | None = None

    def __post_init__(self) -> None:
        for name in ("flips", "patch"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(value))
        problems = [
            Problem(f"data.augment.{name}", str(getattr(self, name)), "0 or more")
            for name in ("rotate", "contrast", "shift", "noise")
            if getattr(self, name) < 0
        ]
        if self.patch is not None and min(self.patch, default=0) < 8:
            problems.append(Problem("data.augment.patch", str(list(self.patch)), "at least 8 voxels along each axis"))
        if problems:
            raise ConfigError(problems=problems)

    def __call__(self, read: dict[str, Any]) -> dict[str, Any]:
        """A new read with image and mask changed alike; spacing stays."""
        image, mask = read["image"], read.get("mask")
        if self.patch is not None:
            image, mask = self.crop(image, mask)
        data = {"image": image} if mask is None else {"image": image, "mask": mask[None]}
        for transform in _transforms(self, mask is not None, image.ndim - 1):
            transform.set_random_state(seed=int(np.random.randint(2**31)))
            data = transform(data)
        out = {**read, "image": np.ascontiguousarray(_plain(data["image"]), np.float32)}
        if mask is not None:
            out["mask"] = np.ascontiguousarray(_plain(data["mask"])[0], np.int64)
        deviation = float(out["image"].std()) or 1.0
        if self.shift and np.random.random() < 0.5:
            out["image"] = out["image"] + np.float32(deviation * np.random.uniform(-self.shift, self.shift))
        if self.noise and np.random.random() < 0.5:
            noise = np.random.normal(0, deviation * np.random.uniform(0, self.noise), out["image"].shape)
            out["image"] = out["image"] + noise.astype(np.float32)
        return out

    def crop(self, image: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        """A random crop; short sides are padded first, the mask with background. An empty mask is cropped anywhere."""
        short = [(0, max(0, p - n)) for p, n in zip(self.patch, image.shape[1:], strict=True)]
        if any(after for _, after in short):
            image = np.pad(image, [(0, 0), *short], constant_values=image.min())
            mask = None if mask is None else np.pad(mask, short)
        room = [n - p for n, p in zip(image.shape[1:], self.patch, strict=True)]
        start = [int(np.random.randint(r + 1)) for r in room]
        if mask is not None and np.random.random() < 0.5:
            inside = np.flatnonzero(mask)
            if len(inside):
                centre = np.unravel_index(inside[np.random.randint(len(inside))], mask.shape)
                start = [int(np.clip(c - p // 2, 0, r)) for c, p, r in zip(centre, self.patch, room, strict=True)]
        at = tuple(slice(s, s + p) for s, p in zip(start, self.patch, strict=True))
        return image[(slice(None), *at)], None if mask is None else mask[at]


@lru_cache(maxsize=16)
def _transforms(augment: Augment, masked: bool, axes: int) -> tuple:
    """MONAI's random transforms of these options; their generators are seeded anew before every use."""
    from monai.transforms import RandAdjustContrastd, RandFlipd, RandRotated

    keys = ("image", "mask") if masked else ("image",)
    made = [RandFlipd(keys, prob=0.5, spatial_axis=axis) for axis in augment.flips or ()]
    if augment.rotate:
        modes = ("bilinear", "nearest")[: len(keys)]
        turn = {"range_x" if axes == 2 else "range_z": np.deg2rad(augment.rotate)}
        made.append(RandRotated(keys, **turn, prob=0.5, mode=modes, padding_mode="border"))
    if augment.contrast:
        gamma = (1 / (1 + augment.contrast), 1 + augment.contrast)
        made.append(RandAdjustContrastd("image", prob=0.5, gamma=gamma))
    return tuple(made)


def _plain(array: Any) -> np.ndarray:
    return array.numpy() if hasattr(array, "numpy") else np.asarray(array)


@dataclass(frozen=True)
class Augmented:
    """A reader whose images are augmented; `plain` reads without."""

    plain: Any
    augment: Augment

    def __call__(self) -> dict[str, Any]:
        return self.augment(self.plain())
