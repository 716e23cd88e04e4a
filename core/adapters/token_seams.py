"""The two seams of a token port: how virtual tokens enter a network, and how its outputs keep their length.

Seam `embeds`: the module that owns embeddings and blocks gets the vectors spliced into its input embeddings, its 2-d
mask and its positions extended, its output stripped. The head, the labels and the loss outside never see a virtual
token. Seam `blocks`: spliced in before the first block, stripped after the last, each block's own mask extended; real
tokens keep their absolute positions.

    positions follow the mask: with left padding the distance from prompt to text must not count pads
    the mask grows by the prompt at every decoding step, vectors enter an empty cache only; a cache filled under another
    adapter is refused by the tag that it carries
    encoders are right-padded: no seam can hide pads between prompt and text where distances count
    in a mixed batch short prompts get masked slots in front
"""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn

from core.adapters.seam import ADAPTERS, stored
from core.contracts import TokenPort
from core.errors import ConfigError, UnsupportedError

PLACE = "@tokens"
SEQUENCES = ("last_hidden_state", "hidden_states", "attentions")  # per-token fields of an inner model's output


class Tokens:
    """The virtual tokens in force: which adapters act, on which rows. Shared by the hosts of one port; holds no module
    of the network, so that copies stay independent."""

    def __init__(self, routing, methods: nn.ModuleDict, port: TokenPort):
        self.routing, self.methods, self.port = routing, methods, port

    def names(self) -> list[str | None]:
        """One adapter for all rows, or one name per row (None: no tokens); [] where nothing acts."""
        if self.routing.rows is not None:
            rows = [row if row in self.methods else None for row in self.routing.rows]
            return rows if any(rows) else []
        acting = {name: weight for name, weight in self.routing.active.items() if name in self.methods and weight}
        for name, weight in acting.items():
            if weight != 1.0:
                raise ConfigError(f"adapter {name}", f"weight {weight}", "1: virtual tokens cannot be scaled")
        return list(acting)

    def vectors(self, batch: int, like: Tensor) -> tuple[Tensor, Tensor | None] | None:
        """(batch, p, dim) in the dtype of `like`, and (batch, p) bool where rows differ in length; None: no tokens."""
        names = self.names()
        if not names:
            return None
        values = {name: self.methods[name]().to(like.dtype) for name in dict.fromkeys(names) if name is not None}
        if self.routing.rows is None:
            return values[names[0]].expand(batch, -1, -1), None
        if len(names) != batch:
            raise ConfigError(
                "mix", f"{len(names)} rows", f"{batch} rows in this batch", "expand the rows as the batch is"
            )
        longest = max(len(v) for v in values.values())
        keep = torch.zeros(batch, longest, dtype=torch.bool, device=like.device)
        rows = []
        for i, name in enumerate(names):
            value = like.new_zeros(0, next(iter(values.values())).shape[1]) if name is None else values[name]
            keep[i, longest - len(value) :] = True
            rows.append(torch.nn.functional.pad(value, (0, 0, longest - len(value), 0)))
        return torch.stack(rows), (None if all(n and len(values[n]) == longest for n in names) else keep)

    def tag(self) -> tuple | None:
        """What a cache was filled under."""
        names = self.names()
        return (self.routing.rows is not None, *names) if names else None


class Place:
    """What a host knows of the port: the tokens, its own arguments' names, its place in the stack of blocks."""

    def __init__(self, tokens: Tokens, host: nn.Module, first: bool = False, last: bool = False, keyword: str = ""):
        self.tokens, self.first, self.last, self.keyword = tokens, first, last, keyword
        self.arguments = tuple(inspect.signature(host.forward).parameters)

    def named(self, args: tuple, kwargs: dict) -> dict:
        return {**dict(zip(self.arguments, args, strict=False)), **kwargs}


# Seam `embeds` -------------------------------------------------------------------------------------------------------


