"""Runs on disk, gathered into what can be compared.

Run     a directory with a `result.json`
Group   runs that answer the same question on the same rows: domain, task, data, backbone, split
Cell    one method in one setting (options, targets, learning rate, steps), over its seeds
Trial   a run that was scored on validation only, to choose a learning rate; never in a table of scores
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from core.bench import result, scores, stats
from core.bench.result import MetricRecord, Record
from core.errors import DataError

PROBE, FULL, SCRATCH = "none", "full", "scratch"
ANCHORS = {PROBE: "probe", FULL: "full", SCRATCH: "scratch"}  # preset -> what people call it
MEANING = {
    PROBE: "frozen base, only the head trains",
    FULL: "every parameter trains",
    SCRATCH: "every parameter trains, from a random start",
    "zero_shot": "the frozen base alone, no labels",
}


class Group(NamedTuple):
    domain: str | None
    task: str | None
    data: str | None
    backbone: str | None
    split_hash: str | None


@dataclass(frozen=True)
class Run:
    directory: Path
    record: Record

    @cached_property
    def read(self) -> tuple[list[dict[str, Any]], str]:
        """(prediction rows, what is wrong with their file or '')."""
        try:
            return scores.read_rows(self.directory), ""
        except DataError as error:
            problem = error.problems[0]
            return [], f"unreadable, so untested: {Path(problem.where).name}: {problem.got}"

    @property
    def rows(self) -> list[dict[str, Any]]:
        return self.read[0]

    @property
    def group(self) -> Group:
        return Group(*(getattr(self.record, name) for name in Group._fields))

    @property
    def tested(self) -> bool:
        return self.record.status == "done" and self.record.primary is not None and self.record.primary.split == "test"

    @property
    def trial(self) -> bool:
        return self.record.tuning_group is not None and self.record.status == "done" and not self.tested


class Missing(NamedTuple):
    """A run that has no place in the table, and why."""

    directory: Path | None
    method: str
    seed: int | None
    reason: str


@dataclass
class Cell:
    """One method in one setting; `runs` are tested, at most one per seed. Baselines have rows and no run."""

    method: str
    label: str
    runs: list[Run] = field(default_factory=list)
    metric: str = ""
    baseline: MetricRecord | None = None
    baseline_rows: list[dict[str, Any]] = field(default_factory=list)
    verdicts: dict[str, str] = field(default_factory=dict)  # anchor preset -> better | tied | worse | untested
    tests: dict[str, stats.Paired] = field(default_factory=dict)

    @property
    def anchor(self) -> bool:
        return not self.runs or self.method in ANCHORS

    @cached_property
    def headlines(self) -> list[MetricRecord]:
        return [run.record.headline() for run in self.runs] if self.runs else [self.baseline]

    @property
    def seed_values(self) -> list[float]:
        return [line.value for line in self.headlines if line.value is not None]

    @property
    def value(self) -> float | None:
        return sum(self.seed_values) / len(self.seed_values) if self.seed_values else None

    @property
    def ci95(self) -> tuple[float, float] | None:
        """Cluster bootstrap over the mean of the seeds' per-item scores; the recorded one where rows give none."""
        if self.scores is not None and self.value is not None and abs(self.scores.value - self.value) < 2e-3:
            return stats.interval(self.scores.drawn)
        return self.headlines[0].ci95 if len(self.headlines) == 1 else None

    @cached_property
    def scores(self) -> scores.Scores | None:
        return scores.scores(self.metric, [run.rows for run in self.runs] or [self.baseline_rows])

    def mean(self, name: str) -> float | None:
        """Mean of a record's number over the seeds that know it."""
        known = [getattr(run.record, name) for run in self.runs if getattr(run.record, name) is not None]
        return sum(known) / len(known) if known else None


def find(directory: Path) -> tuple[list[Run], list[Missing]]:
    """Every run under a folder, and the files that cannot be read; a broken file never hides the others."""
    runs, broken = [], []
    for path in sorted(Path(directory).rglob(result.FILE)):
        try:
            runs.append(Run(path.parent, result.read(path)))
        except DataError as error:
            problem = error.problems[0]
            where = problem.where.removeprefix(f"{path}: ")
            broken.append(Missing(path.parent, "?", None, f"unreadable result.json: {where}: {problem.got}"))
    return runs, broken


def gather(runs: list[Run]) -> dict[Group, tuple[list[Cell], list[Missing], list[Run]]]:
    """(cells, missing, trials) of each group, in order of appearance. A run that failed before it knew its split joins
    the first group of the same question."""
    groups: dict[Group, tuple[dict[tuple, Cell], list[Missing], list[Run]]] = {}
    joined = _joined(runs)
    for run in sorted(runs, key=lambda run: run.record.split_hash is None):
        alike = [key for key in groups if run.record.split_hash is None and key[:4] == run.group[:4]]
        cells, missing, trials = groups.setdefault(alike[0] if alike else joined[run.group], ({}, [], []))
        method = run.record.method or "?"
        if run.trial:
            trials.append(run)
        elif not run.tested:
            missing.append(Missing(run.directory, method, run.record.seed, _reason(run.record)))
        else:
            cell = cells.setdefault(_setting(run.record), Cell(method, method, metric=run.record.primary.name))
            _add(cell, run)
            if run.read[1]:
                missing.append(Missing(run.directory, method, run.record.seed, run.read[1]))
    return {key: (_labelled(cells), missing, trials) for key, (cells, missing, trials) in groups.items()}


