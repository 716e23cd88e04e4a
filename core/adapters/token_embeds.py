"""Seam `embeds`: the module that owns embeddings and blocks gets the vectors spliced into its input embeddings, its 2-d
mask and its positions extended, its output stripped. The head, the labels and the loss outside never see a virtual
token.

    the mask grows by the prompt at every decoding step, vectors enter an empty cache only
    encoders are right-padded: no seam can hide pads between prompt and text where distances count
    in a mixed batch short prompts get masked slots in front
"""

from __future__ import annotations

import torch
from torch import Tensor

from core.adapters.seam import ADAPTERS, stored
from core.adapters.token_state import (
    Place,
    cache_of,
    cut,
    cut_all,
    moved_up,
    past_of,
    real_positions,
    right_padded,
    splice,
    tag_cache,
)
from core.contracts import TokenPort
from core.errors import UnsupportedError

PLACE = "@tokens"
SEQUENCES = ("last_hidden_state", "hidden_states", "attentions")  # per-token fields of an inner model's output


def embeds_forward(host, inner, *args, **kwargs):
    """Forward wrapper of the inner model."""
    place: Place = host.__dict__[ADAPTERS][PLACE]
    tokens, port, kwargs = place.tokens, place.tokens.port, place.named(args, kwargs)
    cache = cache_of(kwargs, port.cache)
    past = past_of(cache, tokens)
    x = kwargs.get(port.embeds)
    ids = kwargs.get(port.ids) if port.ids else None
    if x is None and ids is None:
        return inner(**kwargs)  # the library's own error
    batch, length = (x if x is not None else ids).shape[:2]
    like = x if x is not None else stored(host.get_submodule(port.embed), "weight")
    room = tokens.room(batch, like.device)
    if room is None:
        return inner(**kwargs)
    p, keep = room
    _check(kwargs, port, cache, keep)
    if x is None:
        x = host.get_submodule(port.embed)(ids)
        kwargs.pop(port.ids)
    mask = kwargs.get(port.mask) if port.mask else None
    if port.positions:
        given = kwargs.get(port.positions)
        kwargs[port.positions] = _positions(given, mask, keep, port, batch, length, past, p, x.device)
    kwargs.update(_extended(kwargs, port, mask, keep, batch, length, past, p, x.device))
    if not past:
        x = splice(x, tokens.vectors(batch, like).to(x.dtype), port.leading)
    kwargs[port.embeds] = x
    output = moved_up(inner, kwargs, p, length)
    tag_cache(cache, output, port.cache, tokens)
    return output if past or port.memory else _strip(output, port.leading, p, length)


def memory_forward(host, inner, *args, **kwargs):
    """Forward wrapper of a decoder that reads the encoder's output, virtual tokens included: its mask grows."""
    place: Place = host.__dict__[ADAPTERS][PLACE]
    kwargs = place.named(args, kwargs)
    mask = kwargs.get(place.keyword)
    room = place.tokens.room(len(mask), mask.device) if mask is not None else None
    if room is not None:
        p, keep = room
        own = mask.new_ones(len(mask), p) if keep is None else keep.to(mask.dtype)
        kwargs[place.keyword] = splice(mask, own, place.tokens.port.leading)
    return inner(**kwargs)


embeds_forward.layer = memory_forward.layer = 2  # around what weight methods do


def _check(kwargs, port: TokenPort, cache, keep) -> None:
    mask = kwargs.get(port.mask) if port.mask else None
    if getattr(cache, "is_compileable", False):
        raise UnsupportedError("cache", type(cache).__name__, "a dynamic cache", "a static cache's mask is made before")
    if mask is not None and mask.ndim != 2:
        raise UnsupportedError(port.mask, f"{mask.ndim}-d mask", "(batch, tokens)", "pass the padding mask alone")
    if port.cache is None and mask is not None:
        right_padded(mask.bool(), port.mask)
    if keep is not None and port.positions is None and port.leading:
        raise UnsupportedError(
            "mix", "prompts of different lengths", "one length: this network counts positions itself", "equal `tokens`"
        )


def _positions(given, mask, keep, port, batch, length, past, p, device) -> Tensor:
    """(batch, tokens) positions of virtual and real tokens; real ones move up by the number of virtual tokens."""
    given = real_positions(given, mask, batch, length, past - p if past else 0, device)
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
        changed[port.mask] = splice(mask, own, port.leading)
    for name, value in () if past else _pairs(port.fill):
        if kwargs.get(name) is not None:
            changed[name] = splice(kwargs[name], kwargs[name].new_full((batch, p), value), port.leading)
    return changed


def _pairs(fill: tuple) -> tuple:
    """(("token_type_ids", 0), ...) from that, or from one flat pair."""
    return (fill,) if fill and isinstance(fill[0], str) else fill


def _strip(output, leading: int, p: int, length: int):
    """The output without its virtual tokens."""
    if isinstance(output, Tensor):
        return cut(output, 1, leading, p, length)
    if isinstance(output, dict):
        for name in SEQUENCES:
            if output.get(name) is not None:
                output[name] = cut_all(output[name], 1, leading, p, length)
        return output
    return type(output)(cut_all(part, 1, leading, p, length) for part in output)
