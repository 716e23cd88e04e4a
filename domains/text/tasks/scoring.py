"""All text metrics of generated rows; the headline's interval is over groups of items.

row     prediction, stopped, and truth (references), slots where there are any
"""

from __future__ import annotations

from typing import Any

import numpy as np

from core.bench import measures, stats
from core.contracts import Metric
from domains.text import metrics


def written(rows: list[dict[str, Any]], headline: str) -> dict[str, Metric]:
    """rouge_l, bleu, exact of rows with references; slot_recall, slot_error_rate of rows with slots; stop_rate,
    length_ratio, distinct_2. `row["score"]` is the row's share of the headline, where that is a mean."""
    answered = [row for row in rows if row.get("truth")]
    with_slots = [row for row in rows if row.get("slots")]
    each = {
        "rouge_l": lambda row: metrics.rouge_l(row["prediction"], row["truth"]) if row.get("truth") else None,
        "exact": lambda row: float(metrics.exact(row["prediction"], row["truth"])) if row.get("truth") else None,
        "slot_recall": lambda row: metrics.slot_recall(row["prediction"], row["slots"]) if row.get("slots") else None,
    }
    found = {}
    for name, measure in each.items():
        values = [measure(row) for row in rows]
        if all(value is None for value in values):
            continue
        found[name] = measures.mean(values)
        if name == headline:
            for row, value in zip(rows, values, strict=True):
                row["score"] = value
            found[name] = found[name]._replace(ci95=measures.headline(name, rows))
    if answered:
        found["bleu"] = _bleu(answered, headline == "bleu")
        texts = [row["prediction"] for row in answered], [row["truth"] for row in answered]
        found["length_ratio"] = Metric(metrics.length_ratio(*texts), n=len(answered))
    if with_slots:
        found["slot_error_rate"] = _slot_errors(with_slots)
    found["stop_rate"] = measures.mean([float(row["stopped"]) for row in rows])
    found["distinct_2"] = Metric(metrics.distinct([row["prediction"] for row in rows], 2), n=len(rows))
    if headline not in found:  # nothing to compare with: the headline is unknown, not absent
        found[headline] = Metric(float("nan"))
    return found


def _slot_errors(rows: list[dict[str, Any]]) -> Metric:
    """(missing + invented) / slots; invented are values that other rows have."""
    values: dict[str, set[str]] = {}
    for row in rows:
        for name, value in row["slots"].items():
            values.setdefault(name, set()).add(value)
    wrong = sum(sum(metrics.slot_errors(row["prediction"], row["slots"], values)) for row in rows)
    return Metric(wrong / sum(len(row["slots"]) for row in rows), "", False, len(rows))


def _bleu(rows: list[dict[str, Any]], interval: bool) -> Metric:
    """Corpus BLEU; its interval adds up the n-gram counts of the texts drawn, with sacrebleu's own formula."""
    value = metrics.bleu([row["prediction"] for row in rows], [row["truth"] for row in rows])
    metric = Metric(value, n=len(rows))
    if not interval:
        return metric
    from sacrebleu.metrics import BLEU

    one = BLEU(effective_order=False)
    parts = [one.sentence_score(row["prediction"], row["truth"]) for row in rows]
    counts = np.array([[*part.counts, *part.totals, part.sys_len, part.ref_len] for part in parts], float)

    def drawn(weights: np.ndarray) -> np.ndarray:
        sums = np.rint(weights @ counts).astype(int).tolist()
        return np.array([BLEU.compute_bleu(s[:4], s[4:8], s[8], s[9], smooth_method="exp").score for s in sums])

    groups = [row.get("group", row["id"]) for row in rows]
    ends = stats.interval(stats.weighted(groups, drawn, draws=1000, seed=0))
    return metric._replace(ci95=ends)