def embeds_forward(host, inner, *args, **kwargs):
    """Forward wrapper of the inner model."""
    place: Place = host.__dict__[ADAPTERS][PLACE]
    tokens, port, kwargs = place.tokens, place.tokens.port, place.named(args, kwargs)
    cache = _cache(kwargs, port)
    past = cache.get_seq_length() if cache is not None else 0
    if past and getattr(cache, "_peft_tag", None) != tokens.tag():
        raise UnsupportedError(
            "cache",
            f"filled under {_spoken(getattr(cache, '_peft_tag', None))}",
            _spoken(tokens.tag()),
            "start a new cache",
        )
    x = kwargs.get(port.embeds)
    ids = kwargs.get(port.ids) if port.ids else None
    if x is None and ids is None:
        return inner(**kwargs)  # the library's own error
    batch, length = (x if x is not None else ids).shape[:2]
    like = x if x is not None else stored(host.get_submodule(port.embed), "weight")
    found = tokens.vectors(batch, like)
    if found is None:
        return inner(**kwargs)
    vectors, keep = found
    _check(kwargs, port, cache, past, keep, batch)
    if x is None:
        x = host.get_submodule(port.embed)(ids)
        kwargs.pop(port.ids)
    p, mask = vectors.shape[1], kwargs.get(port.mask) if port.mask else None
    if port.positions:
        kwargs[port.positions] = _positions(
            kwargs.get(port.positions), mask, keep, port, batch, length, past, p, x.device
        )
    kwargs.update(_extended(kwargs, port, mask, keep, batch, length, past, p, x.device))
    if not past:
        x = _splice(x, vectors.to(x.dtype), port.leading)
    kwargs[port.embeds] = x
    output = inner(**kwargs)
    made = cache if cache is not None or not isinstance(output, dict) else _cache(output, port)
    if made is not None:
        made._peft_tag = tokens.tag()
    return output if past or port.memory else _strip(output, port.leading, p, length)


def memory_forward(host, inner, *args, **kwargs):
    """Forward wrapper of a decoder that reads the encoder's output, virtual tokens included: its mask grows."""
    place: Place = host.__dict__[ADAPTERS][PLACE]
    kwargs = place.named(args, kwargs)
    mask = kwargs.get(place.keyword)
    if mask is not None:
        found = place.tokens.vectors(len(mask), mask.float())
        if found is not None:
            ones = mask.new_ones(len(mask), found[0].shape[1])
            kwargs[place.keyword] = _splice(
                mask, ones if found[1] is None else found[1].to(mask.dtype), place.tokens.port.leading
            )
    return inner(**kwargs)


embeds_forward.layer = memory_forward.layer = 2  # around what weight methods do


def _check(kwargs, port: TokenPort, cache, past: int, keep, batch: int) -> None:
    mask = kwargs.get(port.mask) if port.mask else None
    if getattr(cache, "is_compileable", False):
        raise UnsupportedError("cache", type(cache).__name__, "a dynamic cache", "a static cache's mask is made before")
    if mask is not None and mask.ndim != 2:
        raise UnsupportedError(port.mask, f"{mask.ndim}-d mask", "(batch, tokens)", "pass the padding mask alone")
    encoder = port.cache is None
    if encoder and mask is not None and not torch.compiler.is_compiling() and not bool(mask[:, 0].all()):
        raise UnsupportedError(
            port.mask, "left-padded rows", "right-padded rows", "pad on the right: distances count here"
        )
    if keep is not None and port.positions is None and port.leading:
        raise UnsupportedError(
            "mix", "prompts of different lengths", "one length: this network counts positions itself", "equal `tokens`"
        )


def _positions(given, mask, keep, port, batch, length, past, p, device) -> Tensor:
    """(batch, tokens) positions of virtual and real tokens; real ones move up by the number of virtual tokens."""
    if given is None and mask is not None:
        given = (mask.long().cumsum(1) - 1).clamp_min(0)[:, -length:]
    if given is None:
        start = past - p if past else 0
        given = torch.arange(start, start + length, device=device)
    given = given.expand(batch, -1) if given.ndim == 2 else given[None].expand(batch, -1)
    shift = p if keep is None else keep.sum(1, keepdim=True)
    if past:
        return given + shift
    own = torch.arange(p, device=device).expand(batch, -1) if keep is None else (keep.cumsum(1) - 1).clamp_min(0)
    front = given[:, : port.leading]
    start = front[:, -1:] + 1 if port.leading else 0
    return torch.cat([front, own + start, given[:, port.leading :] + shift], 1)