def _joined(runs: list[Run]) -> dict[Group, Group]:
    """Group -> the group that it is shown in. Where every seed draws its own training rows and the test rows stay, the
    splits differ by seed and the question is one; methods are still compared on equal seeds, hence on equal rows."""
    seeds: dict[Group, set] = {}
    tests: dict[Group, frozenset] = {}
    for run in runs:
        seeds.setdefault(run.group, set()).add(run.record.seed)
        if run.tested and run.group not in tests and run.rows:
            tests[run.group] = frozenset(row["id"] for row in run.rows)
    joined: dict[Group, Group] = {}
    for group in seeds:
        alike = (k for k in joined.values() if k[:4] == group[:4] and tests.get(k) and tests[k] == tests.get(group))
        home = next((known for known in alike if not seeds[known] & seeds[group]), group)
        joined[group] = home
        seeds[home] = seeds[home] | seeds[group]
    return joined


def absent(found: list[Cell], missing: list[Missing]) -> list[Missing]:
    """Seeds that other methods have and this one has not, and that did not fail either."""
    seeds = {run.record.seed for cell in found for run in cell.runs} - {None}
    failed = {(one.method, one.seed) for one in missing}
    return [
        Missing(None, cell.method, seed, "not run")
        for cell in found
        for seed in sorted(seeds - {run.record.seed for run in cell.runs})
        if (cell.method, seed) not in failed
    ]


def _setting(record: Record) -> tuple:
    options = json.dumps([record.options, sorted(record.targets)], sort_keys=True)
    return record.method, options, record.lr, record.steps, record.precision, record.primary.name


def _add(cell: Cell, run: Run) -> None:
    """One run per seed: of two, the one that ended last."""
    same = next((known for known in cell.runs if known.record.seed == run.record.seed), None)
    if same is None:
        cell.runs.append(run)
    elif (run.record.ended or "") >= (same.record.ended or ""):
        cell.runs[cell.runs.index(same)] = run


def _reason(record: Record) -> str:
    if record.error is not None:
        told = [record.error.where, record.error.got]
        return f"{record.error.class_} (code {record.error.code}): {': '.join(text for text in told if text)}"
    return {
        "running": "still running, or killed",
        "interrupted": "interrupted; the same command goes on from its checkpoint",
        "done": "not scored on test",
    }.get(record.status, record.status)


def _labelled(cells: dict[tuple, Cell]) -> list[Cell]:
    """Cells with labels that tell them apart: `lora`, or `lora rank=16` where two settings of lora are present."""
    for cell in cells.values():
        cell.runs.sort(key=lambda run: run.record.seed or 0)
        cell.label = called(cell.method, cell.runs)
    for cell in cells.values():
        alike = [other for other in cells.values() if other.method == cell.method]
        if len(alike) > 1:
            differs = [name for name in _facts(cell) if len({repr(_facts(other).get(name)) for other in alike}) > 1]
            cell.label += "".join(f" {name}={_facts(cell)[name]}" for name in differs)
    return list(cells.values())


def called(method: str, runs: list[Run]) -> str:
    """What people call a preset. A probe of a task without a head trains nothing: it is the base as it is."""
    if method == PROBE and runs and not any(run.record.head_trainable for run in runs):
        return "untrained base"
    return ANCHORS.get(method, method)


def _facts(cell: Cell) -> dict[str, Any]:
    record = cell.runs[0].record
    targets = "+".join(record.targets)
    return {**record.options, "targets": targets, "lr": record.lr, "steps": record.steps, "precision": record.precision}


def baselines(run: Run) -> list[Cell]:
    """Cells of a run's baselines.json that were scored on the run's headline. DataError names the file."""
    path = run.directory / "baselines.json"
    if not path.is_file() or run.record.primary is None:
        return []
    name = run.record.primary.name
    found = []
    try:
        for label, content in json.loads(path.read_text(encoding="utf-8")).items():
            metric = content["metrics"].get(name)
            if metric is not None:
                line = MetricRecord(**metric)
                found.append(Cell(label, label, metric=name, baseline=line, baseline_rows=content.get("rows") or []))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            str(path), f"{type(error).__name__}: {error}", "{name: {metrics: {...}, rows: [...]}}"
        ) from error
    return found


def judge(pairs: list[tuple[Cell, Cell]], keys: list[str]) -> None:
    """Write the paired test and verdict of each (cell, against) into the cell, under the pair's key. Holm over the
    pairs of this call: many methods against one anchor, or one run against many."""
    tested = []
    for (cell, against), key in zip(pairs, keys, strict=True):
        test = _test(cell, against) if cell is not against else None
        cell.verdicts[key] = "untested" if cell is not against else ""
        if test is not None:
            cell.tests[key] = test
            tested.append((cell, key))
    ps = stats.holm([cell.tests[key].p for cell, key in tested])
    for (cell, key), p in zip(tested, ps, strict=True):
        better = cell.headlines[0].higher_is_better
        cell.verdicts[key] = stats.verdict(cell.tests[key], p, higher_is_better=better)


def _test(cell: Cell, against: Cell) -> stats.Paired | None:
    """The paired test over the seeds that both have; over all seeds of each where they share none."""
    ours, theirs = ({run.record.seed: run for run in side.runs} for side in (cell, against))
    shared = set(ours) & set(theirs)
    pair = []
    for side, runs in ((cell, ours), (against, theirs)):
        partly = shared and shared != set(runs)
        rows = [runs[seed].rows for seed in sorted(shared, key=str)] if partly else None
        pair.append(scores.scores(side.metric, rows) if partly else side.scores)
    return scores.compare(*pair) if all(pair) else None
