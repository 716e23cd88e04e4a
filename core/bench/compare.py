"""`sweep=compare`: methods x learning rates x seeds, at equal tuning effort.

1 trials   every method at every learning rate, on the first `tune_seeds` seeds; scored on validation only
2 choice   per method, the learning rate with the best mean validation score
3 finals   every method at its learning rate, every seed, scored on test; a chosen trial is not trained again

A cell is one run directory, named by method, learning rate, seed and config hash. What is finished is not run again,
what was killed goes on from its checkpoint, what failed is tried again by the next call; a failure stops no other cell.
Every cell sees the same rows: the data's own seed is that of the sweep.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.bench import numerals, result
from core.bench.cells import ANCHORS
from core.bench.result import Record
from core.errors import ConfigError, PeftError, Problem

Fit = Callable[[Any, Path], Record]


@dataclass(frozen=True)
class Cell:
    """One run of the sweep. `config` is complete and resolved; `test` says whether test is to be scored."""

    method: str
    lr: float
    seed: int
    config: dict[str, Any]
    command: str
    test: bool

    @property
    def name(self) -> str:
        return f"{self.method}_lr{self.lr:g}_s{self.seed}_{result.config_hash(self.config)[:6]}"

    def record(self, directory: Path) -> Record | None:
        """What lies in the cell's directory, None where nothing readable does."""
        try:
            return result.read(directory / self.name)
        except PeftError:
            return None

    def finished(self, directory: Path) -> bool:
        record = self.record(directory)
        done = record is not None and record.status == "done"
        return done and (not self.test or (record.primary is not None and record.primary.split == "test"))


@dataclass
class Sweep:
    """What to compare: presets, learning rates, seeds; the first `tune_seeds` seeds choose the learning rate."""

    methods: list[str]
    lr: list[float]
    seeds: list[int] = field(default_factory=lambda: [0])
    tune_seeds: int = 1

    def __post_init__(self):
        problems = [
            Problem(f"sweep.{name}", "twice the same" if values else "none", "one or more, each once")
            for name, values in (("methods", self.methods), ("lr", self.lr), ("seeds", self.seeds))
            if not values or len(set(values)) < len(values)
        ]
        if not 1 <= self.tune_seeds <= max(1, len(self.seeds)):
            problems.append(Problem("sweep.tune_seeds", str(self.tune_seeds), f"1..{len(self.seeds)}, of sweep.seeds"))
        if problems:
            raise ConfigError(problems=problems)
        self.lr = [float(value) for value in self.lr]

    @property
    def budget(self) -> int:
        """Trials spent on each method; 0 where there is nothing to choose."""
        return len(self.lr) * self.tune_seeds if len(self.lr) > 1 else 0


def run(cfg: Any, directory: str | Path, *, overrides: list[str] | None = None, fit: Fit | None = None) -> int:
    """Run the whole sweep and write its report; the highest exit code of its cells.

    cfg         the composed config with its `sweep` section
    overrides   the command line that composed it; None: Hydra's own
    fit         one run; `core.training.run.run`
    ConfigError   all problems of all cells, before the first is run
    """
    directory = Path(directory)
    sweep = Sweep(**{key: value for key, value in cfg["sweep"].items()})
    configs = _configs(cfg, sweep, _typed() if overrides is None else overrides)
    fit = fit or _fit()
    trials = [_cell(configs, sweep, m, lr, s, test=False) for s in sweep.seeds[: sweep.tune_seeds]
              for m in sweep.methods for lr in sweep.lr] if sweep.budget else []  # fmt: skip
    seeds = f"{len(sweep.seeds)} seed{'s' * (len(sweep.seeds) != 1)}"
    print(f"compare  {len(sweep.methods)} methods, {len(sweep.lr)} learning rates, {seeds}  in {directory}", flush=True)
    later = len(sweep.methods) * len(sweep.seeds)
    launch(trials, directory, fit, later=later)
    chosen = choose(trials, directory, sweep)
    finals = [_cell(configs, sweep, m, chosen[m], s, test=True) for m in chosen for s in sweep.seeds]
    launch(finals, directory, fit)
    return _report(directory, {cell.name: cell for cell in [*trials, *finals]}.values())


