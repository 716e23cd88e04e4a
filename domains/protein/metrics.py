"""Scores of the protein field, on plain arrays. Rank and threshold metrics come from scipy and torchmetrics.

truth, prediction   (items,) numbers; or strings with one label per residue, "-" where a residue is not scored
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from core.contracts import Metric

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


def classification(truth: Sequence[int], probabilities: Sequence[Sequence[float]], classes: int) -> dict[str, float]:
    """auroc, auprc, mcc, balanced_accuracy, macro_f1, accuracy. Two classes: the second is the positive one; more: one
    against the rest, averaged over classes. A class that never occurs in
    `truth` leaves auroc and auprc undefined (NaN)."""
    import torch
    from torchmetrics.functional import classification as tm

    p, t = torch.as_tensor(np.asarray(probabilities), dtype=torch.float64), torch.as_tensor(np.asarray(truth))
    chosen, k = p.argmax(1), {"num_classes": classes}
    complete = len(t.unique()) == classes
    nan = float("nan")
    if classes == 2:
        auroc = tm.binary_auroc(p[:, 1], t).item() if complete else nan
        auprc = tm.binary_average_precision(p[:, 1], t).item() if complete else nan
    else:
        auroc = tm.multiclass_auroc(p, t, **k).item() if complete else nan
        auprc = tm.multiclass_average_precision(p, t, **k).item() if complete else nan
    return {
        "auroc": auroc,
        "auprc": auprc,
        "mcc": tm.multiclass_matthews_corrcoef(chosen, t, **k).item(),
        "balanced_accuracy": _recall(t, chosen),
        "macro_f1": tm.multiclass_f1_score(chosen, t, average="macro", **k).item(),
        "accuracy": tm.multiclass_accuracy(chosen, t, average="micro", **k).item(),
    }


def _recall(truth, chosen) -> float:
    """Mean over the classes that occur of the share found; torchmetrics counts absent classes as 0."""
    return float(np.mean([(chosen[truth == c] == c).double().mean().item() for c in truth.unique()]))


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


def headline(name: str, rows: list[dict[str, Any]]) -> tuple[float, float] | None:
    """95 % interval of a headline over groups of items: of a mean of `score`, or of a correlation or AUROC of (truth,
    prediction), which the name says."""
    from core.bench import scores, stats

    found = scores.scores(name, [rows])
    return stats.interval(found.samples()) if found is not None else None


def mean(values: Sequence[float | None], unit: str = "", *, better: bool = True) -> Metric:
    """The mean of the values that exist, NaN where none does."""
    known = [v for v in values if v is not None]
    return Metric(float(np.mean(known)) if known else float("nan"), unit, better, len(known))
