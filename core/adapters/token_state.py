"""What the seams of a token port share: which token adapters act on which rows, what a host knows of the port, and the
two rules that hold at every seam.

    positions follow the mask: with left padding the distance from prompt to text must not count pads
    a cache that was filled under another adapter is refused, by the tag that it carries
"""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn

from core.contracts import TokenPort
from core.errors import ConfigError, UnsupportedError


class Tokens:
    """The virtual tokens in force: which adapters act, on which rows. Shared by the hosts of one seam; holds no module
    of the network, so that copies stay independent.

    serves   what methods of this seam ask for: "tokens", "deep", "kv" (TokenMethod.seam)"""

    def __init__(self, routing, methods: nn.ModuleDict, port: TokenPort, serves: tuple[str, ...] = ()):
        self.routing, self.methods, self.port, self.serves = routing, methods, port, serves

    def names(self, every: bool = False) -> list[str | None]:
        """One adapter for all rows, or one name per row (None: no tokens); [] where nothing acts at this seam.

        every   at any seam of the model"""
        here = [name for name in self.methods if every or self.methods[name].seam in self.serves]
        if self.routing.rows is not None:
            rows = [row if row in here else None for row in self.routing.rows]
            return rows if any(rows) else []
        acting = {name: weight for name, weight in self.routing.active.items() if name in here and weight}
        for name, weight in acting.items():
            if weight != 1.0:
                raise ConfigError(f"adapter {name}", f"weight {weight}", "1: virtual tokens cannot be scaled")
        return list(acting)

    def room(self, batch: int, device) -> tuple[int, Tensor | None] | None:
        """(p, (batch, p) bool where rows differ in length: short prompts stand at the end); None: no tokens."""
        names = self.names()
        if not names:
            return None
        if self.routing.rows is None:
            return self.methods[names[0]].tokens, None
        self.fits(batch)
        counts = torch.tensor([self.methods[name].tokens if name else 0 for name in names], device=device)
        p = max(self.methods[name].tokens for name in names if name)
        if all(name and self.methods[name].tokens == p for name in names):
            return p, None
        return p, torch.arange(p, device=device) >= p - counts[:, None]

    def vectors(self, batch: int, like: Tensor, layer: int | None = None) -> Tensor | None:
        """(batch, p, dim) in the dtype of `like`; short prompts get zeros in front. `layer`: of a block; None: once."""
        names, room = self.names(), self.room(batch, like.device)
        if room is None:
            return None
        values = {name: self._value(name, layer).to(like.dtype) for name in dict.fromkeys(names) if name is not None}
        if self.routing.rows is None:
            return values[names[0]].expand(batch, -1, -1)
        empty = like.new_zeros(0, next(iter(values.values())).shape[1])
        rows = [empty if name is None else values[name] for name in names]
        return torch.stack([nn.functional.pad(row, (0, 0, room[0] - len(row), 0)) for row in rows])

    def _value(self, name: str, layer: int | None) -> Tensor:
        return self.methods[name]() if layer is None else self.methods[name](layer)

    def fits(self, batch: int) -> None:
        if len(self.routing.rows) != batch:
            got, fix = f"{len(self.routing.rows)} rows", "expand the rows as the batch is; windows cannot be mixed"
            raise ConfigError("mix", got, f"{batch} rows in this batch", fix)

    def tag(self) -> tuple | None:
        """What a cache was filled under: every token adapter of the model, whatever its seam."""
        names = self.names(every=True)
        return (self.routing.rows is not None, *names) if names else None


class Place:
    """What a host knows of the port: the tokens, its own arguments' names, its place among the hosts of its seam.

    keyword   of the mask or the cache that the host gets; an attention's own path
    hits      forward passes in which it took tokens: liveness counts them"""

    def __init__(self, tokens: Tokens, host: nn.Module, index: int = 0, last: bool = False, keyword: str | None = None):
        self.tokens, self.index, self.last, self.keyword = tokens, index, last, keyword
        self.arguments = tuple(inspect.signature(host.forward).parameters)
        self.hits = 0

    def named(self, args: tuple, kwargs: dict) -> dict:
        return {**dict(zip(self.arguments, args, strict=False)), **kwargs}