def _extended(kwargs, port, mask, keep, batch, length, past, p, device) -> dict:
    """The mask, at every step, and the other per-token keywords, where vectors go in."""
    changed = {}
    if mask is not None or keep is not None:
        if mask is None:
            mask = torch.ones(batch, length + (past - p if past else 0), dtype=torch.long, device=device)
        own = mask.new_ones(batch, p) if keep is None else keep.to(mask.dtype)
        changed[port.mask] = _splice(mask, own, port.leading)
    for name, value in () if past else _pairs(port.fill):
        if kwargs.get(name) is not None:
            changed[name] = _splice(kwargs[name], kwargs[name].new_full((batch, p), value), port.leading)
    return changed


def _pairs(fill: tuple) -> tuple:
    """(("token_type_ids", 0), ...) from that, or from one flat pair."""
    return (fill,) if fill and isinstance(fill[0], str) else fill


def _strip(output, leading: int, p: int, length: int):
    """The output without its virtual tokens."""
    if isinstance(output, Tensor):
        return _cut(output, 1, leading, p, length)
    if isinstance(output, dict):
        for name in SEQUENCES:
            if output.get(name) is not None:
                output[name] = _cut_all(output[name], 1, leading, p, length)
        return output
    return type(output)(_cut_all(part, 1, leading, p, length) for part in output)


# Seam `blocks` -------------------------------------------------------------------------------------------------------


def block_forward(host, inner, *args, **kwargs):
    """Forward wrapper of every block: in at the first, out after the last, masks and rotations extended in all."""
    place: Place = host.__dict__[ADAPTERS][PLACE]
    port, kwargs = place.tokens.port, place.named(args, kwargs)
    x = kwargs.pop(place.arguments[0])
    found = place.tokens.vectors(x.shape[1 - port.axis], x)
    if found is None:
        return inner(x, **kwargs)
    vectors, keep = found
    batch, p = vectors.shape[:2]
    if place.first:
        x = _splice(x, vectors if port.axis == 1 else vectors.transpose(0, 1), port.leading, port.axis)
    length = x.shape[port.axis] - p
    if port.bkind == "none" and keep is not None:
        raise UnsupportedError(
            "mix", "prompts of different lengths", "one length: these blocks have no mask", "equal `tokens`"
        )
    if port.bkind != "none":
        extend = _extend_additive if port.bkind == "add4d" else _extend_padding
        kwargs[port.bmask] = extend(kwargs.get(port.bmask), keep, port.leading, batch, length, p, x)
    if port.rope and kwargs.get(port.rope) is not None:
        cos, sin = kwargs[port.rope]
        size = (*cos.shape[:-2], p, cos.shape[-1])
        pairs = ((cos, cos.new_ones(size)), (sin, sin.new_zeros(size)))
        kwargs[port.rope] = tuple(_splice(table, own, port.leading, -2) for table, own in pairs)
    output = inner(x, **kwargs)
    parts = list(output) if isinstance(output, (tuple, list)) else [output]
    if place.last:
        parts[0] = _cut(parts[0], port.axis, port.leading, p, length)
    parts[1:] = [_cut_map(part, port.leading, p, length) for part in parts[1:]]
    return type(output)(parts) if isinstance(output, (tuple, list)) else parts[0]


def wrap_forward(host, inner, *args, **kwargs):
    """Forward wrapper of the module that collects states between blocks: they lose their virtual tokens."""
    tokens: Tokens = host.__dict__[ADAPTERS][PLACE].tokens
    output = inner(*args, **kwargs)
    first = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
    if first is None or not tokens.names() or not hasattr(output, "keys"):
        return output
    p = max(len(tokens.methods[name]()) for name in tokens.names() if name is not None)
    for name in {*tokens.port.tokens_out, "attentions"} & set(output.keys()):
        if output[name] is not None:
            output[name] = _cut_all(output[name], 1, tokens.port.leading, p, first.shape[1])
    return output


