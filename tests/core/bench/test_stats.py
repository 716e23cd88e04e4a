"""Intervals and tests against closed forms, scipy, and properties that any right implementation has."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from core.bench import stats

floats = st.floats(-100, 100, allow_nan=False)


def test_singleton_groups_are_scipys_bootstrap():
    values = np.random.default_rng(1).gamma(2.0, size=37)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=2000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    assert stats.bootstrap(values, range(37)) == pytest.approx(tuple(theirs), rel=1e-12)  # same generator, same draws
    assert stats.bootstrap(values, range(37), statistic=np.median) == pytest.approx(
        tuple(
            scipy.stats.bootstrap(
                (values,), np.median, n_resamples=2000, method="percentile", rng=np.random.default_rng(0)
            ).confidence_interval
        )
    )


def test_width_follows_the_number_of_groups_not_of_items():
    """50 copies of each of 20 values, grouped by value, know no more than the 20 values."""
    values = np.random.default_rng(2).normal(size=20)
    low, high = stats.bootstrap(np.repeat(values, 50), np.repeat(np.arange(20), 50))
    assert (low, high) == pytest.approx(stats.bootstrap(values, range(20)))
    assert high - low == pytest.approx(2 * 1.96 * values.std() / math.sqrt(20), rel=0.1)  # normal closed form; 3 % seen
    naive = stats.bootstrap(np.repeat(values, 50), range(1000))
    assert naive[1] - naive[0] < 0.25 * (high - low)


@settings(max_examples=30, deadline=None)
@given(st.lists(floats, min_size=4, max_size=12), floats, st.floats(0.1, 10))
def test_interval_moves_with_the_scores(values, shift, scale):
    groups = [i // 2 for i in range(len(values))]
    low, high = stats.bootstrap(values, groups, draws=200)
    assert min(values) - 1e-9 <= low <= high <= max(values) + 1e-9
    moved = stats.bootstrap(np.array(values) * scale + shift, groups, draws=200)
    assert moved == pytest.approx((low * scale + shift, high * scale + shift), abs=1e-6)


@pytest.mark.parametrize("groups", [[], ["a"], ["a"] * 9], ids=["none", "one item", "one group"])
def test_no_interval_without_two_groups(groups):
    assert stats.bootstrap(np.arange(len(groups)), groups) is None
    assert stats.bootstrap_rows(list(range(len(groups))), groups, len) is None


def test_rows_give_the_same_interval_as_the_fast_way():
    values, groups = np.random.default_rng(3).normal(size=30), [i % 7 for i in range(30)]
    slow = stats.bootstrap_rows(
        [{"v": v} for v in values], groups, lambda rows: np.mean([r["v"] for r in rows]), draws=2000
    )
    assert slow == pytest.approx(stats.bootstrap(values, groups), rel=1e-9)


def test_an_undefined_statistic_has_no_interval():
    rows = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]])  # constant truth: no correlation
    assert stats.bootstrap_rows(rows, [0, 1, 2], lambda r: float("nan")) is None


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(floats, st.integers(0, 6)), min_size=1, max_size=14))
def test_exact_p_is_every_sign_counted(pairs):
    """Few groups: the p value is the share of all 2^groups sign patterns at least as far from zero."""
    difference, groups = np.array([d for d, _ in pairs]), [g for _, g in pairs]
    sums = [math.fsum(d for d, h in pairs if h == g) for g in dict.fromkeys(groups)]
    observed = abs(math.fsum(sums))
    patterns = [
        abs(math.fsum(s * x for s, x in zip(signs, sums, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(sums))
    ]
    p, count = stats.sign_flip(difference, groups)
    assert count == len(sums)
    if all(abs(x - observed) > 1e-6 or x == observed for x in patterns):  # ties within rounding have no right answer
        assert p == pytest.approx(np.mean([x >= observed for x in patterns]))
    assert p >= 2 / 2**count - 1e-12 or count == 0


def test_random_p_agrees_with_scipy_and_with_the_exact_one():
    difference = np.random.default_rng(4).normal(0.35, 1, size=25)
    theirs = scipy.stats.permutation_test(
        (difference, np.zeros(25)),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        n_resamples=20_000,
        rng=np.random.default_rng(0),
    ).pvalue
    assert stats.sign_flip(difference, range(25))[0] == pytest.approx(theirs, abs=0.012)  # 0.002 seen
    exact = stats.sign_flip(difference[:12], range(12))[0]
    padded = stats.sign_flip(np.append(difference[:12], 0.0), range(13))[0]  # a zero group: drawn, not counted
    assert padded == pytest.approx(exact, abs=0.015)


def test_five_percent_of_equal_methods_look_different():
    generator = np.random.default_rng(5)
    ps = [stats.sign_flip(generator.normal(size=24), np.repeat(np.arange(8), 3))[0] for _ in range(2000)]
    assert 0.035 < np.mean(np.array(ps) < 0.05) < 0.06  # 2 * 6 / 256 = 0.047 is the exact test's true level


def test_a_shift_shared_by_a_cluster_is_one_observation():
    """40 items that agree, in 4 clusters: an item-wise test shouts, ours cannot."""
    a, b, clusters = np.ones(40), np.zeros(40), np.repeat(np.arange(4), 10)
    assert stats.paired(a, b, clusters).p == 2 / 2**4
    assert stats.verdict(stats.paired(a, b, clusters)) == "untested"
    test = stats.paired(a, b, range(40))
    assert stats.verdict(test) == "better" and stats.verdict(test, higher_is_better=False) == "worse"
    assert stats.verdict(test, p=0.05) == "tied"  # Holm's p rules


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(floats, floats), min_size=8, max_size=20))
def test_exchanging_the_methods_exchanges_the_verdict(pairs):
    a, b = np.array(pairs).T
    groups = range(len(a))
    there, back = stats.paired(a, b, groups, draws=500), stats.paired(b, a, groups, draws=500)
    assert there.p == back.p and there.difference == -back.difference
    opposite = {"better": "worse", "worse": "better", "tied": "tied"}
    assert stats.verdict(back) == opposite[stats.verdict(there)]
    assert stats.verdict(there, higher_is_better=False) == opposite[stats.verdict(there)]


def test_holm_by_hand_and_its_properties():
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # Holm's worked steps
    assert stats.holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.randoms())
def test_holm_lies_between_plain_and_bonferroni(ps, random):
    adjusted = stats.holm(ps)
    assert all(p <= q <= min(1, p * len(ps)) + 1e-12 for p, q in zip(ps, adjusted, strict=True))
    order = list(range(len(ps)))
    random.shuffle(order)
    assert stats.holm([ps[i] for i in order]) == pytest.approx([adjusted[i] for i in order])
