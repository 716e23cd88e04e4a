"""Is it better, and how sure? Intervals and tests that respect clusters, and the only source of verdict words.

Items of one group (family, patient, voice) are not independent: whole groups are drawn, whole groups flip.
Bootstrap: percentile interval over groups drawn with replacement, the statistic taken over all items of the draw.
Test: paired sign flips of whole groups, exact up to 12 groups (Fisher's randomisation test); Holm 1979 over methods.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

ALPHA = 0.05
FEWEST = 6  # groups: below it the smallest two-sided p, 2 / 2^groups, is above 0.05, so no test can speak
_EXACT = 12
_CELLS = 4_000_000  # numbers held at once while drawing


class Paired(NamedTuple):
    """difference = mean(a) - mean(b) over paired items, its 95 % interval (None: too few groups), two-sided p."""

    difference: float
    low: float | None
    high: float | None
    p: float
    groups: int


def bootstrap(
    values: Any, groups: Sequence[Any], *, statistic: Callable = np.mean, draws: int = 2000, seed: int = 0
) -> tuple[float, float] | None:
    """95 % interval of `statistic` over items drawn by group; None where fewer than two groups make it meaningless.

    values   (items,) one score per item       groups   (items,) any hashable, the unit that is drawn
    statistic   array of values -> number; the mean is taken without a loop
    """
    values = np.asarray(values, dtype=float)
    if statistic is not np.mean:
        return bootstrap_rows(values, groups, statistic, draws=draws, seed=seed)
    return interval(weighted(groups, lambda W: W @ values / W.sum(1), draws=draws, seed=seed))


def bootstrap_rows(
    rows: Any, groups: Sequence[Any], statistic: Callable, *, draws: int = 1000, seed: int = 0
) -> tuple[float, float] | None:
    """95 % interval of any statistic of rows, such as a rank correlation of (truth, prediction) rows.

    rows   array with items along its first axis, or a list; `statistic` gets the drawn rows in the same form
    Draws in which the statistic is undefined (NaN) are left out; None where more than one in twenty is.
    """
    members = _members(groups)
    if len(members) < 2:
        return None
    pick = (lambda at: rows[at]) if isinstance(rows, np.ndarray) else (lambda at: [rows[i] for i in at])
    generator = np.random.default_rng(seed)
    chosen = generator.integers(0, len(members), (draws, len(members)))
    return interval(np.array([statistic(pick(np.concatenate([members[g] for g in draw]))) for draw in chosen]))


def weighted(groups: Sequence[Any], statistic: Callable, *, draws: int = 2000, seed: int = 0) -> np.ndarray:
    """(draws,) values of a statistic of item multiplicities: `statistic(W (draws, items)) -> (draws,)`.

    Equal seed and groups give equal draws, so two methods' arrays may be subtracted: that is the paired bootstrap.
    Empty where fewer than two groups exist.
    """
    index, count = _index(groups)
    if count < 2:
        return np.empty(0)
    generator = np.random.default_rng(seed)
    chosen = generator.integers(0, count, (draws, count))
    step = max(1, _CELLS // len(index))
    found = []
    for first in range(0, draws, step):
        part = chosen[first : first + step]
        times = np.zeros((len(part), count))
        np.add.at(times, (np.arange(len(part))[:, None], part), 1.0)
        found.append(statistic(times[:, index]))
    return np.concatenate(found)


def interval(samples: np.ndarray) -> tuple[float, float] | None:
    """Central 95 % of bootstrap samples; None where they are empty or undefined in more than one of twenty."""
    known = samples[np.isfinite(samples)]
    if len(samples) == 0 or len(known) < 0.95 * len(samples):
        return None
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)


def paired(a: Any, b: Any, groups: Sequence[Any], *, draws: int = 10_000, seed: int = 0) -> Paired:
    """Paired comparison of two methods' per-item scores, (items,) each in the same order, by group."""
    difference = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    ends = bootstrap(difference, groups, seed=seed)
    low, high = ends if ends else (None, None)
    p, count = sign_flip(difference, groups, draws=draws, seed=seed)
    return Paired(float(difference.mean()), low, high, p, count)


def sign_flip(
    difference: np.ndarray, groups: Sequence[Any], *, draws: int = 10_000, seed: int = 0
) -> tuple[float, int]:
    """(two-sided p, groups): how often a random exchange of the two methods within groups differs at least as much."""
    index, count = _index(groups)
    sums = np.bincount(index, weights=difference, minlength=count)
    observed = abs(sums.sum()) * (1 - 1e-9)  # the same sum in another order may differ in the last bits
    if observed == 0:
        return 1.0, count
    if count <= _EXACT:
        bits = (np.arange(2**count)[:, None] >> np.arange(count)) & 1
        return float(np.mean(np.abs((1 - 2 * bits) @ sums) >= observed)), count
    generator = np.random.default_rng(seed)
    step = max(1, _CELLS // count)
    reached = 0
    for first in range(0, draws, step):
        signs = 1 - 2 * generator.integers(0, 2, (min(step, draws - first), count), dtype=np.int8)
        reached += int(np.sum(np.abs(signs @ sums) >= observed))
    return (1 + reached) / (1 + draws), count


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values, in the given order: below 0.05, all findings together err in 5 % of cases."""
    ps = np.asarray(ps, dtype=float)
    order = np.argsort(ps, kind="stable")
    factors = np.arange(len(ps), 0, -1)
    adjusted = np.minimum(1.0, np.maximum.accumulate(factors * ps[order])) if len(ps) else ps
    out = np.empty(len(ps))
    out[order] = adjusted
    return out.tolist()


def verdict(test: Paired | None, p: float | None = None, *, higher_is_better: bool = True) -> str:
    """`better`, `worse` or `tied` from the paired test alone; `untested` where no test can speak. `p` is Holm's."""
    if test is None or test.groups < FEWEST:
        return "untested"
    if (test.p if p is None else p) >= ALPHA:
        return "tied"
    return "better" if (test.difference > 0) == higher_is_better else "worse"


def _index(groups: Sequence[Any]) -> tuple[np.ndarray, int]:
    """(items,) number of each item's group, in order of appearance, and how many groups there are."""
    numbers: dict[Any, int] = {}
    index = [numbers.setdefault(group, len(numbers)) for group in groups]
    return np.array(index, dtype=np.int64), len(numbers)


def _members(groups: Sequence[Any]) -> list[np.ndarray]:
    index, count = _index(groups)
    order = np.argsort(index, kind="stable")
    return np.split(order, np.searchsorted(index[order], np.arange(1, count)))
