"""What predictions become before they are compared: contributions whose mean is the headline, draws that are exact."""

import json

import numpy as np
import pytest
import scipy.stats

from core.bench import scores as sc
from core.bench import stats
from core.errors import DataError


def rows(truth, prediction, **more):
    return [
        {"id": f"i{n}", "group": f"g{n // 2}", "truth": t, "prediction": p, **{k: v[n] for k, v in more.items()}}
        for n, (t, p) in enumerate(zip(truth, prediction, strict=True))
    ]


def auroc(truth, prediction):
    pos, neg = prediction[truth == 1], prediction[truth == 0]
    return scipy.stats.mannwhitneyu(pos, neg).statistic / (len(pos) * len(neg))


ORACLES = {
    "spearman": lambda t, p: scipy.stats.spearmanr(t, p).statistic,
    "pearson": lambda t, p: scipy.stats.pearsonr(t, p).statistic,
    "auroc": auroc,
}


def problem(name, n=60, seed=0):
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, 2, n).astype(float) if name == "auroc" else generator.normal(size=n).round(1)
    return truth, (truth + generator.normal(size=n)).round(1)  # rounded: ties on both sides


@pytest.mark.parametrize("name", ORACLES)
def test_contributions_average_to_the_statistic(name):
    truth, prediction = problem(name)
    found = sc.scores(name, [rows(truth, prediction)])
    assert found.value == pytest.approx(ORACLES[name](truth, prediction), abs=1e-12)


@pytest.mark.parametrize("name", ORACLES)
def test_draws_are_the_statistic_of_the_drawn_items(name):
    """Weighted ranks equal scipy's on the really repeated items."""
    truth, prediction = problem(name)
    found = sc.scores(name, [rows(truth, prediction)])
    order = [int(i[1:]) for i in found.ids]
    both = np.c_[truth, prediction][order]
    slow = stats.bootstrap_rows(both, found.groups, lambda r: ORACLES[name](r[:, 0], r[:, 1]), draws=200)
    assert stats.interval(found.samples(draws=200)) == pytest.approx(slow, abs=1e-9)


def test_seeds_are_averaged_per_item_and_a_seed_is_not_an_item():
    a, b = [0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]
    found = sc.scores("accuracy", [rows(a, a, score=a), rows(a, a, score=b)])
    assert found.contributions.tolist() == [0.5, 1.0, 0.5, 0.0] and found.value == 0.5 and len(found.groups) == 4
    truth, prediction = problem("spearman")
    other = prediction[::-1].copy()
    mean = (ORACLES["spearman"](truth, prediction) + ORACLES["spearman"](truth, other)) / 2
    two = sc.scores("spearman", [rows(truth, prediction), rows(truth, other)])
    assert two.value == pytest.approx(mean)  # the mean of the seeds' scores, not the score of the mean prediction
    each = [sc.scores("spearman", [rows(truth, p)]).samples(draws=50) for p in (prediction, other)]
    assert two.samples(draws=50) == pytest.approx((each[0] + each[1]) / 2)


def test_an_item_without_a_score_has_no_share():
    found = sc.scores("q3", [rows("abc", "abc", score=[1.0, None, 0.0]), rows("abc", "abc", score=[0.0, 1.0, 0.0])])
    assert found.ids == ["i0", "i2"] and found.value == 0.25


def test_comparison_is_by_id_and_on_shared_items():
    truth, prediction = problem("spearman")
    good, shuffled = rows(truth, truth), rows(truth, prediction)
    ours = sc.scores("spearman", [good])
    test = sc.compare(ours, sc.scores("spearman", [list(reversed(shuffled))[:50]]))
    kept = truth[10:], prediction[10:]
    assert test.difference == pytest.approx(1 - ORACLES["spearman"](*kept))
    assert stats.verdict(test) == "better" and test.low > 0 and test.groups == 25
    assert sc.compare(ours, ours).p == 1.0


def test_nothing_is_compared_that_has_no_form():
    assert sc.scores("f1_macro", [rows(["H"], ["E"])]) is None
    assert sc.scores("spearman", [rows([1.0, 2.0], [3.0, 3.0])]) is None  # constant prediction: undefined
    assert sc.scores("accuracy", []) is None


def test_a_broken_line_is_named(tmp_path):
    (tmp_path / sc.FILE).write_text(json.dumps({"id": "a"}) + "\n{broken\n")
    with pytest.raises(DataError, match=r"predictions\.jsonl:2"):
        sc.read_rows(tmp_path)
