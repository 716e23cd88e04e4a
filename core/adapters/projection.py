"""Frozen random matrices that a seed makes again: not saved, equal on every device, and in memory once for all sites
that ask for the same ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn


class _Held(dict):
    """name -> matrix, kept while a method holds it."""


_held: WeakValueDictionary[tuple, _Held] = WeakValueDictionary()


class Seeded(nn.Module):
    """Mixin for methods whose frozen matrices come from `draw(*key)`, a module's function: name -> matrix."""

    def draw(self, draw: Callable[..., dict[str, Tensor]], *key, like: Tensor) -> None:
        """Register the matrices as buffers, on the device of `like` and in its dtype."""
        self._drawn = draw, key
        self._settle(like)

    def _settle(self, like: Tensor) -> None:
        draw, key = self._drawn
        place = draw, key, like.device, like.dtype
        held = _held.get(place)
        if held is None:
            with torch.device("cpu"):
                held = _Held({name: matrix.to(like) for name, matrix in draw(*key).items()})
            _held[place] = held
        self._kept = held
        for name, matrix in held.items():
            self.register_buffer(name, matrix, persistent=False)

    def _apply(self, fn, recurse=True):  # .to, .cuda, .double: sites share on the new device too
        super()._apply(fn, recurse)
        self._settle(self._buffers[next(iter(self._kept))])
        return self


def generator(seed: int) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


def he_uniform(shape: tuple[int, ...], fan: int, source: torch.Generator) -> Tensor:
    """Uniform with variance 2 / fan (He et al. 2015)."""
    bound = math.sqrt(3.0) * (math.sqrt(2) / math.sqrt(fan))
    return torch.empty(shape).uniform_(-bound, bound, generator=source)


def refuses_shape(shape: tuple[int, int], full: list[int] | None) -> str:
    """Why a site of `shape` cannot take its part of a projection of shape `full`."""
    if full is None or (len(full) == 2 and full[0] >= shape[0] and full[1] >= shape[1]):
        return ""
    return f"projection_shape {full}: (out, in), at least {shape} here; null gives each shape its own"