block_forward.layer = wrap_forward.layer = 2


def _extend_additive(mask, keep, leading: int, batch: int, length: int, p: int, x: Tensor):
    """(B, heads, Tq, Tk) bool (True: seen) or additive; virtual tokens see what the first real token sees."""
    if mask is None and keep is None:
        return None
    if mask is None:
        mask = x.new_zeros(batch, 1, length, length)
    _right_padded(mask[:, 0, 0] if mask.dtype == torch.bool else mask[:, 0, 0] == 0)
    seen = torch.ones(batch, p, dtype=torch.bool, device=x.device) if keep is None else keep
    if mask.dtype != torch.bool:
        lowest = torch.finfo(mask.dtype).min
        seen = torch.zeros(seen.shape, dtype=mask.dtype, device=x.device).masked_fill(~seen, lowest)
    columns = seen[:, None, None].expand(batch, mask.shape[1], mask.shape[2], p)
    mask = _splice(mask.expand(batch, -1, -1, -1), columns, leading, -1)
    if mask.shape[2] == 1:
        return mask
    return _splice(mask, mask[:, :, :1].expand(-1, -1, p, -1), leading, -2)


def _extend_padding(mask, keep, leading: int, batch: int, length: int, p: int, x: Tensor):
    """(B, T) bool, True at pads."""
    if mask is None and keep is None:
        return None
    if mask is None:
        mask = torch.zeros(batch, length, dtype=torch.bool, device=x.device)
    _right_padded(~mask.bool())
    own = mask.new_zeros(batch, p) if keep is None else (~keep).to(mask.dtype)
    return _splice(mask, own, leading)


def _right_padded(seen: Tensor) -> None:
    if not torch.compiler.is_compiling() and not bool(seen[:, 0].all()):
        raise UnsupportedError(
            "mask", "left-padded rows", "right-padded rows", "pad on the right: distances count here"
        )


# Tensors -------------------------------------------------------------------------------------------------------------


def _splice(x: Tensor, own: Tensor, leading: int, axis: int = 1) -> Tensor:
    front, back = x.narrow(axis, 0, leading), x.narrow(axis, leading, x.shape[axis] - leading)
    return torch.cat([front, own, back], axis)


def _cut(x: Tensor, axis: int, leading: int, p: int, length: int) -> Tensor:
    """x without the p entries after `leading`, where it has length + p of them."""
    if x.ndim <= axis or x.shape[axis] != length + p:
        return x
    back = x.narrow(axis, leading + p, length - leading)
    return back if not leading else torch.cat([x.narrow(axis, 0, leading), back], axis)


def _cut_map(x, leading: int, p: int, length: int):
    """An attention map (..., T, T) without rows and columns of virtual tokens; anything else as it is."""
    if not isinstance(x, Tensor) or x.ndim < 4 or x.shape[-1] != length + p:
        return x
    return _cut(_cut(x, x.ndim - 1, leading, p, length), x.ndim - 2, leading, p, length)


def _cut_all(value, axis: int, leading: int, p: int, length: int):
    if isinstance(value, Tensor):
        return _cut(value, axis, leading, p, length) if value.ndim == 3 else _cut_map(value, leading, p, length)
    if isinstance(value, dict):
        return {key: _cut_all(v, axis, leading, p, length) for key, v in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_cut_all(v, axis, leading, p, length) for v in value)
    return value


def _cache(named: dict, port: TokenPort):
    """The cache among arguments or outputs; libraries rename the keyword: `cache|past_key_values`."""
    present = (name for name in (port.cache or "").split("|") if name in named.keys())
    return next((named[name] for name in present if named[name] is not None), None)


def _spoken(tag) -> str:
    return f"token adapter {', '.join(map(str, tag[1:]))}" if tag else "no token adapter"
