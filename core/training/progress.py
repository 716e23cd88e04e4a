"""What the terminal says: whole lines, and one step line that rewrites itself (in a file: one line per 10 %)."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from lightning.pytorch.callbacks import Callback

from core.main import follower

WIDTH = 100


class Screen:
    """Prints lines for people and keeps them in run.log; `quiet` (other ranks) does neither."""

    def __init__(self, log: Path | None = None, quiet: bool = False):
        self.log, self.quiet = log, quiet
        self.live = False  # a step line stands in the terminal
        self.terminal = sys.stdout.isatty()

    def say(self, text: str = "") -> None:
        if self.quiet:
            return
        self.clear()
        print(text, flush=True)
        self._keep(text)

    def step(self, text: str, mark: bool) -> None:
        """The step line; `mark`: it is due in a file."""
        if self.quiet:
            return
        if self.terminal:
            sys.stdout.write("\r" + text[: WIDTH - 1].ljust(WIDTH - 1))
            sys.stdout.flush()
            self.live = True
        elif mark:
            print(text, flush=True)
        if mark:
            self._keep(text)

    def clear(self) -> None:
        if self.live:
            sys.stdout.write("\n")
            self.live = False

    def _keep(self, text: str) -> None:
        if self.log is not None:
            with open(self.log, "a", encoding="utf-8") as file:
                file.write(text + "\n")


class Progress(Callback):
    """` 60 %  step 120/200  loss 0.412  val P@L/5 0.31 (best 0.33 at 100)  84 ex/s  left 0:19`"""

    def __init__(self, screen: Screen, best, total: int):
        self.screen, self.best, self.total = screen, best, max(1, total)
        self.begin, self.first, self.examples = 0.0, 0, 0
        self.shown = -1  # tenths
        self.drawn = 0.0
        self.loss: float | None = None

    def on_train_start(self, trainer, module) -> None:
        self.begin, self.first = time.monotonic(), trainer.global_step
        self.shown = 10 * trainer.global_step // self.total

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx: int) -> None:
        if module.step is None:
            return
        self.examples += module.step.examples
        # A running mean: one batch's loss says little.
        self.loss = module.step.loss if self.loss is None else 0.9 * self.loss + 0.1 * module.step.loss

    def on_train_batch_start(self, trainer, module, batch, batch_idx: int) -> None:
        self.draw(trainer, module)  # not at the batch's end: a validation may lie between

    def on_train_end(self, trainer, module) -> None:
        self.draw(trainer, module, last=True)
        self.screen.clear()

    def draw(self, trainer, module, last: bool = False) -> None:
        step, now = trainer.global_step, time.monotonic()
        tenth = 10 * step // self.total
        mark = tenth > self.shown
        if not (mark or last or now - self.drawn > 0.1) or self.loss is None:
            return
        self.drawn, self.shown = now, max(tenth, self.shown)
        spent = now - self.begin
        parts = [f"{min(100, 100 * step // self.total):3d} %", f"step {step}/{self.total}", f"loss {self.loss:.3f}"]
        metric = module.validation.get(self.best.metric)
        if metric is not None:
            kept = f" (best {self.best.score:.3g} at {self.best.step})" if self.best.score is not None else ""
            parts.append(f"val {self.best.metric} {metric.value:.3g}{kept}")
        if spent > 0 and self.examples:
            parts.append(f"{self.examples / spent:.3g} ex/s")
        if step > self.first:
            parts.append(f"left {clock(spent / (step - self.first) * (self.total - step))}")
        self.screen.step("  ".join(parts), mark)


def told(items: Sequence, what: str) -> Iterator:
    """The items one by one; where that takes more than two seconds, the step line says how far it is."""
    screen, begin, shown = Screen(quiet=follower()), time.monotonic(), 0
    for i, item in enumerate(items):
        spent, tenth = time.monotonic() - begin, 10 * i // len(items)
        if spent > 2:
            left = clock(spent / i * (len(items) - i))
            screen.step(f"{100 * i // len(items):3d} %  {what} {i}/{len(items)}  left {left}", tenth > shown)
            shown = tenth
        yield item
    screen.clear()


def clock(seconds: float) -> str:
    """`0:19`, `12:03`, `3:05:00`."""
    minutes, seconds = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
