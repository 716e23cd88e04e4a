"""Splits of proteins that mean something, beside `given` and `random` of core.data.splits. Every split keeps together
what shares a group or a sequence.

identity            clusters of similar sequences (identity.py, or an external table); the cluster becomes the group
one_vs_rest, two_vs_rest, three_vs_rest    train on variants with at most that many mutations, test on the rest
low_vs_high         train on variants no better than the wild type (the median, where it was not measured)
contiguous, modulo  five position folds, stretches or every fifth: test on positions that train never saw changed
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from core.data import splits
from core.data.splits import Parts, Row, components
from core.errors import ConfigError, DataError, Problem
from domains.protein.data.residues import differences

MUTATIONS = {"one_vs_rest": 1, "two_vs_rest": 2, "three_vs_rest": 3}
FOLDS = 5


@dataclass(frozen=True)
class Splitting(splits.Splitting):
    """threshold   identity (0..1) from which proteins share a cluster
    clusters    MMseqs2 cluster table (representative, member), instead of computing them
    drop_leaks  leave out of train (and val) what has the same sequence as a held-out row
    """

    KINDS: ClassVar = ("given", "random", "identity", *MUTATIONS, "low_vs_high", "contiguous", "modulo")
    TOGETHER: ClassVar = ("group", "sequence")
    threshold: float = 0.3
    clusters: str | None = None
    drop_leaks: bool = False

    def problems(self) -> list[Problem]:
        found = super().problems()
        if not 0 < self.threshold <= 1:
            found.append(Problem("data.threshold", str(self.threshold), "an identity above 0, up to 1"))
        return found

    def finished(self, parts: Parts) -> Parts:
        if not self.drop_leaks:
            return parts
        held = {row["sequence"] for name in ("val", "test") for row in parts[name]}
        tested = {row["sequence"] for row in parts["test"]}
        train = [row for row in parts["train"] if row["sequence"] not in held]
        return parts | {"train": train, "val": [row for row in parts["val"] if row["sequence"] not in tested]}

    def computed(self, rows: list[Row], file: str) -> Parts:
        if self.kind == "identity":
            rows = self._clustered(rows)
        parts = super().computed(rows, file)
        if self.kind in (*MUTATIONS, "low_vs_high") and self.val > 0:
            self.hold_out(parts)
        return parts

    def place(self, rows: list[Row], file: str) -> list[str | None]:
        if self.kind in ("random", "identity"):
            return self.drawn(rows)
        places = _by_mutation(rows, self, file)
        if self.kind in (*MUTATIONS, "low_vs_high"):
            sides = [{r["group"] for r, at in zip(rows, places, strict=True) if at == s} for s in ("train", "test")]
            if both := sides[0] & sides[1]:
                got = f"{self.kind} puts group {min(both)} into train and test ({len(both)} such groups)"
                raise DataError(where=file, got=got, allowed="groups that lie on one side", fix="leave data.group out")
        return places

    def _clustered(self, rows: list[Row]) -> list[Row]:
        from domains.protein.data.identity import clusters, read_clusters

        ids = [row["id"] for row in rows]
        if self.clusters:
            names = read_clusters(self.clusters, ids)
        else:
            names = [ids[i] for i in clusters([row["sequence"] for row in rows], self.threshold)]
        named = [{**row, "cluster": name} for row, name in zip(rows, names, strict=True)]
        joined = components(named, "cluster", "group")
        return [{**row, "group": names[i]} for row, i in zip(rows, joined, strict=True)]


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
