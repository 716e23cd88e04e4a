"""Scores of the protein field, on plain arrays. What every field has is in core.bench.measures.

truth, prediction   (items,) numbers; or strings with one label per residue, "-" where a residue is not scored
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

UNSCORED = "-"


def agreement(truth: str, prediction: str) -> tuple[int, int]:
    """(right, scored) residues of one protein."""
    scored = [(t, p) for t, p in zip(truth, prediction, strict=True) if t != UNSCORED]
    return sum(t == p for t, p in scored), len(scored)


def spearman(truth: Sequence[float], prediction: Sequence[float]) -> tuple[float, bool]:
    """(rank correlation with averaged ties, constant?). Where a side is constant it is undefined: 0 and True."""
    from scipy import stats

    if np.ptp(truth) == 0 or np.ptp(prediction) == 0:
        return 0.0, True
    return float(stats.spearmanr(truth, prediction).statistic), False


def ndcg(truth: Sequence[float], prediction: Sequence[float], share: float = 0.1) -> float:
    """Normalised discounted cumulative gain of the best `share` of the items; 1 is a perfect top, 0 without a spread.

    gains    truth scaled to 0..1, so the worst item gains nothing (ProteinGym's rule)
    ties     items with equal predictions share their mean gain: an order among them would be luck
    """
    truth, prediction = np.asarray(truth, float), np.asarray(prediction, float)
    top = max(1, int(len(truth) * share))
    spread = np.ptp(truth)
    if spread == 0:
        return 0.0
    gains = (truth - truth.min()) / spread
    _, tie = np.unique(-prediction, return_inverse=True)
    shared = (np.bincount(tie, gains) / np.bincount(tie))[tie]
    discount = 1 / np.log2(np.arange(2, top + 2))
    best = np.sort(gains)[::-1][:top] @ discount
    return float(shared[np.argsort(tie, kind="stable")][:top] @ discount / best)


def recall_at(truth: Sequence[float], prediction: Sequence[float], share: float = 0.1) -> float:
    """How many of the best `share` of the items are in the predicted best `share`, 0..1."""
    top = max(1, int(len(truth) * share))
    best, chosen = np.argsort(truth, kind="stable")[-top:], np.argsort(prediction, kind="stable")[-top:]
    return len(set(best) & set(chosen)) / top


def contact_precision(
    contacts: Sequence[Sequence[int]], probability: np.ndarray, separation: int, divisor: int
) -> float | None:
    """Share of contacts among the most probable L / `divisor` pairs with |i - j| >= `separation`, None without one.

    contacts      0-based pairs       probability   (residues, residues), symmetric
    """
    length = len(probability)
    i, j = np.triu_indices(length, separation)
    if len(i) == 0:
        return None
    top = min(max(1, length // divisor), len(i))
    best = np.argsort(-probability[i, j], kind="stable")[:top]
    true = {(min(pair), max(pair)) for pair in map(tuple, contacts)}
    return sum((int(i[b]), int(j[b])) in true for b in best) / top