# Positions -----------------------------------------------------------------------------------------------------------


def real_positions(given, mask, batch: int, length: int, start: int, device) -> Tensor:
    """(batch, tokens) positions of real tokens: those given, else counted over the mask, else from `start`."""
    if given is None and mask is not None and mask.ndim == 2:
        given = (mask.long().cumsum(1) - 1).clamp_min(0)[:, -length:]
    if given is None:
        given = torch.arange(start, start + length, device=device)
    return given.expand(batch, -1) if given.ndim == 2 else given[None].expand(batch, -1)


def moved_up(inner, named: dict, shift: int, length: int):
    """The network's own forward on moved positions; learned ones end somewhere, and torch names only the index."""
    try:
        return inner(**named)
    except IndexError as error:
        if not shift:  # nothing was moved: the network's own error
            raise
        got = f"{shift} virtual tokens before {length} real ones"
        fix = "fewer adapter.tokens, or shorter texts (task.max_length)"
        raise UnsupportedError("adapter.tokens", got, "no more than the network has positions", fix) from error


def right_padded(seen: Tensor, where: str = "mask", fix: str = "pad on the right: distances count here") -> None:
    """`seen` (batch, tokens) bool; one look per forward pass, none inside a compiled graph."""
    if not torch.compiler.is_compiling() and not bool(seen[:, 0].all()):
        raise UnsupportedError(where, "left-padded rows", "right-padded rows", fix)


# Caches --------------------------------------------------------------------------------------------------------------


def cache_of(named: dict, keywords: str | None):
    """The cache among arguments or outputs; libraries rename the keyword: `cache|past_key_values`."""
    present = (name for name in (keywords or "").split("|") if name in named.keys())
    return next((named[name] for name in present if named[name] is not None), None)


def past_of(cache, tokens: Tokens) -> int:
    """Tokens in a cache. UnsupportedError where it was filled under another adapter than those that act now."""
    past = cache.get_seq_length() if cache is not None else 0
    now, then = tokens.tag(), getattr(cache, "_peft_tag", None)
    if then != now and past:
        raise UnsupportedError("cache", f"filled under {_spoken(then)}", _spoken(now), "start a new cache")
    return past


def tag_cache(cache, output, keywords: str | None, tokens: Tokens) -> None:
    """Note on the cache, given or made, what it is filled under."""
    made = cache if cache is not None or not isinstance(output, dict) else cache_of(output, keywords)
    if made is not None:
        made._peft_tag = tokens.tag()


def _spoken(tag) -> str:
    return f"token adapter {', '.join(map(str, tag[1:]))}" if tag else "no token adapter"


# Tensors -------------------------------------------------------------------------------------------------------------


def splice(x: Tensor, own: Tensor, leading: int, axis: int = 1) -> Tensor:
    front, back = x.narrow(axis, 0, leading), x.narrow(axis, leading, x.shape[axis] - leading)
    return torch.cat([front, own, back], axis)


def cut(x: Tensor, axis: int, leading: int, p: int, length: int) -> Tensor:
    """x without the p entries after `leading`, where it has length + p of them."""
    if x.ndim <= axis or x.shape[axis] != length + p:
        return x
    back = x.narrow(axis, leading + p, length - leading)
    return back if not leading else torch.cat([x.narrow(axis, 0, leading), back], axis)


def cut_map(x, leading: int, p: int, length: int):
    """An attention map (..., T, T) without rows and columns of virtual tokens; anything else as it is."""
    if not isinstance(x, Tensor) or x.ndim < 4 or x.shape[-1] != length + p:
        return x
    return cut(cut(x, x.ndim - 1, leading, p, length), x.ndim - 2, leading, p, length)


def cut_all(value, axis: int, leading: int, p: int, length: int):
    if isinstance(value, Tensor):
        return cut(value, axis, leading, p, length) if value.ndim == 3 else cut_map(value, leading, p, length)
    if isinstance(value, dict):
        return {key: cut_all(v, axis, leading, p, length) for key, v in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(cut_all(v, axis, leading, p, length) for v in value)
    return value
