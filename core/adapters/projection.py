"""Frozen random matrices, or places, that a seed makes again: not saved, equal on every device, and in memory once for
all sites that ask for the same ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from core.errors import UnsupportedError


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
                made = draw(*key)
            held = _Held({n: m.to(like) if m.is_floating_point() else m.to(like.device) for n, m in made.items()})
            _held[place] = held
        self._kept = held
        for name, matrix in held.items():
            self.register_buffer(name, matrix, persistent=False)

    def _apply(self, fn, recurse=True):  # .to, .cuda, .double: sites share on the new device too
        super()._apply(fn, recurse)
        if "_drawn" in self.__dict__:
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


# In Hugging Face peft one projection of the largest out and in of all sites is cut for each -------------------------


def largest(places, options: dict) -> dict:
    """Nothing further for their configuration; UnsupportedError where our sites are not cut from that projection."""
    if not places:
        return {}
    most = [max(place.W.shape[axis] for place in places) for axis in (0, 1)]
    alike = all(list(place.W.shape) == most for place in places)
    given = options["projection_shape"]
    if list(given or most) != most or not (given or alike):
        allowed = f"projection_shape={most}: theirs cuts every site's from one of the largest out and in"
        raise UnsupportedError("adapter.projection_shape", given, allowed, f"train with projection_shape={most}")
    return {}


def cut(form, config: dict, tensors, shapes) -> tuple[dict, dict]:
    """(our options, path -> our name -> tensor) of their folder. shapes   path -> (out, in)"""
    most = [max(shape[axis] for shape in shapes.values()) for axis in (0, 1)]
    return {**form.options(config), "projection_shape": most}, {path: form.renamed(t) for path, t in tensors.items()}


def unlike(own: Tensor, saved: Tensor | None) -> str:
    """Why a method's drawn matrix is not the first columns of the one that their folder holds."""
    same = saved is None or torch.equal(saved.reshape(len(saved), -1)[:, : own.shape[1]].to(own), own)
    return "" if same else "its random projection is not the one that this seed draws"