def launch(cells: list[Cell], directory: Path, fit: Fit, later: int = 0) -> None:
    """Run the cells that are not finished, one after the other. They do not depend on each other, so that another
    launcher may run them at once. A failed cell leaves its record; only an interrupt ends the sweep.

    later   cells that follow these, for the time left
    """
    spent: list[float] = []
    for number, cell in enumerate(cells, 1):
        if cell.finished(directory):
            continue
        begun = time.monotonic()
        _one(cell, directory, fit)
        spent.append(time.monotonic() - begun)
        open_ = sum(not other.finished(directory) for other in cells[number:]) + later
        left = f"left about {numerals.seconds(open_ * sum(spent) / len(spent))}" if open_ else ""
        width = len(str(len(cells)))
        told = _told(cell.record(directory), cell.test)
        head = f" [{number:{width}}/{len(cells)}]  {cell.method:<10} lr {cell.lr:<7g} seed {cell.seed}"
        print(f"{head}  {told:<24} {numerals.seconds(spent[-1]):>9}  {left}".rstrip(), flush=True)


def choose(trials: list[Cell], directory: Path, sweep: Sweep) -> dict[str, float]:
    """Method -> learning rate with the best mean validation score; a method whose every trial failed is left out."""
    if not trials:
        return dict.fromkeys(sweep.methods, sweep.lr[0])
    chosen = {}
    for method in sweep.methods:
        means, better = {}, True
        for lr in sweep.lr:
            lines = [_validation(cell.record(directory)) for cell in trials if (cell.method, cell.lr) == (method, lr)]
            if all(line is not None for line in lines):  # a failed seed must not make a learning rate look good
                means[lr] = sum(line.value for line in lines) / len(lines)
                better = lines[0].higher_is_better
        if means:
            chosen[method] = (max if better else min)(means, key=means.get)
        elif all(cell.finished(directory) for cell in trials if cell.method == method):
            chosen[method] = sweep.lr[0]  # nothing to train, hence nothing to choose
    return chosen


def _validation(record: Record | None):
    if record is None or record.status != "done" or record.primary is None:
        return None
    line = record.validation()
    return line if line is not None and line.value is not None else None


def _one(cell: Cell, directory: Path, fit: Fit) -> None:
    """Run one cell; its own lines go to its run.log, errors to stderr as well."""
    from omegaconf import OmegaConf

    folder = directory / cell.name
    before = cell.record(directory)
    config = OmegaConf.create(cell.config)
    config.run.test = cell.test
    try:
        _write_config(cell, folder)
        with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
            fit(config, folder)
    except KeyboardInterrupt:
        raise
    except Exception as error:
        from core import main

        main.report(error, folder)
        main.record_failure(OmegaConf.create({**cell.config, "sweep": None}), folder, main.known(error))
    _amend(cell, directory, before)


def _amend(cell: Cell, directory: Path, before: Record | None) -> None:
    """What a cell's own run cannot know: the command that repeats it, and the time of the trial that it continues."""
    record = cell.record(directory)
    if record is None:
        return
    record.command = cell.command
    if before is not None and before.status == "done" and None not in (before.wall_s, record.wall_s):
        record.wall_s += before.wall_s
    result.write(directory / cell.name, record)


def _write_config(cell: Cell, folder: Path) -> None:
    """config.yaml as a single run writes it: `--config-dir FOLDER --config-name config` repeats the cell."""
    from omegaconf import OmegaConf

    path = folder / "config.yaml"
    if path.exists():
        return
    body = {"defaults": ["/run_directory", "_self_"], **cell.config, "run": {**cell.config["run"], "test": True}}
    result.write_whole(path, f"# {cell.command}\n" + OmegaConf.to_yaml(OmegaConf.create(body)))


