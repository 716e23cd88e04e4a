"""Peak memory of this process, and what running out of it looks like."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from core.errors import TrainingError


def reset_peak(device: torch.device) -> None:
    """Start a new peak, without what earlier runs of this process left behind. Where the system cannot (no Linux, no
    permission) the peak stays the process's whole life's."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc keeps what was freed, a sweep's earlier cells
        trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def peak(device: torch.device) -> tuple[int, str]:
    """(bytes, kind): `cuda` is torch's own peak on the device, `rss` the process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), "cuda"
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024, "rss"
    except OSError:
        pass
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "rss"


def exhausted(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on a device or on the host."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)


@contextmanager
def out_of_memory(where: str, what: str) -> Iterator[None]:
    """Turn running out of memory into a TrainingError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not exhausted(error):
            raise
        fix = "a smaller loader.tokens or loader.batch_size with trainer.accumulate_grad_batches raised likewise"
        raise TrainingError(where, f"out of memory: {what}", "a batch that fits", fix) from error
