"""Per-item predictions of one method, over its seeds, as something that can be tested against another method's.

A headline is comparable when it is a mean of per-item scores (`score` in every row of predictions.jsonl), or a rank or
linear correlation or AUROC of (truth, prediction). All of them are means of per-item *contributions*, so one exchange
test serves all: for a Spearman correlation item i contributes z(rank of truth) * z(rank of prediction). Exchanging two
methods' predictions of an item then flips the sign of its contribution to the difference.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from core.bench import stats
from core.errors import DataError

FILE = "predictions.jsonl"


@dataclass(frozen=True, eq=False)
class Scores:
    """One method's test predictions; items in the same order for every seed.

    ids, groups (items,)    contributions (items,) mean over seeds; their mean is the headline
    truth (items,), predictions (seeds, items)   only for statistics that are no plain mean, else None
    """

    ids: list[str]
    groups: list[str]
    contributions: np.ndarray
    kind: str = "mean"
    truth: np.ndarray | None = None
    predictions: np.ndarray | None = None

    @property
    def value(self) -> float:
        return float(self.contributions.mean())

    @cached_property
    def drawn(self) -> np.ndarray:
        return self.samples()

    def samples(self, *, draws: int = 2000, seed: int = 0) -> np.ndarray:
        """(draws,) cluster bootstrap of the headline's mean over seeds; equal groups and seed give equal draws."""
        if self.kind == "mean":
            return stats.weighted(self.groups, lambda W: W @ self.contributions / W.sum(1), draws=draws, seed=seed)
        each = [_KINDS[self.kind](self.truth, prediction) for prediction in self.predictions]
        return stats.weighted(self.groups, lambda W: np.mean([f(W) for f in each], 0), draws=draws, seed=seed)


def read_rows(directory: Path) -> list[dict[str, Any]]:
    """Rows of a run's predictions.jsonl, [] where there is none. DataError names file and line."""
    path = Path(directory) / FILE
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            row["id"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}:{number}", line[:80], "one JSON object per line, with an `id`") from error
        rows.append(row)
    return rows


def scores(metric: str, per_seed: Sequence[list[dict[str, Any]]]) -> Scores | None:
    """The comparable form of one method's rows (a list per seed), over the items that every seed has; None: has none.

    metric   name of the headline; decides the statistic where rows carry no `score`
    """
    tables = [{str(row["id"]): row for row in rows} for rows in per_seed if rows]
    if not tables:
        return None
    ids = sorted(set.intersection(*(set(table) for table in tables)))
    if not ids:
        return None
    scored = [i for i in ids if all(_finite(table[i].get("score")) for table in tables)]
    if scored:  # an item without a score (nothing in it was labelled) has no share in the mean
        return Scores(scored, _groups(tables[0], scored), _matrix(tables, scored, "score").mean(0))
    groups = _groups(tables[0], ids)
    kind = next((name for name in _KINDS if name in metric.lower()), None)
    truth, predictions = _matrix(tables[:1], ids, "truth"), _matrix(tables, ids, "prediction")
    if kind is None or truth is None or predictions is None:
        return None
    shares = [_contributions(kind, truth[0], prediction) for prediction in predictions]
    if any(share is None for share in shares):
        return None
    return Scores(ids, groups, np.mean(shares, 0), kind, truth[0], predictions)


def compare(a: Scores, b: Scores) -> stats.Paired | None:
    """Paired test of two methods over the items that both have; None where they cannot be paired."""
    if a.kind != b.kind:
        return None
    if a.ids != b.ids:
        both = sorted(set(a.ids) & set(b.ids))
        if not both:
            return None
        a, b = _only(a, both), _only(b, both)
    ends = stats.interval(a.drawn - b.drawn)
    low, high = ends if ends else (None, None)
    p, groups = stats.sign_flip(a.contributions - b.contributions, a.groups)
    return stats.Paired(a.value - b.value, low, high, p, groups)