def _told(record: Record | None, test: bool) -> str:
    if record is None:
        return "no record"
    if record.status != "done":
        return f"{record.status}: {record.error.class_}" if record.error else record.status
    line, primary = record.headline(), record.primary
    if line is None or primary is None:
        return "done"
    return f"{primary.split} {primary.name} {numerals.score(line.value, line.unit)}"


def _report(directory: Path, cells: Iterable[Cell]) -> int:
    """Cards again, now that every anchor is there, and the report; the highest exit code."""
    from core.bench.card import refresh
    from core.bench.report import report

    records = [cell.record(directory) for cell in cells]
    refresh(directory)
    page = report(directory)
    codes = [record.error.code if record is not None and record.error else 0 for record in records]
    print(f"\n{codes.count(0)} of {len(codes)} cells done\nlook   {page}\nnext   atlas report {directory}", flush=True)
    return max(codes, default=0)


# ---------------------------------------------------------------------- configs


def _typed() -> list[str]:
    """Overrides of the running Hydra job. ConfigError where the job started from a written config, not from presets."""
    from hydra.core.hydra_config import HydraConfig

    if not HydraConfig.initialized():
        return []
    job = HydraConfig.get()
    if job.job.config_name not in (None, "train"):
        fix = "type the command in the first line of that config.yaml"
        raise ConfigError("--config-name", job.job.config_name, "train: a comparison starts from presets", fix)
    return list(job.overrides.task)


def _configs(cfg: Any, sweep: Sweep, overrides: list[str]) -> dict[str, tuple[dict, list[str]]]:
    """Method -> (its composed config, its command line), all checked before anything runs."""
    from core import compose
    from core.config import find, plain

    ours = {"adapter", "optim.lr", "seed"}
    kept = [text for text in overrides if _key(text) not in ours and _key(text).split(".")[0] not in ("sweep", "hydra")]
    base, found, problems = plain(cfg), {}, []
    for method in sweep.methods:
        try:
            own = [text for text in kept if method not in ANCHORS or _key(text) != "adapter.budget"]  # have no size
            config = plain(compose.compose(str(base["domain"]), [*own, f"adapter={method}"]))
        except ConfigError as error:
            problems += [p._replace(where=f"adapter={method}: {p.where}") for p in error.problems]
            continue
        config.pop("sweep", None)
        config["data"] = base["data"]
        problems += [p._replace(where=f"adapter={method}: {p.where}") for p in find(config)]
        found[method] = config, [text.lstrip("+") for text in own if not text.startswith("~")]
    if problems:
        raise ConfigError(problems=list(dict.fromkeys(problems)))
    return found


def _key(override: str) -> str:
    return override.lstrip("+~").split("=", 1)[0].split("@")[0]


def _cell(configs: dict, sweep: Sweep, method: str, lr: float, seed: int, *, test: bool) -> Cell:
    config, typed = configs[method]
    config = {**config, "seed": seed, "optim": {**config["optim"], "lr": lr}}
    if sweep.budget:
        # Equally tuned: the same grid, on the same seeds, of the same question.
        same = {**config, "adapter": None, "choices": None, "backbone": None, "seed": None, "optim": None}
        text = f"{sorted(sweep.lr)} {sweep.seeds[: sweep.tune_seeds]} {result.config_hash(same)}"
        config["tuning"] = {"group": hashlib.sha256(text.encode()).hexdigest()[:12], "budget": sweep.budget}
    words = [f"python -m domains.{config['domain']}.train", f"adapter={method}", f"optim.lr={lr:g}", f"seed={seed}"]
    return Cell(method, lr, seed, config, " ".join([*words, *typed]), test)


def _fit() -> Fit:
    from core.training.run import run as fit

    return fit
