"""What training cost: median step time after warm-up, examples per second, peak memory."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from core.training.memory import peak, reset_peak


class Cost(Callback):
    """Times what a batch computes (no loading, checkpoints or validation), summed over an accumulation.

    warmup   first steps that do not count; at most a fifth of those seen
    """

    def __init__(self, warmup: int = 10):
        self.warmup = warmup
        self.steps: list[float] = []  # s
        self.examples: list[int] = []
        self.running = 0.0
        self.peak: tuple[int, str] = (0, "")

    def on_fit_start(self, trainer, module) -> None:
        reset_peak(module.device)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx: int) -> None:
        if module.device.type == "cuda":
            torch.cuda.synchronize(module.device)
        self.running += time.perf_counter() - module.clock
        if module.step is not None:
            self.steps.append(self.running)
            self.examples.append(module.step.examples)
            self.running = 0.0

    def on_train_end(self, trainer, module) -> None:
        self.peak = peak(module.device)

    def result(self) -> dict[str, Any]:
        """The record's fields; empty where nothing was timed."""
        if not self.steps:
            return {}
        skip = min(self.warmup, len(self.steps) // 5)
        steps, examples = self.steps[skip:], self.examples[skip:]
        return {
            "step_time_s": statistics.median(steps),
            "examples_per_s": sum(examples) / sum(steps),
            "peak_memory_bytes": self.peak[0] or None,
            "memory_kind": self.peak[1] or None,
        }
