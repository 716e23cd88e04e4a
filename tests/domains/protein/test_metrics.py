"""Metrics against closed forms and other implementations."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats
from sklearn import metrics as sk

from core.bench import measures
from domains.protein import metrics


def test_agreement_counts_scored_residues_only():
    assert metrics.agreement("HHEC-", "HEEHH") == (2, 4)
    assert metrics.agreement("--", "HH") == (0, 0)


def test_spearman_ties_and_constants():
    """Closed form with ties: ranks 1.5, 1.5, 3 against 1, 2, 3 give sqrt(3) / 2."""
    value, constant = metrics.spearman([0, 0, 5], [1, 2, 3])
    assert value == pytest.approx(math.sqrt(3) / 2) and not constant
    assert metrics.spearman([1, 2, 3], [7, 7, 7]) == (0.0, True)
    assert metrics.spearman([1, 2, 3], [10, 100, 1000]) == (pytest.approx(1.0), False)


def test_ndcg_closed_form_and_sklearn():
    """Top 1 of 10: the gain of the chosen item over the best one's. Ties and longer tops: as scikit-learn."""
    truth = np.arange(10.0)
    chosen = np.zeros(10)
    chosen[6] = 1
    assert metrics.ndcg(truth, chosen) == pytest.approx(6 / 9)
    assert metrics.ndcg(truth, truth) == 1.0
    assert metrics.ndcg(truth, -truth) == 0.0
    rng = np.random.default_rng(0)
    for _ in range(20):
        t, p = rng.normal(size=200), np.round(rng.normal(size=200), 1)  # many ties
        gains = (t - t.min()) / np.ptp(t)
        assert metrics.ndcg(t, p) == pytest.approx(sk.ndcg_score([gains], [p], k=20), abs=1e-9)
    assert metrics.ndcg([1, 1, 1], [1, 2, 3]) == 0.0


def test_recall_at_ten_per_cent():
    truth = np.arange(20.0)
    guess = truth.copy()
    guess[19] = -1  # one of the two best is put last
    assert metrics.recall_at(truth, guess) == 0.5


@pytest.mark.parametrize("classes", [2, 4])
def test_classification_agrees_with_sklearn(classes):
    rng = np.random.default_rng(classes)
    truth = rng.integers(0, classes, 300)
    p = rng.dirichlet(np.ones(classes), 300)
    p[np.arange(300), truth] += 0.3
    p /= p.sum(1, keepdims=True)
    found, best = measures.classification(truth, p, classes), p.argmax(1)
    one_hot = np.eye(classes)[truth]
    auroc = sk.roc_auc_score(truth, p[:, 1]) if classes == 2 else sk.roc_auc_score(one_hot, p)
    auprc = sk.average_precision_score(truth, p[:, 1]) if classes == 2 else sk.average_precision_score(one_hot, p)
    expected = {
        "auroc": auroc,
        "auprc": auprc,
        "mcc": sk.matthews_corrcoef(truth, best),
        "balanced_accuracy": sk.balanced_accuracy_score(truth, best),
        "macro_f1": sk.f1_score(truth, best, average="macro"),
        "accuracy": sk.accuracy_score(truth, best),
    }
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-6), name


def test_a_class_without_items_is_undefined_not_zero():
    found = measures.classification([0, 0, 1], [[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.1, 0.8, 0.1]], 3)
    assert math.isnan(found["auroc"]) and found["balanced_accuracy"] == 1.0


def test_contact_precision_by_hand():
    """Ten residues, pairs at least 6 apart: of the two best (L/5) one is a contact, of the ten best (L) two are."""
    p = np.zeros((10, 10))
    for value, (i, j) in zip((0.9, 0.8, 0.7), ((0, 6), (1, 8), (2, 9)), strict=True):
        p[i, j] = p[j, i] = value
    p[0, 1] = p[1, 0] = 1.0  # neighbours are no answer
    true = [[6, 0], [2, 9], [3, 4]]
    assert metrics.contact_precision(true, p, 6, 5) == 0.5
    assert metrics.contact_precision(true, p, 6, 1) == 0.2
    assert metrics.contact_precision(true, p, 12, 5) is None


def test_headline_interval_draws_groups():
    """Two groups of equal items: a resample holds 0, 1 or 2 of the good one, so the interval is [0, 1]."""
    rows = [{"id": str(i), "group": str(i // 50), "score": float(i < 50)} for i in range(100)]
    assert measures.headline("q3", rows) == (0.0, 1.0)
    for row in rows:
        row["group"] = row["id"]
    low, high = measures.headline("q3", rows)
    assert 0.38 < low < 0.45 and 0.55 < high < 0.62  # binomial: .5 +- 1.96 * .05

    rng = np.random.default_rng(0)
    t = rng.normal(size=300)
    rows = [{"id": str(i), "group": str(i), "truth": a, "prediction": a + b} for i, (a, b) in
            enumerate(zip(t.tolist(), rng.normal(size=300).tolist(), strict=True))]  # fmt: skip
    low, high = measures.headline("spearman", rows)
    value = scipy_stats.spearmanr([r["truth"] for r in rows], [r["prediction"] for r in rows]).statistic
    assert low < value < high and high - low < 0.2
