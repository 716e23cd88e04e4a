"""Items to batches, the same for every task, and the checks that need items and network together.

Batch    ids; image (batch, channels, *spatial) float32; sizes: spatial shape of each image before padding; spacing: mm
         per voxel of each; windows: True where the network has to look at the images through a window
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from core.contracts import Backbone, Data
from core.errors import ConfigError, Problem, refuse

SPLITS = ("train", "val", "test")


def read(items: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(arrays of each item as its reader gives them, batch of the images)."""
    arrays = [item["read"]() for item in items]
    silent = [item["id"] for item, a in zip(items, arrays, strict=True) if not a.get("spacing")]
    refuse([Problem(f"{name}: spacing", "missing", "mm per voxel along each axis", "data.spacing") for name in silent])
    return arrays, {
        "ids": [str(item["id"]) for item in items],
        "image": stacked([a["image"] for a in arrays]),
        "sizes": [tuple(a["image"].shape[1:]) for a in arrays],
        "spacing": [tuple(map(float, a["spacing"])) for a in arrays],
    }


def stacked(arrays: Sequence[np.ndarray]) -> torch.Tensor:
    """(batch, *largest shape): smaller arrays are filled up with their least value at the end of each axis."""
    shape = np.max([a.shape for a in arrays], axis=0)
    room = [[(0, n - m) for n, m in zip(shape, a.shape, strict=True)] for a in arrays]
    out = [np.pad(a, ends, constant_values=a.min()) for a, ends in zip(arrays, room, strict=True)]
    return torch.from_numpy(np.stack(out))


def every(data: Data) -> Iterable[tuple[str, dict[str, Any]]]:
    """(split, item) of all splits."""
    for split in SPLITS:
        for item in data.items(split):
            yield split, item


def check_images(data: Data, backbone: Backbone) -> None:
    """ConfigError where the network cannot read the images' channels or dimensions."""
    for _, item in every(data):
        if problem := backbone.refuses((item["channels"], *item["shape"])):
            raise ConfigError(problems=[problem._replace(where=f"{problem.where}, {item['id']}")])


def check_sizes(data: Data, backbone: Backbone) -> None:
    """ConfigError where a whole image, or the crop of a training image, is of a size that the network cannot take."""
    for _, item in every(data):
        if problem := misfit(backbone, training_size(item)):
            raise ConfigError(problems=[problem._replace(where=f"{problem.where}, {item['id']}")])


def misfit(backbone: Backbone, size: tuple[int, ...]) -> Problem | None:
    """Why one forward pass over an image of this size is impossible, or None."""
    return backbone.misfit(size) if hasattr(backbone, "misfit") else None


class Loading:
    """Arrays of a test image by its id, for pictures."""

    def __init__(self, data: Data):
        self.data = data

    def __call__(self, identity: str) -> dict[str, Any]:
        return next(item for item in self.data.items("test") if str(item["id"]) == identity)["read"]()


def training_size(item: dict[str, Any]) -> tuple[int, ...]:
    """Spatial shape of an item as training sees it: of the crop, where the data crops."""
    patch = getattr(getattr(item["read"], "augment", None), "patch", None)
    return tuple(patch or item["shape"])
