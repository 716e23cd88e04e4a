"""metrics.csv: step, split, name, value. Append only, no clock, floats by repr; a resume cuts it at its checkpoint."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback

from core.errors import TrainingError

HEADER = "step,split,name,value\n"


class Rows(Callback):
    """Writes the mean training loss, the methods' own penalty and the learning rate every `every` steps, and all scores
    of every validation."""

    state_key = "Rows"

    def __init__(self, path: Path, every: int):
        self.path, self.every = path, max(1, every)
        self.length = 0  # bytes that belong to the run
        self.loss, self.items = 0.0, 0.0  # since the last row
        self.penalty: float | None = None  # of methods that have one
        self.examples = 0  # all of the run

    def state_dict(self) -> dict[str, Any]:
        # Called while a checkpoint is made: the rows that it counts must be on the disk before it is.
        if self.path.exists():
            with open(self.path, "ab") as file:
                os.fsync(file.fileno())
        state = {"length": self.length, "loss": self.loss, "items": self.items, "examples": self.examples}
        return state if self.penalty is None else state | {"penalty": self.penalty}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.length, self.loss = state["length"], state["loss"]
        self.items, self.examples, self.penalty = state["items"], state["examples"], state.get("penalty")

    def on_train_start(self, trainer, module) -> None:
        if not trainer.is_global_zero:
            return
        if self.length == 0:
            self.path.write_text(HEADER, encoding="utf-8")
            self.length = len(HEADER)
        elif self.path.exists():
            os.truncate(self.path, self.length)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx: int) -> None:
        if module.step is None:
            return
        self.loss += module.step.loss * module.step.items
        self.items += module.step.items
        if module.step.penalty is not None:
            self.penalty = (self.penalty or 0.0) + module.step.penalty * module.step.items
        self.examples += module.step.examples
        if trainer.global_step % self.every == 0:
            lr = trainer.optimizers[0].param_groups[0]["lr"]
            items = self.items or float("nan")
            own = {} if self.penalty is None else {"penalty": self.penalty / items}
            self.write(trainer, "train", {"loss": self.loss / items, **own, "lr": float(lr)})
            self.loss, self.items, self.penalty = 0.0, 0.0, None

    def on_validation_end(self, trainer, module) -> None:
        if not trainer.sanity_checking:
            self.write(trainer, "val", {name: float(metric.value) for name, metric in module.validation.items()})

    def write(self, trainer, split: str, values: dict[str, float]) -> None:
        text = "".join(f"{trainer.global_step},{split},{quoted(name)},{value!r}\n" for name, value in values.items())
        self.length += len(text.encode())
        if not trainer.is_global_zero:
            return
        try:
            with open(self.path, "a", encoding="utf-8", newline="") as file:
                file.write(text)
        except OSError as error:
            got = f"{error.strerror} (errno {error.errno})"
            raise TrainingError(str(self.path), got, "a disk that takes it") from error


def quoted(name: str) -> str:
    return f'"{name}"' if "," in name else name
