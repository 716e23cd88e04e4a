"""Resume to the same bits: one door for saving and for coming back, before a batch touches anything.

At the door the last batch is wholly done (validation, schedule, rows), the next has not begun. Saved are adapter and
head, optimiser, schedule, random numbers of every rank, loop counters, position in the data, length of metrics.csv.
"""

from __future__ import annotations

import random
import signal
import threading
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint

from core.bench.result import MetricRecord
from core.errors import DataError, Problem, TrainingError
from core.training import files

LAST, PREVIOUS, BEST = "last.safetensors", "previous.safetensors", "best.safetensors"


class Interrupted(Exception):
    """Raised at the door after a signal, when the checkpoint is written."""


class Found(NamedTuple):
    """What a checkpoint folder holds: the file to go on from (None: start anew), whether that run had ended, and the
    reason for every file that was refused."""

    path: Path | None
    done: bool
    refused: list[str]


def find(folder: Path) -> Found:
    """`last`, else `previous`, else nothing."""
    refused = []
    for name in (LAST, PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        try:
            state = files.read(path)
            door = state["callbacks"][Door.state_key]
            return Found(path, bool(door["done"]), refused)
        except DataError as error:
            refused.append(f"{name}: {error.problems[0].got}")
        except (KeyError, TypeError):
            refused.append(f"{name}: not a checkpoint of a run")
    return Found(None, False, refused)


class Door(Checkpoint):
    """Saves `last` every `every` steps and at an epoch's start, never inside an accumulation; lands after a resume.

    settings   config by dotted key; what must be equal for the bits to be equal. A resume with others is refused

    SIGINT and SIGTERM are taken at the next door: the checkpoint is written, then Interrupted is raised. A second
    SIGINT stops at once.
    """

    state_key = "Door"

    def __init__(self, folder: Path, every: int, seed: int = 0, settings: dict[str, Any] | None = None):
        self.folder, self.every, self.seed, self.settings = folder, max(1, every), seed, settings or {}
        self.landing: dict[str, Any] | None = None
        self.saved_step = -1
        self.done = False
        self.at: dict[str, Any] = {}
        self.rng: list = []
        self.metrics: dict[str, float] = {}
        self.asked: int | None = None
        self.handlers: dict = {}

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        names = ("at", "rng", "saved_step", "done", "metrics", "settings")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.landing, self.saved_step = state, state["saved_step"]

    def where(self, trainer, batch: int) -> dict[str, Any]:
        rates = [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups]
        return {
            "epoch": trainer.current_epoch, "batch": batch, "step": trainer.global_step, "lr": rates,
            "stepped": trainer.fit_loop.epoch_loop._batches_that_stepped,
            "world": trainer.world_size, "threads": torch.get_num_threads(), "precision": str(trainer.precision),
            "torch": str(torch.__version__),
        }  # fmt: skip

    # ------------------------------------------------------------------ the door

    def on_train_start(self, trainer, module) -> None:
        if self.landing is None:
            # Each rank draws its own numbers: Lightning seeds all alike, and all would drop the same units.
            seed_all(self.seed, trainer.global_rank)
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.handlers[number] = signal.signal(number, self._ask)

    def on_train_batch_start(self, trainer, module, batch, batch_idx: int) -> None:
        if self.landing is not None:
            self._land(trainer, batch_idx)
        elif batch_idx % trainer.accumulate_grad_batches == 0:
            asked = trainer.strategy.reduce_boolean_decision(self.asked is not None, all=False)
            due = trainer.global_step % self.every == 0 or batch_idx == 0
            if asked or (due and self.saved_step != trainer.global_step):
                self._save(trainer, batch_idx)
            if asked:
                raise Interrupted(f"signal {self.asked} at step {trainer.global_step}")

    def _save(self, trainer, batch_idx: int) -> None:
        self.saved_step = trainer.global_step
        self.at, self.rng = self.where(trainer, batch_idx), all_ranks(trainer, get_rng())
        self.metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        trainer.save_checkpoint(self.folder / LAST, weights_only=False)

    def _land(self, trainer, batch_idx: int) -> None:
        saved, self.landing = self.landing, None
        # Three private touches of Lightning 2.6; tests/core/training compares bytes and would see a change.
        trainer.fit_loop.epoch_loop._batches_that_stepped = saved["at"]["stepped"]
        trainer.fit_loop._restarting = False
        metrics = {name: torch.tensor(value) for name, value in saved["metrics"].items()}
        trainer._logger_connector._callback_metrics.update(metrics)
        at = self.where(trainer, batch_idx)
        here, there = self.settings | at, saved["settings"] | saved["at"]
        if wrong := [key for key in here.keys() | there.keys() if here.get(key) != there.get(key)]:
            fix = "the same settings as before, or run.resume=weights to start anew from these weights"
            raise TrainingError(
                problems=[
                    Problem(f"resume: {key}", repr(here.get(key)), repr(there.get(key)), fix) for key in sorted(wrong)
                ]
            )
        self.at, self.metrics = at, saved["metrics"]
        set_rng(saved["rng"][trainer.global_rank])  # whatever start-up drew no longer matters

    def on_save_checkpoint(self, trainer, module, checkpoint: dict[str, Any]) -> None:
        # At the door Lightning has already announced the next batch.
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for side in ("total", "current"):
            progress[side]["ready"] = progress[side]["completed"]
        progress["is_last_batch"] = False

    def on_train_end(self, trainer, module) -> None:
        self._restore_handlers()
        self.done = True
        self._save(trainer, -1)
        if self.asked is not None:
            raise Interrupted(f"signal {self.asked} after the last step")

    # ------------------------------------------------------------------ signals

    def _ask(self, number: int, frame: Any) -> None:
        if self.asked is not None and number == signal.SIGINT:
            self._restore_handlers()
            raise KeyboardInterrupt
        self.asked = number

    def _restore_handlers(self) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers = {}

    def on_exception(self, trainer, module, exception: BaseException) -> None:
        self._restore_handlers()


class Best(Checkpoint):
    """Keeps the adapter and head of the best validation. Not a resume point: a resumed run writes the same file again.

    metric, mode   the score that decides; not a number loses to every number
    """

    state_key = "Best"

    def __init__(self, folder: Path, metric: str, mode: str):
        self.folder, self.metric, self.mode = folder, metric, mode
        self.score: float | None = None
        self.step = -1
        self.seen = -1  # step of the newest validation

    def state_dict(self) -> dict[str, Any]:
        return {"score": self.score, "step": self.step, "seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.score, self.step, self.seen = state["score"], state["step"], state["seen"]

    def on_validation_end(self, trainer, module) -> None:
        if trainer.sanity_checking or not module.validation:
            return
        if self.metric not in module.validation:
            raise TrainingError("metric.name", self.metric, sorted(module.validation))
        self.seen = trainer.global_step
        score = float(module.validation[self.metric].value)
        if self.beats(score):
            self.score, self.step = score, trainer.global_step
            if trainer.is_global_zero:
                content = {"tensors": module.carried(), "score": score, "metric": self.metric, "step": self.step}
                content |= {"base": module.fingerprint, "validation": plain(module.validation)}
                files.write(self.folder / BEST, content)

    def on_train_end(self, trainer, module) -> None:
        """The last step is always validated, whatever the interval. Before the door's own `on_train_end`."""
        if self.seen != trainer.global_step and trainer.limit_val_batches and trainer.datamodule.items("val"):
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True

    def beats(self, score: float) -> bool:
        if self.score is None or np.isnan(self.score):
            return self.score is None or not np.isnan(score)
        return score > self.score if self.mode == "max" else score < self.score


def plain(scores: dict) -> dict[str, dict[str, Any]]:
    """name -> Metric as result.json holds it."""
    return {name: MetricRecord.of(metric).model_dump(mode="json") for name, metric in scores.items()}


def seed_all(seed: int, rank: int) -> None:
    """Python's, numpy's and torch's generators, on every device, start at a value of (seed, rank)."""
    from core.data.seeding import derive

    value = derive(seed, "rank", rank)
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)


def get_rng() -> dict[str, Any]:
    """The global generators' states as plain values and tensors."""
    name, keys, position, has_gauss, cached = np.random.get_state()
    state = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_rng(state: dict[str, Any]) -> None:
    """The inverse of `get_rng`."""
    name, keys, *rest = state["numpy"]
    torch.set_rng_state(state["torch"].cpu())
    random.setstate(state["python"])
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


def all_ranks(trainer, value: Any) -> list:
    """[value of rank 0, value of rank 1, ...] on every rank."""
    if trainer.world_size == 1:
        return [value]
    values: list = [None] * trainer.world_size
    torch.distributed.all_gather_object(values, value)
    return values
