"""Splits of proteins into train, val and test that mean something. Every split keeps together what shares a group or a
sequence; a split that is computed here is disjoint by id, sequence and group, or an error.

given               the file's own column; where it names no val, val is drawn from train
random              groups at random
identity            clusters of similar sequences (identity.py, or an external table); the cluster becomes the group
one_vs_rest, two_vs_rest, three_vs_rest    train on variants with at most that many mutations, test on the rest
low_vs_high         train on variants no better than the wild type (the median, where it was not measured)
contiguous, modulo  five position folds, stretches or every fifth: test on positions that train never saw changed
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from core.errors import ConfigError, DataError, Problem, did_you_mean
from domains.protein.data.residues import differences

Row = dict[str, Any]
SPLITS = ("train", "val", "test")
MUTATIONS = {"one_vs_rest": 1, "two_vs_rest": 2, "three_vs_rest": 3}
KINDS = ("given", "random", "identity", *MUTATIONS, "low_vs_high", "contiguous", "modulo")
GIVEN = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test"}
FOLDS = 5


@dataclass(frozen=True)
class Splitting:
    """kind        one of KINDS                         seed       of every draw here
    val, test   shares of the rows, 0 for none       threshold  identity (0..1) from which proteins share a cluster
    clusters    MMseqs2 cluster table (representative, member), instead of computing them
    limit       {split: n}: at most n rows, whole groups drawn with the seed; a smaller draw is part of a larger one
    drop_leaks  leave out of train (and val) what has the same sequence as a held-out row
    """

    kind: str = "given"
    seed: int = 0
    val: float = 0.1
    test: float = 0.2
    threshold: float = 0.3
    clusters: str | None = None
    limit: dict[str, int] | None = None
    drop_leaks: bool = False

    def __post_init__(self) -> None:
        problems = []
        if self.kind not in KINDS:
            problems.append(Problem("data.split", self.kind, ", ".join(KINDS), did_you_mean(self.kind, KINDS)))
        for name in ("val", "test"):
            if not 0 <= getattr(self, name) < 1:
                problems.append(Problem(f"data.{name}", str(getattr(self, name)), "a share from 0 to below 1"))
        if not problems and self.val + self.test >= 1:
            problems.append(Problem("data.val, data.test", f"{self.val} + {self.test}", "below 1 together"))
        if not 0 < self.threshold <= 1:
            problems.append(Problem("data.threshold", str(self.threshold), "an identity above 0, up to 1"))
        for name, n in (self.limit or {}).items():
            if name not in SPLITS:
                problems.append(Problem(f"data.limit.{name}", str(n), ", ".join(SPLITS), did_you_mean(name, SPLITS)))
            elif not isinstance(n, int) or n < 1:
                problems.append(Problem(f"data.limit.{name}", str(n), "at least 1"))
        if problems:
            raise ConfigError(problems=problems)

    def __call__(self, rows: list[Row], file: str) -> dict[str, list[Row]]:
        """Rows by split, in file order; DataError where a split that is asked for would be empty."""
        split = _given if self.kind == "given" else _computed
        parts = split(rows, self, file)
        if self.drop_leaks:
            held = {row["sequence"] for name in ("val", "test") for row in parts[name]}
            tested = {row["sequence"] for row in parts["test"]}
            parts["train"] = [row for row in parts["train"] if row["sequence"] not in held]
            parts["val"] = [row for row in parts["val"] if row["sequence"] not in tested]
        parts = {name: self._limited(name, part) for name, part in parts.items()}
        empty = [name for name in SPLITS if not parts[name] and (name == "train" or getattr(self, name) > 0)]
        if empty:
            counts = ", ".join(f"{name} {len(part)}" for name, part in parts.items())
            fix = "another data.split" if self.kind != "given" else "data.split=random or identity, or name the column"
            raise DataError(where=file, got=f"split {self.kind} leaves {', '.join(empty)} empty ({counts})", fix=fix)
        return parts

    def _limited(self, name: str, rows: list[Row]) -> list[Row]:
        limit = (self.limit or {}).get(name)
        if limit is None or len(rows) <= limit:
            return rows
        members: dict[str, int] = {}
        for row in rows:
            members[row["group"]] = members.get(row["group"], 0) + 1
        names, chosen, total = list(members), set(), 0
        for i in np.random.default_rng((self.seed, SPLITS.index(name))).permutation(len(names)):
            if total + members[names[i]] > limit and chosen:
                break
            chosen.add(names[i])
            total += members[names[i]]
        return [row for row in rows if row["group"] in chosen]


def components(rows: list[Row], *keys: str) -> list[int]:
    """A number per row; rows that share a value of any key, directly or through others, get the same."""
    parent = list(range(len(rows)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for key in keys:
        first: dict[str, int] = {}
        for i, row in enumerate(rows):
            a, b = root(i), root(first.setdefault(row[key], i))
            parent[max(a, b)] = min(a, b)
    return [root(i) for i in range(len(rows))]


def _given(rows: list[Row], options: Splitting, file: str) -> dict[str, list[Row]]:
    parts: dict[str, list[Row]] = {name: [] for name in SPLITS}
    for row in rows:
        if row["split"]:
            parts[row["split"]].append(row)
    if not parts["val"] and parts["train"] and options.val > 0:
        _hold_out(parts, options)
    return parts


def _hold_out(parts: dict[str, list[Row]], options: Splitting) -> None:
    """Move a share of train's components to val."""
    rows = parts["train"]
    taken = _draw(components(rows, "group", "sequence"), {"val": max(1, round(options.val * len(rows)))}, options.seed)
    parts["val"] = [row for row, name in zip(rows, taken, strict=True) if name == "val"]
    parts["train"] = [row for row, name in zip(rows, taken, strict=True) if name != "val"]


