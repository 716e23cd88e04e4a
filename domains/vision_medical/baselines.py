"""Predictors that need no network, on the same test items: what a score has to beat."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from core.contracts import Data

Rows = dict[str, list[dict[str, Any]]]
SIDE = 12  # images are shrunk to so many pixels a side before the logistic regression
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)  # of its penalty; validation chooses


def classes(data: Data, names: Sequence[str], row: Callable[[str, list[float], int | None], dict]) -> Rows:
    """name -> prediction rows on test: `prior`, the shares of the classes in train; `pixels_logistic`, a logistic
    regression on images of 12 x 12 pixels.

    row   (id, probabilities, index of the true class) -> a prediction row
    """
    truth = {
        split: np.array([names.index(str(i["label"])) for i in data.items(split)]) for split in ("train", "val", "test")
    }
    share = np.bincount(truth["train"], minlength=len(names)) / len(truth["train"])
    test = list(data.items("test"))
    found = {"prior": np.tile(share, (len(test), 1)), "pixels_logistic": _logistic(data, truth, len(names))}
    return {
        key: [
            {**row(str(i["id"]), list(map(float, p)), int(t)), "group": str(i["group"])}
            for i, p, t in zip(test, table, truth["test"], strict=True)
        ]
        for key, table in found.items()
    }


def _logistic(data: Data, truth: dict[str, np.ndarray], count: int) -> np.ndarray:
    """(test items, classes) probabilities of the strength with the best validation loss."""
    from sklearn.linear_model import LogisticRegression

    x = {
        split: np.stack([small(data.load(i)["image"]) for i in data.items(split)])
        for split in truth
        if len(truth[split])
    }
    mean, deviation = x["train"].mean(0), x["train"].std(0) + 1e-6
    x = {split: (values - mean) / deviation for split, values in x.items()}
    best, out = np.inf, None
    for strength in STRENGTHS:
        model = LogisticRegression(C=strength, max_iter=300).fit(x["train"], truth["train"])
        p = {split: np.full((len(x[split]), count), 1e-6) for split in ("val", "test") if split in x}
        for split, table in p.items():
            table[:, model.classes_] = model.predict_proba(x[split])
        held = "val" if "val" in p else "test"
        loss = -np.log(p[held][np.arange(len(truth[held])), truth[held]] + 1e-9).mean() if "val" in p else strength
        if loss < best:
            best, out = loss, p["test"]
    return out


def small(image: np.ndarray) -> np.ndarray:
    """(n,) grey values of the image shrunk to 12 pixels (a volume: 6 voxels) a side."""
    import torch
    import torch.nn.functional as F

    grey = torch.from_numpy(image).mean(0)[None, None]
    if grey.ndim == 4:
        return F.adaptive_avg_pool2d(grey, SIDE).flatten().numpy()
    return F.adaptive_avg_pool3d(grey, SIDE // 2).flatten().numpy()


def masks(data: Data, names: Sequence[str], row: Callable[..., dict]) -> Rows:
    """name -> prediction rows on test: `mean_mask`, at each place the commonest class of the training masks there
    (brought to the image's size); `threshold`, where there is one class, Otsu's grey value of each image.

    row   (id, predicted mask, true mask, spacing) -> a prediction row
    """
    train = [data.load(item) for item in data.items("train")]
    bright = sum(map(_bright, train)) >= len(train) / 2
    share = functools.lru_cache(maxsize=4)(lambda shape: place(train, len(names), shape).argmax(0).astype(np.int64))
    found: Rows = {"mean_mask": []} | ({"threshold": []} if len(names) == 2 else {})
    for item in data.items("test"):
        read = data.load(item)
        guesses = {"mean_mask": share(read["mask"].shape)}
        if "threshold" in found:
            grey = read["image"].mean(0)
            guesses["threshold"] = (bright == (grey > otsu(grey))).astype(np.int64)
        for key, guess in guesses.items():
            made = row(str(item["id"]), guess, read["mask"], read["spacing"])
            found[key].append({**made, "group": str(item["group"])})
    return found


def place(train: list[dict[str, Any]], count: int, shape: tuple[int, ...]) -> np.ndarray:
    """(classes, *shape) how often each class is at each place of the training masks."""
    from domains.vision_medical.data.prepare import resized

    total = np.zeros((count, *shape), np.float32)
    for read in train:
        hot = np.stack([read["mask"] == k for k in range(count)]).astype(np.float32)
        total += hot if hot.shape[1:] == shape else resized(hot, shape)
    return total


def _bright(read: dict[str, Any]) -> bool:
    """Whether this image's foreground is brighter than its background."""
    grey, at = read["image"].mean(0), read["mask"] > 0
    return bool(at.any() and not at.all() and grey[at].mean() > grey[~at].mean())


def otsu(grey: np.ndarray, bins: int = 128) -> float:
    """The grey value that parts two classes best: largest variance between them.    Otsu 1979"""
    counts, edges = np.histogram(grey, bins)
    centres = (edges[1:] + edges[:-1]) / 2
    weight, mass = np.cumsum(counts), np.cumsum(counts * centres)
    rest = weight[-1] - weight
    with np.errstate(divide="ignore", invalid="ignore"):
        between = weight * rest * (mass / weight - (mass[-1] - mass) / rest) ** 2
    return float(edges[1:][np.nanargmax(np.where(rest > 0, between, np.nan))])
