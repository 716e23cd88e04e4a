"""Dynamic time warping: the cheapest way to walk through two sequences together. Sakoe and Chiba 1978."""

from __future__ import annotations

import numpy as np


def path(cost: np.ndarray, penalty: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Two index arrays of equal length, from (0, 0) to the last pair: steps (1, 1), (1, 0) and (0, 1).

    cost      (first, second) distance of every pair of frames
    penalty   added to every step that moves in one sequence only
    """
    rows, columns = cost.shape
    total = np.full((rows + 1, columns + 1), np.inf)
    total[0, 0] = 0.0
    for d in range(rows + columns - 1):  # anti-diagonals: all their cells at once
        i = np.arange(max(0, d - columns + 1), min(rows, d + 1))
        j = d - i
        before = np.minimum(total[i, j], np.minimum(total[i, j + 1], total[i + 1, j]) + penalty)
        total[i + 1, j + 1] = cost[i, j] + before
    return _back(total, penalty)


def _back(total: np.ndarray, penalty: float) -> tuple[np.ndarray, np.ndarray]:
    i, j = total.shape[0] - 1, total.shape[1] - 1
    steps = []
    while i and j:
        steps.append((i - 1, j - 1))
        both, down, right = total[i - 1, j - 1], total[i - 1, j] + penalty, total[i, j - 1] + penalty
        if both <= down and both <= right:
            i, j = i - 1, j - 1
        elif down <= right:
            i -= 1
        else:
            j -= 1
    first, second = np.array(steps[::-1]).T
    return first, second


def distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(first, second) Euclidean distances of two (frames, coefficients) sequences."""
    square = (first**2).sum(1)[:, None] + (second**2).sum(1)[None] - 2 * first @ second.T
    return np.sqrt(np.maximum(square, 0))
