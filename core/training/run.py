"""One run: config in, result.json out. `run` is all that the command line, a sweep or a script needs.

python -m core.training.run DIRECTORY      repeats or resumes the run whose config.yaml lies there
"""

from __future__ import annotations

import errno
import json
import logging
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from core.bench import result
from core.bench.cells import SCRATCH
from core.bench.result import Certificate, ErrorRecord, Forgetting, MetricRecord, Plan, Primary, Record
from core.contracts import Metric, Task
from core.data import loading
from core.data.loading import AsTrained
from core.errors import ConfigError, PeftError, Problem, TrainingError
from core.main import follower
from core.training import assemble, evaluate, files, present
from core.training.checkpoint import BEST, Best, Door, Interrupted, find, seed_all
from core.training.cost import Cost
from core.training.ddp import Launcher, OrderedSums
from core.training.memory import exhausted
from core.training.module import PeftModule
from core.training.progress import Progress, Screen
from core.training.record import begin, describe, note_cost, now, write_facts
from core.training.rehearsal import Rehearsal, Rehearsed
from core.training.rows import Rows
from core.training.start import start

CHECKPOINTS, COST, RETENTION = "checkpoints", "cost.json", "retention.json"


def run(cfg: DictConfig, directory: str | Path) -> Record:
    """The finished record of `cfg`, run in `directory`: adapter/, predictions, pictures, card and log lie there too.

    Goes on from a checkpoint that lies there (`run.resume`). Whatever goes wrong is written into result.json (status
    failed or interrupted) and raised again; what an earlier run left stays whole.
    """
    directory = Path(directory).resolve()
    leader = not follower()
    screen = Screen(directory / "run.log", quiet=not leader)
    begun = time.monotonic()
    record = begin(cfg, directory)
    if leader:
        directory.mkdir(parents=True, exist_ok=True)
        if not (directory / "config.yaml").exists():
            result.write_whole(directory / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
        result.write(directory, record)

    def close(status: str, error: BaseException | None = None) -> None:
        record.status, record.error = status, None if error is None else ErrorRecord.of(error)
        record.ended, record.wall_s = now(), time.monotonic() - begun
        if leader:
            result.write(directory, record)

    try:
        with _library_chatter(directory / "run.log" if leader else None):
            _run(cfg, directory, record, screen)
        close("done")
    except (KeyboardInterrupt, Interrupted) as error:
        screen.clear()
        stopped = error if isinstance(error, KeyboardInterrupt) else KeyboardInterrupt(str(error))
        close("interrupted", stopped)
        raise stopped from None
    except Exception as error:
        screen.clear()
        fault = _fault(error)
        try:
            close("failed", fault)
        except TrainingError:  # the disk is full: the first error is the news
            pass
        raise fault from (error if fault is not error else error.__cause__)
    if leader:
        _show(cfg, directory, record, screen)
    return record


def _run(cfg: DictConfig, directory: Path, record: Record, screen: Screen) -> None:
    if cfg.get("threads"):
        torch.set_num_threads(int(cfg.threads))
    seed_all(cfg.seed, 0)
    parts = assemble.parts(cfg)
    torch.manual_seed(assemble.derive(cfg.seed, "head"))
    model, name = assemble.adapt(cfg, parts.backbone, parts.task.head(parts.backbone))
    module = _module(cfg, model, name, parts)
    loaders = assemble.loaders(cfg, parts)
    begun = start(cfg, directory / CHECKPOINTS, module, name, loaders)
    describe(record, cfg, model, name, module, parts, loaders)
    if not screen.quiet:
        write_facts(directory, model, name, parts)
        result.write(directory, record)
        _announce(record, model, name, parts, screen, begun)
    best, trainer, rivals = _fit(cfg, directory, record, module, name, parts, loaders, screen)
    if trainer.global_rank != 0:
        return
    _score(cfg, directory, record, module, name, parts, loaders, best, trainer, rivals)


def _module(cfg: DictConfig, model, name: str, parts) -> PeftModule:
    from core.adapters import head, trainable
    from core.adapters.io import fingerprint

    optim, tensors = assemble.optim(cfg), trainable(model, name)
    return PeftModule(model, parts.task, optim, tensors=tensors, head=head(model, name), fingerprint=fingerprint(model))


# ---------------------------------------------------------------------- fit


def _fit(cfg, directory: Path, record: Record, module, name: str, parts, loaders, screen: Screen):
    """(best checkpoint's content or None, the trainer, rivals scored before training or None)."""
    folder = directory / CHECKPOINTS
    options = OmegaConf.to_container(cfg.trainer, resolve=True)
    fit = cfg.run.fit and bool(module.tensors)
    found = _found(cfg, folder, screen)
    batches = _batches(options, loaders) if fit else 0
    total = assemble.total_steps(options, batches) if fit else 0
    best = Best(folder, *_selection(cfg, parts.task))
    cost, rows = Cost(), Rows(directory / "metrics.csv", max(1, total // 200))

    def ready(seen: Rehearsed) -> None:
        seconds = seen.step_s * options.get("accumulate_grad_batches", 1) * total
        record.plan = Plan(peak_memory_bytes=seen.peak_bytes, wall_s=seconds)
        screen.say(present.checked(seen.live, seen.live[1], seen.peak_bytes, seconds, module.base_trains))

    rehearsal = Rehearsal(name, ready)
    door = Door(folder, min(500, -(-total // 10)), cfg.seed, assemble.settings(cfg))
    callbacks = [cost, rehearsal, rows, OrderedSums(), Progress(screen, best, total), *_own_callbacks(cfg), best, door]
    trainer = assemble.trainer(cfg, directory, callbacks, batches, unused=assemble.may_idle(cfg, module))
    rivals = None
    if module.base_trains and cfg.run.test and not screen.quiet:  # later there is no base left to score
        rivals = evaluate.rivals(parts.task, parts.backbone, AsTrained(loaders), loaders.items("test"))
    if fit and not found.done:
        # Before weights come back, as full fine-tuning changes the base itself. The anchor from scratch has no base.
        if not screen.quiet and record.method != SCRATCH:
            _note_retention(folder / RETENTION, evaluate.retention(module, trainer, parts.data, cfg.seed, base=True))
        if cfg.run.resume == "weights":
            module.carry(_weights(folder), str(folder))
        if cfg.get("metric") and loaders.items("val") and not screen.quiet:
            evaluate.check_metric(module, trainer, loaders, cfg.metric.name, cfg.seed)
        before = assemble.base_digest(module.model)
        _train(trainer, module, loaders, found.path)
        if trainer.global_rank == 0:
            note_cost(folder / COST, record, cost, rehearsal, rows, trainer, module, before)
    elif cfg.run.fit and not module.tensors:
        screen.say("  nothing to train: the base is scored as it is")
    kept = None
    if (folder / BEST).exists():
        kept = files.read(folder / BEST)
        module.carry(kept["tensors"], str(folder / BEST))
    elif found.path is not None and (found.done or not fit):
        module.carry(files.read(found.path)["state_dict"], str(found.path))
    return kept, trainer, rivals


def _selection(cfg, task: Task) -> tuple[str, str]:
    """(metric, mode) on validation that selects the checkpoint."""
    wanted = cfg.get("metric")
    return (wanted["name"], wanted["mode"]) if wanted else task.selection()


def _note_retention(path: Path, metric: Metric | None) -> None:
    """Kept in a file: a resumed run that only scores has no untrained base any more."""
    if metric is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        result.write_whole(path, json.dumps({"before": metric.value}) + "\n")


def _found(cfg, folder: Path, screen: Screen):
    """What to go on from. `never` and `weights` start anew; every refused file is reported."""
    found = find(folder)
    for text in found.refused:
        screen.say(f"  refused  {text}")
    if cfg.run.resume != "auto":
        return found._replace(path=None, done=False)
    if found.path is not None and cfg.run.fit:
        state = "finished: scoring only" if found.done else f"going on from {found.path.name}"
        screen.say(f"  resume   {state}")
    return found


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    if (folder / BEST).exists():
        return files.read(folder / BEST)["tensors"]
    found = find(folder)
    if found.path is None:
        raise ConfigError("run.resume", "weights, but no checkpoint", f"a checkpoint in {folder}", "run.resume=auto")
    return files.read(found.path)["state_dict"]


def _batches(options: dict[str, Any], loaders) -> int:
    devices = options.get("devices", 1)
    world = devices * options.get("num_nodes", 1) if isinstance(devices, int) and devices > 0 else 1
    return len(loaders.plan("train", world))


def _own_callbacks(cfg) -> list:
    """Lightning callbacks that the config adds: `trainer.callbacks: [{_target_: ...}]`."""
    from hydra.utils import instantiate

    return [instantiate(node, _convert_="all") for node in cfg.trainer.get("callbacks") or []]


def _train(trainer, module, loaders, path: Path | None) -> None:
    module.train()
    launcher = trainer.strategy.launcher
    try:
        trainer.fit(module, datamodule=loaders, ckpt_path=None if path is None else str(path))
    except SystemExit:  # Lightning's answer to a KeyboardInterrupt
        raise KeyboardInterrupt from None
    except BaseException:
        if isinstance(launcher, Launcher):
            launcher.stop()
        raise
    finally:
        if isinstance(launcher, Launcher):
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
            launcher.forget()


# ---------------------------------------------------------------------- score


def _score(cfg, directory: Path, record: Record, module, name, parts, loaders, best, trainer, rivals) -> None:
    cost = directory / CHECKPOINTS / COST
    noted = json.loads(cost.read_text(encoding="utf-8")) if cost.exists() else {}
    live, unchanged = noted.pop("live", None), noted.pop("base_bit_equal", None)
    plan = noted.pop("plan", None)
    for field, value in noted.items():
        setattr(record, field, value)
    record.plan = Plan(**plan) if plan else record.plan
    record.certificate = Certificate(
        live=live, base_bit_equal=unchanged, splits_disjoint=assemble.splits(loaders)[1], reload_equal=None
    )
    wanted = (cfg.get("metric") or {}).get("name") or parts.task.metric
    if best is not None:
        record.metrics["val"] = {name: MetricRecord(**fields) for name, fields in best["validation"].items()}
        record.selected = Primary(name=_selection(cfg, parts.task)[0], split="val", value=best["score"])
        record.primary = record.selected
    kept = directory / CHECKPOINTS / RETENTION
    if kept.exists() and (after := evaluate.retention(module, trainer, parts.data, cfg.seed, base=False)) is not None:
        before = json.loads(kept.read_text(encoding="utf-8"))["before"]
        record.forgetting = Forgetting(
            metric=parts.task.retained, unit=after.unit, higher_is_better=after.higher_is_better, n=after.n or None,
            before=before, after=after.value,
        )  # fmt: skip
    if cfg.run.test and loaders.items("test"):
        found = evaluate.rows(module, trainer, loaders, "test")
        record.metrics["test"] = {name: MetricRecord.of(m) for name, m in parts.task.score(found).items()}
        for part, scores in evaluate.strata(parts.task, parts.data, found, parts.task.metric).items():
            record.metrics[part] = {key: MetricRecord.of(m) for key, m in scores.items()}
        headline = record.metrics["test"].get(wanted)
        record.primary = Primary(name=wanted, split="test", value=headline.value if headline else None)
        evaluate.write_rows(directory / evaluate.PREDICTIONS, found)
        if rivals is None:
            rivals = evaluate.rivals(parts.task, parts.backbone, AsTrained(loaders), loaders.items("test"))
        evaluate.write_rivals(directory / evaluate.BASELINES, rivals)
        (directory / "plots").mkdir(exist_ok=True)
        parts.task.pictures(found, directory / "plots")
    module.to("cpu")
    record.merge_error = assemble.merge_error(module.model, name)
    record.adapter_bytes = assemble.save(module.model, directory / "adapter", name)
    record.certificate.reload_equal = assemble.reload_equal(cfg, module.model, directory / "adapter", name)
    # Through validation: the fields above were set one by one.
    checked = Record.model_validate(record.model_dump(by_alias=True))
    for field in Record.model_fields:
        setattr(record, field, getattr(checked, field))


# ---------------------------------------------------------------------- record, screen, log


def _announce(record: Record, model, name: str, parts, screen: Screen, begun: str) -> None:
    from core.adapters import summary

    screen.say(present.title(record))
    screen.say(present.indented(str(summary(model, name))))
    for text in parts.audit.warnings:
        screen.say(f"  data     {text}")
    if begun:
        screen.say(f"  start    {begun}")


def _show(cfg, directory: Path, record: Record, screen: Screen) -> None:
    from core.bench.card import write_card

    rivals = {}
    if (directory / evaluate.BASELINES).exists():
        rivals = json.loads((directory / evaluate.BASELINES).read_text(encoding="utf-8"))
    for line in present.results(record, rivals):
        screen.say(line)
    card = write_card(directory)
    pictures = sorted(path.name for path in (directory / "plots").glob("*.svg"))
    pictures.sort(key=lambda name: name in ("curve.svg", "anchors.svg"))  # the field's own picture first
    for line in present.closing(directory, card, pictures, str(cfg.get("domain"))):
        screen.say(line)


def _fault(error: Exception) -> Exception:
    """Out of memory and a full disk as TrainingError; anything else as it is."""
    if isinstance(error, PeftError):
        return error
    if exhausted(error):
        fix = "a smaller loader.batch_size or loader.tokens, with trainer.accumulate_grad_batches raised likewise"
        return TrainingError(problems=[Problem("memory", str(error).splitlines()[0], "a step that fits", fix)])
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return TrainingError(str(error.filename or "disk"), error.strerror, "room for checkpoints and results")
    return error


@contextmanager
def _library_chatter(log: Path | None) -> Iterator[None]:
    """What libraries say goes to run.log; the terminal belongs to the run."""
    handler = logging.FileHandler(log, delay=True) if log is not None else logging.NullHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s  %(message)s"))
    loud = [logging.getLogger(name) for name in ("lightning", "lightning.pytorch", "lightning.fabric", "py.warnings")]
    before = [(logger, list(logger.handlers), logger.propagate) for logger in loud]
    for logger in loud:
        logger.handlers, logger.propagate = [handler], False
    with warnings.catch_warnings():
        loading.quiet()
        logging.captureWarnings(True)
        try:
            yield
        finally:
            logging.captureWarnings(False)
            for logger, handlers, propagate in before:
                logger.handlers, logger.propagate = handlers, propagate
            handler.close()


if __name__ == "__main__":
    try:
        run(OmegaConf.load(Path(sys.argv[1]) / "config.yaml"), sys.argv[1])
    except PeftError as problem:
        print(problem, file=sys.stderr)
        sys.exit(problem.code)
    except KeyboardInterrupt:
        sys.exit(130)
