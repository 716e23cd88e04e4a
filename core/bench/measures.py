"""Measures that every field shares, on plain arrays. Threshold metrics come from torchmetrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from core.bench import scores, stats
from core.contracts import Metric


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


def class_row(
    classes: Sequence[str], identity: str, probabilities: Sequence[float], truth: int | None
) -> dict[str, Any]:
    """A prediction row of one item. Two classes: truth 0 or 1, prediction the probability of the second; more: both are
    names. `probabilities` in the order of the classes, always."""
    binary = len(classes) == 2
    row = {
        "id": identity,
        "prediction": probabilities[1] if binary else named(classes, probabilities),
        "probabilities": list(probabilities),
    }
    return row if truth is None else {**row, "truth": truth if binary else classes[truth]}


def named(classes: Sequence[str], probabilities: Sequence[float]) -> str:
    """The likeliest class; of equals the first."""
    return classes[max(range(len(probabilities)), key=probabilities.__getitem__)]


def score_classes(rows: list[dict[str, Any]], classes: Sequence[str], headline_name: str) -> dict[str, Metric]:
    """What `classification` gives over `class_row`s, the headline first and with its interval. With more than two
    classes each row's `score` is its share of the balanced accuracy."""
    k = len(classes)
    truth = [row["truth"] if k == 2 else classes.index(row["truth"]) for row in rows]
    found = classification(truth, [row["probabilities"] for row in rows], k)
    if k > 2:
        share_recall(rows, truth)
    out = {key: Metric(value, n=len(rows)) for key, value in found.items()}
    first = out.pop(headline_name)._replace(ci95=headline(headline_name, rows))
    return {headline_name: first, **out}


def share_recall(rows: list[dict[str, Any]], truth: Sequence[int]) -> None:
    """`score` = right / (classes that occur * relative frequency of the row's class): its mean over rows is the
    balanced accuracy."""
    frequency = {t: truth.count(t) / len(truth) for t in set(truth)}
    for row, t in zip(rows, truth, strict=True):
        row["score"] = (row["prediction"] == row["truth"]) / (len(frequency) * frequency[t])


def _recall(truth, chosen) -> float:
    """Mean over the classes that occur of the share found; torchmetrics counts absent classes as 0."""
    return float(np.mean([(chosen[truth == c] == c).double().mean().item() for c in truth.unique()]))


def headline(name: str, rows: list[dict[str, Any]]) -> tuple[float, float] | None:
    """95 % interval of a headline over groups of items: of a mean of `score`, or of a correlation or AUROC of (truth,
    prediction), which the name says."""
    found = scores.scores(name, [rows])
    return stats.interval(found.samples()) if found is not None else None


def mean(values: Sequence[float | None], unit: str = "", *, better: bool = True) -> Metric:
    """The mean of the values that exist, NaN where none does."""
    known = [v for v in values if v is not None]
    return Metric(float(np.mean(known)) if known else float("nan"), unit, better, len(known))