def _draw(labels: list[int], targets: dict[str, int], seed: int) -> list[str]:
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


def _computed(rows: list[Row], options: Splitting, file: str) -> dict[str, list[Row]]:
    if options.kind in ("random", "identity"):
        if options.kind == "identity":
            from domains.protein.data.identity import clusters, read_clusters

            ids = [row["id"] for row in rows]
            if options.clusters:
                names = read_clusters(options.clusters, ids)
            else:
                names = [ids[i] for i in clusters([row["sequence"] for row in rows], options.threshold)]
            named = [{**row, "cluster": name} for row, name in zip(rows, names, strict=True)]
            joined = components(named, "cluster", "group")
            rows = [{**row, "group": names[i]} for row, i in zip(rows, joined, strict=True)]
        labels = components(rows, "group", "sequence")
        shares = {"test": options.test, "val": options.val}
        targets = {name: max(1, round(share * len(rows))) for name, share in shares.items() if share > 0}
        places = _draw(labels, targets, options.seed)
    else:
        places = _by_mutation(rows, options, file)
    parts: dict[str, list[Row]] = {name: [] for name in SPLITS}
    for row, place in zip(rows, places, strict=True):
        if place:
            parts[place].append(row)
    if options.kind in (*MUTATIONS, "low_vs_high"):
        both = {row["group"] for row in parts["train"]} & {row["group"] for row in parts["test"]}
        if both:
            got = f"{options.kind} puts group {min(both)} into train and test ({len(both)} such groups)"
            raise DataError(where=file, got=got, allowed="groups that lie on one side", fix="leave data.group out")
        if options.val > 0:
            _hold_out(parts, options)
    assert_disjoint(parts)
    return parts


def _by_mutation(rows: list[Row], options: Splitting, file: str) -> list[str | None]:
    """Split per row from its mutations; None leaves a row out (a variant that spans two position folds)."""
    changed = []
    for row in rows:
        positions = differences(row["sequence"], row["wildtype"]) if row.get("wildtype") else None
        if positions is None:
            allowed = "a wild type of the same length for every row (data.wildtype, or a mutant column)"
            raise ConfigError(
                where="data.split", got=f"{options.kind}, but {file} {row['id']} has none", allowed=allowed
            )
        changed.append(positions)
    if options.kind in MUTATIONS:
        most = MUTATIONS[options.kind]
        return ["train" if len(positions) <= most else "test" for positions in changed]
    if options.kind == "low_vs_high":
        labels = [row.get("label") for row in rows]
        if not all(isinstance(label, float) for label in labels):
            raise ConfigError(where="data.split", got="low_vs_high without numbers", allowed="data.target_type=number")
        native = [label for label, positions in zip(labels, changed, strict=True) if not positions]
        most = max(native) if native else float(np.median(labels))
        measured: dict[str, list[float]] = {}
        for row in rows:  # a variant measured twice goes where its mean belongs
            measured.setdefault(row["sequence"], []).append(row["label"])
        return ["train" if np.mean(measured[row["sequence"]]) <= most else "test" for row in rows]
    return _by_position(changed, options)


def _by_position(changed: list[list[int]], options: Splitting) -> list[str | None]:
    varied = sorted({position for positions in changed for position in positions})
    stretch = {position: rank * FOLDS // len(varied) for rank, position in enumerate(varied)}
    fold = stretch if options.kind == "contiguous" else {position: position % FOLDS for position in varied}
    names = {options.seed % FOLDS: "test"}
    if options.val > 0:
        names[(options.seed + 1) % FOLDS] = "val"
    places: list[str | None] = []
    for positions in changed:
        seen = {names.get(fold[position], "train") for position in positions} or {"train"}
        places.append(seen.pop() if len(seen) == 1 else None)
    return places


def assert_disjoint(parts: dict[str, list[Row]]) -> None:
    """AssertionError where two splits share an id, a sequence or a group: a bug here, never the user's fault."""
    for key in ("id", "sequence", "group"):
        values = [{row[key] for row in part} for part in parts.values()]
        assert len(set().union(*values)) == sum(map(len, values)), f"{key} in two splits"
