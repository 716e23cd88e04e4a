"""One look at every file before anything is trained: can it be read, do image and mask fit, what is in the mask.

What it finds goes into the row: `shape` and `channels` of the image as it will be read, `stored` (both as in the file),
`spacing`, `digest` (of the pixels), `thumbnail` (for near duplicates) and, with a mask, `present` (value -> share).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from core.data.text import Faults
from core.errors import DataError

THUMBNAIL = {2: (16, 16), 3: (8, 8, 4)}
MANY = 64  # different values in a mask: then it is no mask
FAR = 1e-2  # mm between entries of two affines
Row = dict[str, Any]


def scan(rows: list[Row], file: str) -> None:
    """Fills the rows. DataError lists every file that cannot be used, up to 20."""
    faults = Faults(file)
    for row in rows:
        try:
            raw = row["read"].raw()
        except DataError as error:
            faults.problems += error.problems
            continue
        image, mask = raw["image"], raw["mask"]
        row |= {
            "shape": (shape := row["read"].shape(raw))[1:],
            "channels": shape[0],
            "stored": image.shape,
            "spacing": row["read"].prepare.pixel(raw["spacing"], image.shape[1:]),
            "digest": hashlib.blake2b(np.ascontiguousarray(image).tobytes(), digest_size=16).hexdigest(),
            "thumbnail": thumbnail(image),
        }
        where = row["read"].mask or row["image"]
        if not np.isfinite(image).all():
            faults.problems += DataError(row["image"], "NaN or infinite grey values", "finite numbers").problems
        if mask is None:
            continue
        if mask.shape != image.shape[1:]:
            got = f"{_times(mask.shape)} pixels for an image of {_times(image.shape[1:])}"
            faults.problems += DataError(where, got, "the same grid").problems
            continue
        gap = float(np.abs(raw["affine"] - raw["mask_affine"]).max()) if "mask_affine" in raw else 0.0
        if gap > FAR:
            fix = "resample the mask to the image's grid, or copy the affine if only the header is wrong"
            got = f"another affine than its image, entries up to {gap:.3g} apart"
            faults.problems += DataError(where, got, "the same affine", fix).problems
            continue
        values, counts = np.unique(mask, return_counts=True)
        if len(values) > MANY or (values != np.round(values)).any():
            got = f"{len(values)} different values, {values.min():g} to {values.max():g}"
            faults.problems += DataError(where, got, "whole numbers, one per class").problems
            continue
        row["present"] = {int(v): int(n) / mask.size for v, n in zip(values, counts, strict=True)}
    faults.check()


def thumbnail(image: np.ndarray) -> np.ndarray:
    """(n,) float32, mean 0, length 1: the image shrunk to a few pixels. The dot product of two is their correlation."""
    import torch
    import torch.nn.functional as F

    grey = torch.from_numpy(np.asarray(image, np.float32)).mean(0)[None, None]
    pool = F.adaptive_avg_pool2d if grey.ndim == 4 else F.adaptive_avg_pool3d
    small = pool(grey, THUMBNAIL[grey.ndim - 2]).flatten().numpy()
    small = small - small.mean()
    return small / max(float(np.linalg.norm(small)), 1e-6)


def class_values(rows: list[Row], named: dict[str, int] | None, file: str) -> tuple[list[str], tuple]:
    """(class names from the background on, (stored value, class index) pairs) of masks that are scanned.

    named   foreground name -> stored value; None: masks of 0 and one other value have one class `foreground`, masks of
            0, 1, ..., n have classes `1` ... `n`
    DataError   values outside the map
    """
    seen = sorted({value for row in rows for value in row["present"]} - {0})
    if named is None:
        if len(seen) <= 1:
            return ["background", "foreground"], tuple((value, 1) for value in seen or [1])
        if seen == list(range(1, len(seen) + 1)):
            return ["background", *map(str, seen)], tuple((value, value) for value in seen)
        got = f"mask values 0, {', '.join(map(str, seen[:12]))}"
        fix = f"data.classes={{name: {seen[0]}, ...}}"
        raise DataError(file, got, "0 and one other, 0 to n without a gap, or names for them", fix)
    known = {0, *named.values()}
    faults = Faults(file)
    for row in rows:
        strange = sorted(set(row["present"]) - known)
        if strange:
            got = f"mask values {', '.join(map(str, strange[:8]))}"
            allowed = "0 (background), " + ", ".join(f"{value} ({name})" for name, value in named.items())
            faults.problems += DataError(row["read"].mask or row["id"], got, allowed, "data.classes").problems
    faults.check()
    return ["background", *named], tuple((value, i) for i, value in enumerate(named.values(), 1))


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
