"""Splits of rows into train, val and test. Rows that share a group (patient, family, speaker), or another key that a
field names, stay together; a split that is computed here is disjoint by all of these keys, or an error.

given    the file's own column; where it names no val, val is drawn from train
random   groups at random
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from core.errors import ConfigError, DataError, Problem, did_you_mean

Row = dict[str, Any]
Parts = dict[str, list[Row]]
SPLITS = ("train", "val", "test")
GIVEN = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test"}


@dataclass(frozen=True)
class Splitting:
    """kind        one of KINDS                         seed    of every draw here
    val, test   shares of the rows, 0 for none       limit   {split: n}: at most n rows, whole groups drawn with the
                                                             seed; a smaller draw is part of a larger one

    A row has `id`, `group`, `split` ("" where the file names none) and the keys in TOGETHER. A field with kinds of its
    own adds them to KINDS and overrides `place`.
    """

    KINDS: ClassVar[tuple[str, ...]] = ("given", "random")
    TOGETHER: ClassVar[tuple[str, ...]] = ("group",)
    kind: str = "given"
    seed: int = 0
    val: float = 0.1
    test: float = 0.2
    limit: dict[str, int] | None = None

    def __post_init__(self) -> None:
        if problems := self.problems():
            raise ConfigError(problems=problems)

    def problems(self) -> list[Problem]:
        found = []
        if self.kind not in self.KINDS:
            found.append(Problem("data.split", self.kind, ", ".join(self.KINDS), did_you_mean(self.kind, self.KINDS)))
        for name in ("val", "test"):
            if not 0 <= getattr(self, name) < 1:
                found.append(Problem(f"data.{name}", str(getattr(self, name)), "a share from 0 to below 1"))
        if not found and self.val + self.test >= 1:
            found.append(Problem("data.val, data.test", f"{self.val} + {self.test}", "below 1 together"))
        for name, n in (self.limit or {}).items():
            if name not in SPLITS:
                found.append(Problem(f"data.limit.{name}", str(n), ", ".join(SPLITS), did_you_mean(name, SPLITS)))
            elif not isinstance(n, int) or n < 1:
                found.append(Problem(f"data.limit.{name}", str(n), "at least 1"))
        return found

    def __call__(self, rows: list[Row], file: str) -> Parts:
        """Rows by split, in file order; DataError where a split that is asked for would be empty."""
        parts = self.finished(self.given(rows) if self.kind == "given" else self.computed(rows, file))
        parts = {name: limited(part, (self.limit or {}).get(name), self.seed, name) for name, part in parts.items()}
        empty = [name for name in SPLITS if not parts[name] and (name == "train" or getattr(self, name) > 0)]
        if empty:
            counts = ", ".join(f"{name} {len(part)}" for name, part in parts.items())
            others = " or ".join(kind for kind in self.KINDS[1:3])
            fix = "another data.split" if self.kind != "given" else f"data.split={others}, or name the column"
            raise DataError(where=file, got=f"split {self.kind} leaves {', '.join(empty)} empty ({counts})", fix=fix)
        return parts

    def given(self, rows: list[Row]) -> Parts:
        parts: Parts = {name: [] for name in SPLITS}
        for row in rows:
            if row["split"]:
                parts[row["split"]].append(row)
        if not parts["val"] and parts["train"] and self.val > 0:
            self.hold_out(parts)
        return parts

    def computed(self, rows: list[Row], file: str) -> Parts:
        parts: Parts = {name: [] for name in SPLITS}
        for row, place in zip(rows, self.place(rows, file), strict=True):
            if place:
                parts[place].append(row)
        assert_disjoint(parts, ("id", *self.TOGETHER))
        return parts

    def place(self, rows: list[Row], file: str) -> list[str | None]:
        """Split of each row for a kind that is computed; None leaves a row out."""
        return self.drawn(rows)

    def drawn(self, rows: list[Row]) -> list[str | None]:
        shares = {"test": self.test, "val": self.val}
        targets = {name: max(1, round(share * len(rows))) for name, share in shares.items() if share > 0}
        return draw(components(rows, *self.TOGETHER), targets, self.seed)

    def hold_out(self, parts: Parts) -> None:
        """Move a share of train's components to val."""
        rows = parts["train"]
        taken = draw(components(rows, *self.TOGETHER), {"val": max(1, round(self.val * len(rows)))}, self.seed)
        parts["val"] = [row for row, name in zip(rows, taken, strict=True) if name == "val"]
        parts["train"] = [row for row, name in zip(rows, taken, strict=True) if name != "val"]

    def finished(self, parts: Parts) -> Parts:
        """A field's last word before the limits: leave leaks out, for instance."""
        return parts


def components(rows: list[Row], *keys: str) -> list[int]:
    """A number per row; rows that share a value of any key, directly or through others, get the same."""
    parent = list(range(len(rows)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for key in keys:
        first: dict[Any, int] = {}
        for i, row in enumerate(rows):
            a, b = root(i), root(first.setdefault(row[key], i))
            parent[max(a, b)] = min(a, b)
    return [root(i) for i in range(len(rows))]


def draw(labels: list[int], targets: dict[str, int], seed: int) -> list[str]:
    """Name per row: components at random into the first target that they still fit, the rest is train."""
    sizes: dict[int, int] = {}
    for label in labels:
        sizes[label] = sizes.get(label, 0) + 1
    left, place = dict(targets), {}
    order = list(sizes)
    for i in np.random.default_rng((seed, 7)).permutation(len(order)):
        fits = [name for name, room in left.items() if 0 < sizes[order[i]] <= room]
        place[order[i]] = fits[0] if fits else "train"
        if fits:
            left[fits[0]] -= sizes[order[i]]
    return [place[label] for label in labels]


def limited(rows: list[Row], limit: int | None, seed: int, split: str) -> list[Row]:
    """At most `limit` rows, whole groups drawn with the seed (at least one group); file order is kept."""
    if limit is None or len(rows) <= limit:
        return rows
    members: dict[str, int] = {}
    for row in rows:
        members[row["group"]] = members.get(row["group"], 0) + 1
    names, chosen, total = list(members), set(), 0
    for i in np.random.default_rng((seed, SPLITS.index(split))).permutation(len(names)):
        if total + members[names[i]] > limit and chosen:
            break
        chosen.add(names[i])
        total += members[names[i]]
    return [row for row in rows if row["group"] in chosen]


def assert_disjoint(parts: Parts, keys: tuple[str, ...] = ("id", "group")) -> None:
    """AssertionError where two splits share an id or a group: a bug here, never the user's fault."""
    for key in keys:
        values = [{row[key] for row in part} for part in parts.values()]
        assert len(set().union(*values)) == sum(map(len, values)), f"{key} in two splits"
