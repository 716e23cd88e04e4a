"""Randomness as a function of names: the same (seed, words) always draws the same numbers, in any process."""

from __future__ import annotations

import hashlib
import random
from contextlib import contextmanager
from typing import Any


def derive(seed: int, *words: Any) -> int:
    """A 63-bit seed that depends on `seed` and every word, in order."""
    text = "\0".join([str(seed), *map(str, words)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@contextmanager
def guard(seed: int):
    """Python's, numpy's and torch's (CPU) global generators start at `seed` inside, and are put back on leaving.

    So third-party augmentations draw the same numbers in any worker, and never disturb the training's own draws.
    """
    import numpy as np
    import torch

    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    # Not torch.manual_seed: that one also seeds every accelerator.
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