def _only(a: Scores, ids: list[str]) -> Scores:
    """Scores on fewer items; a correlation's contributions change with the items, so they are taken anew."""
    at = {name: place for place, name in enumerate(a.ids)}
    keep = [at[name] for name in ids]
    groups = [a.groups[place] for place in keep]
    if a.kind == "mean":
        return Scores(ids, groups, a.contributions[keep])
    truth, predictions = a.truth[keep], a.predictions[:, keep]
    shares = [_contributions(a.kind, truth, prediction) for prediction in predictions]
    shares = [np.zeros(len(ids)) if share is None else share for share in shares]
    return Scores(ids, groups, np.mean(shares, 0), a.kind, truth, predictions)


def _groups(table: dict[str, dict], ids: list[str]) -> list[str]:
    return [str(table[i].get("group") or i) for i in ids]


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and bool(np.isfinite(value))


def _matrix(tables: list[dict[str, dict]], ids: list[str], field: str) -> np.ndarray | None:
    values = [[table[i].get(field) for i in ids] for table in tables]
    if not all(_finite(x) for row in values for x in row):
        return None
    return np.asarray(values, dtype=float)


def _contributions(kind: str, truth: np.ndarray, prediction: np.ndarray) -> np.ndarray | None:
    """(items,) with mean equal to the statistic; None where a side is constant and the statistic undefined."""
    ones = np.ones((1, len(truth)))
    x = truth if kind != "spearman" else midranks(truth)(ones)[0]
    y = prediction if kind == "pearson" else midranks(prediction)(ones)[0]
    x, y = x - x.mean(), y - y.mean()
    if not x.any() or not y.any():
        return None
    if kind == "auroc":
        positives = truth > truth.mean()
        return 0.5 + len(x) * x * y / (positives.sum() * (~positives).sum()) / np.ptp(truth)
    return x * y / (x.std() * y.std())


def midranks(x: np.ndarray):
    """`ranks(W)`: (draws, items) average ranks of x when item i occurs W[draw, i] times; ties share theirs."""
    order = np.argsort(x, kind="stable")
    first = np.flatnonzero(np.concatenate([[True], np.diff(x[order]) != 0]))
    last = np.append(first[1:], len(x)) - 1
    place = np.empty(len(x), dtype=np.int64)
    place[order] = np.repeat(np.arange(len(first)), last - first + 1)

    def ranks(W: np.ndarray) -> np.ndarray:
        upto = np.cumsum(W[:, order], 1)[:, last]
        before = np.concatenate([np.zeros((len(W), 1)), upto[:, :-1]], 1)
        return ((before + upto + 1) / 2)[:, place]

    return ranks


def _correlation(W: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(draws,) weighted Pearson correlation; x, y (items,) or (draws, items). NaN where a side is constant."""
    total = W.sum(1)
    x = x - ((W * x).sum(1) / total)[:, None]
    y = y - ((W * y).sum(1) / total)[:, None]
    scale = np.sqrt((W * x * x).sum(1) * (W * y * y).sum(1))
    return np.divide((W * x * y).sum(1), scale, out=np.full(len(W), np.nan), where=scale > 1e-12)


def _spearman(truth, prediction):
    of_truth, of_prediction = midranks(truth), midranks(prediction)
    return lambda W: _correlation(W, of_truth(W), of_prediction(W))


def _pearson(truth, prediction):
    return lambda W: _correlation(W, truth, prediction)


def _auroc(truth, prediction):
    ranks, positive = midranks(prediction), (truth > truth.mean()).astype(float)

    def area(W):
        pos, neg = W @ positive, W @ (1 - positive)
        above = (W * positive * ranks(W)).sum(1) - pos * (pos + 1) / 2
        return np.divide(above, pos * neg, out=np.full(len(W), np.nan), where=pos * neg > 0)

    return area


_KINDS = {"spearman": _spearman, "pearson": _pearson, "auroc": _auroc}
