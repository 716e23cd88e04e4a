"""Label masks as text: run lengths, so that a prediction row holds the whole mask and JSON stays small.

encode([[0, 0, 1], [1, 1, 0]])  ->  {"shape": [2, 3], "runs": [0, 2, 1, 3, 0, 1]}       label, length, label, ...
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from core.errors import DataError


def encode(mask: np.ndarray) -> dict[str, list[int]]:
    """shape and runs of an integer mask, in row-major order."""
    flat = np.asarray(mask).reshape(-1)
    starts = np.flatnonzero(np.r_[True, flat[1:] != flat[:-1]]) if flat.size else np.zeros(0, int)
    lengths = np.diff(np.r_[starts, flat.size])
    return {"shape": list(np.shape(mask)), "runs": np.stack([flat[starts], lengths], 1).reshape(-1).tolist()}


def decode(text: Mapping[str, Sequence[int]]) -> np.ndarray:
    """(*shape) int64. DataError: the runs do not fill the shape."""
    pairs = np.asarray(text["runs"], np.int64).reshape(-1, 2)
    if pairs[:, 1].sum() != np.prod(text["shape"], dtype=np.int64):
        raise DataError("mask", f"runs of {pairs[:, 1].sum()} voxels", f"shape {list(text['shape'])}")
    return np.repeat(pairs[:, 0], pairs[:, 1]).reshape(text["shape"])


def is_mask(value: Any) -> bool:
    """Whether a row's field is an encoded mask."""
    return isinstance(value, Mapping) and {"shape", "runs"} <= value.keys()
