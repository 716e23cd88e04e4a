"""Scores of medical images, on plain arrays. Distances are in mm: spacing is part of every mask.

Empty masks   both empty: no score, counted as empty. One empty (a structure missed, or seen where there is none):
              Dice 0, surface agreement 0, and as distance the worst that the image allows, its diagonal. Libraries drop
              these cases as NaN, and a model then gets better by finding less.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Overlap(NamedTuple):
    """Voxels of a class in the truth, in the prediction, and in both."""

    truth: int
    prediction: int
    both: int

    @property
    def state(self) -> str:
        """scored | missed (in the truth alone) | fp (in the prediction alone) | empty"""
        if self.truth and self.prediction:
            return "scored"
        return "missed" if self.truth else "fp" if self.prediction else "empty"

    @property
    def dice(self) -> float | None:
        """2 |A and B| / (|A| + |B|); None where both are empty."""
        return 2 * self.both / (self.truth + self.prediction) if self.truth or self.prediction else None

    @property
    def iou(self) -> float | None:
        """|A and B| / |A or B|; None where both are empty."""
        union = self.truth + self.prediction - self.both
        return self.both / union if union else None


def overlap(truth: np.ndarray, prediction: np.ndarray) -> Overlap:
    """truth, prediction   (*spatial) bool"""
    return Overlap(int(truth.sum()), int(prediction.sum()), int((truth & prediction).sum()))


def surfaces(
    truth: np.ndarray, prediction: np.ndarray, spacing: Sequence[float], tolerance: float
) -> tuple[float | None, float | None]:
    """(HD95 in mm, normalised surface agreement at `tolerance` mm), None for both where both masks are empty.

    truth, prediction   (*spatial) bool       spacing   mm per voxel along each axis
    HD95                the larger of the two 95th percentiles of distances from one surface to the other
    Sources             Huttenlocher 1993; Nikolov et al. 2021, arXiv 1809.04430 (every surface voxel weighs the same)
    """
    if not truth.any() and not prediction.any():
        return None, None
    if not truth.any() or not prediction.any():
        return diagonal(truth.shape, spacing), 0.0
    there, back = _distances(truth, prediction, spacing)
    near = (there <= tolerance).sum() + (back <= tolerance).sum()
    return float(max(np.percentile(there, 95), np.percentile(back, 95))), float(near / (len(there) + len(back)))


def diagonal(shape: Sequence[int], spacing: Sequence[float]) -> float:
    """Length of an image's diagonal in mm."""
    return float(np.linalg.norm(np.multiply(shape, spacing)))


def _distances(truth: np.ndarray, prediction: np.ndarray, spacing: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Distances in mm from every surface voxel of each mask to the other's surface, inside their bounding box."""
    from scipy import ndimage

    box = ndimage.find_objects((truth | prediction).astype(np.uint8))[0]
    edges = []
    for mask in (truth[box], prediction[box]):
        mask = np.pad(mask, 1)
        edges.append(mask & ~ndimage.binary_erosion(mask))
    a, b = edges
    to_a, to_b = (ndimage.distance_transform_edt(~edge, sampling=spacing) for edge in edges)
    return to_b[a], to_a[b]


def calibration(correct: Sequence[float], confidence: Sequence[float], bins: int = 15) -> float:
    """Expected calibration error: mean over `bins` bins of equally many items of |share right - mean confidence|,
    weighted by their items.    Nixon et al. 2019, arXiv 1904.01685 (bins of equal mass)

    correct      1 where the predicted class is right (or, of two classes, where the item is positive), else 0
    confidence   the probability that goes with it
    """
    order = np.argsort(confidence, kind="stable")
    right, sure = np.asarray(correct, float)[order], np.asarray(confidence, float)[order]
    parts = [part for part in np.array_split(np.arange(len(order)), bins) if len(part)]
    return float(sum(len(p) * abs(right[p].mean() - sure[p].mean()) for p in parts) / max(1, len(order)))


def brier(truth: Sequence[int], probabilities: Sequence[Sequence[float]]) -> float:
    """Mean squared distance of the probabilities from the truth, summed over classes; for two classes of the positive
    one alone (Brier 1950 halved), so that 0.25 is a coin's."""
    p = np.asarray(probabilities, float)
    hot = np.eye(p.shape[1])[np.asarray(truth)]
    squared = (p - hot) ** 2
    return float((squared[:, 1] if p.shape[1] == 2 else squared.sum(1)).mean())
