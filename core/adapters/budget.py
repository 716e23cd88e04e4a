"""A method's size from a budget of parameters: `adapter.budget=1%` (of the base), `adapter.budget=50000`, `1e5`.

Of all sizes (the option that the method names in `size`: rank, size, tokens, ...; a reduction of widths is the widest
site's width over a whole number) the one is taken whose adapter is nearest to the budget. Nothing is estimated: the
adapter of a size is built at the network's own sites, on the meta device, and counted. Heads are not part of it: a task
has the same head under every method.

ConfigError    a method without a size; a budget that no size meets to a tenth (the counts of the sizes below and above
               are named)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import nn

from core.adapters import sizes
from core.adapters.model import network
from core.adapters.seam import base_count
from core.errors import ConfigError, PeftError

FAR = 0.1  # share of the budget by which the nearest size may miss it
SPELLED = re.compile(r"\s*(?P<number>\d[\d_]*(\.\d+)?(e\+?\d+)?)\s*(?P<percent>%)?\s*", re.IGNORECASE)
WAYS = "a count (50000, 1e5) or a share of the base (1%)"


@dataclass(frozen=True)
class Budget:
    """asked: as it was written;  wanted, parameters: counts;  option, size: what was solved, and for how much."""

    asked: str
    wanted: int
    option: str
    size: int | float
    parameters: int

    def __str__(self) -> str:
        count = "" if self.asked == str(self.wanted) else f" = {self.wanted:,}"
        used = f"{100 * self.parameters / self.wanted:.1f} %"
        size = f"{self.option} {self.size:g}"
        return f"budget  {self.asked}{count}: {size} has {self.parameters:,}, {used} of it; head apart"


def wanted(budget: Any, base: int) -> int:
    """Parameters that a budget means on a base of `base` parameters. ConfigError: no count and no share."""
    if isinstance(budget, str):
        found = SPELLED.fullmatch(budget)
        number = float(found["number"].replace("_", "")) if found else 0.0
        count = number * base / 100 if found and found["percent"] else number
        sound = found is not None and (bool(found["percent"]) or number == int(number))
    else:
        sound = isinstance(budget, (int, float)) and not isinstance(budget, bool) and budget == budget // 1
        count = budget if sound else 0
    if not sound or count < 1:
        raise ConfigError("adapter.budget", budget, WAYS)
    return int(count)


def solve(
    model: nn.Module,
    cls: type,
    label: str,
    budget: Any,
    options: dict[str, Any],
    *,
    targets: Any = None,
    roles: Mapping,
    example: tuple[tuple, dict] | Callable | None,
) -> Budget:
    """The size of method `cls`, which users call `label`, for a budget on this model.

    options   all of the method's; the one that is solved may have any value"""
    option = cls.size
    if not option or type(options.get(option)) not in ((int, float) if cls.divides else (int,)):
        got = f"{label}, which has no size: {', '.join(options) or 'no options'}"
        raise ConfigError("adapter.budget", got, "a method with a rank, a size, a number of tokens", "leave it out")
    most = wanted(budget, base_count(network(model)))
    found = sizes.places(model, cls, targets, roles, example)

    widest = sizes.widest(model, cls, found, options) if cls.divides else 0

    def value(size: int) -> int | float:
        return widest / size if cls.divides else size

    @cache
    def count(size: int) -> int:
        return sizes.count(model, cls, found, targets, roles, {**options, option: value(size)})

    size = nearest(count, most, lambda size: f"{option} {value(size):g}", budget)
    return Budget(str(budget), most, option, value(size), count(size))


def nearest(count: Callable[[int], int], wanted: int, spelled: Callable[[int], str], budget: Any) -> int:
    """The size whose count is nearest to `wanted`; of two equally near the smaller one.

    count   never falls, and raises PeftError where the method refuses a size
    spelled   a size as messages name it"""

    def fits(size: int) -> int | None:
        try:
            return count(size)
        except PeftError:
            return None

    if all(fits(size) is None for size in range(1, 65)):
        count(1)  # raises the method's own reason
    found = [size for size in neighbours(fits, wanted) if size is not None]
    best = min(found, key=lambda size: abs(count(size) - wanted))
    if abs(count(best) - wanted) > FAR * wanted:
        have = " and ".join(f"{spelled(size)} has {count(size):,}" for size in found)
        fix = f"adapter.budget={' or '.join(str(count(size)) for size in found)}, or other targets"
        asked = budget if str(budget) == str(wanted) else f"{budget} = {wanted:,}"
        raise ConfigError("adapter.budget", f"{asked}, but {have}", f"within {FAR:.0%} of what a size has", fix)
    return best


def neighbours(fits: Callable[[int], int | None], wanted: int) -> tuple[int | None, int | None]:
    """(the largest size that has no more than `wanted`, the smallest that has more); None where there is none."""
    first = next(size for size in range(1, 65) if fits(size) is not None)
    if fits(first) > wanted:
        return None, first
    low, high, refused = first, None, False
    while high is None:
        n = fits(2 * low)
        if n == fits(low):  # it has all that its layers have room for
            break
        low, high = (low, 2 * low) if n is None or n > wanted else (2 * low, None)
        refused |= n is None
    while high is not None and high - low > 1:
        middle = (low + high) // 2
        n = fits(middle)
        low, high = (low, middle) if n is None or n > wanted else (middle, high)
        refused |= n is None
    if refused:  # sizes that have to divide something: above a refused one there may be others
        sizes = [size for size in range(low, 2 * low + 64) if fits(size) is not None]
        low = max(size for size in sizes if fits(size) <= wanted)
        high = next((size for size in sizes if fits(size) > wanted), None)
    while low > first and fits(low - 1) == fits(low):
        low -= 1
    return low, high
