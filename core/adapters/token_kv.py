"""Seam `kv`: inside an attention module its one scaled_dot_product_attention call gets virtual keys and values. The
cache, its length, generation and windows know nothing of them, so none of these can go wrong.

    in front   one softmax over virtual and real keys; the mask gets p visible columns
    gated      the call as it was, bit for bit, plus gate x attention to the virtual keys alone, with its own softmax
    liveness   a forward that makes no such call, or two, is an error that names the module (eager? fused otherwise?)
    mixing     rows are grouped by adapter: any lengths, gated and not, and rows without keep the library's own call
    positions  where a method shifts, real tokens move up by p, counted over the mask. Where it does not, left-padded
               rows need the library's own positions: keys at fixed positions would stand nearer by the number of pads
"""

from __future__ import annotations

from types import FunctionType

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from core.adapters.seam import ADAPTERS
from core.adapters.token_state import (
    Place,
    Tokens,
    cache_of,
    moved_up,
    past_of,
    real_positions,
    right_padded,
    tag_cache,
)
from core.errors import UnsupportedError

PLACE = "@kv"
OUTER = "@steps"


def attention_forward(host, inner, *args, **kwargs):
    """Forward wrapper of an attention module."""
    place: Place = host.__dict__[ADAPTERS][PLACE]
    if not place.tokens.names():
        return inner(*args, **kwargs)
    flags, calls = place.tokens.port.flags, []
    before = {name: getattr(host, name) for name, _ in flags}
    for name, value in flags:
        setattr(host, name, value)
    try:
        with InFront(place.tokens, place.index, calls):
            output = inner(*args, **kwargs)
    finally:
        for name, value in before.items():
            setattr(host, name, value)
    if len(calls) != 1:
        raise UnsupportedError(
            f"{type(host).__name__} {place.keyword}",
            f"{len(calls)} calls of scaled_dot_product_attention",
            "exactly one: virtual keys and values enter there",
            "attn_implementation=sdpa where the library has it; else a weight or activation method",
        )
    if not torch.compiler.is_compiling():
        place.hits += 1
    return output


class InFront(TorchFunctionMode):
    """Sees the attention calls of one forward, and notes each in `calls`: a list outside, because a compiled graph
    keeps no number on a mode."""

    def __init__(self, tokens: Tokens, layer: int, calls: list):
        super().__init__()
        self.tokens, self.layer, self.calls = tokens, layer, calls

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.scaled_dot_product_attention:
            return self.attend(*args, **(kwargs or {}))
        if function is F.multi_head_attention_forward:
            return _functional(self)(*args, **(kwargs or {}))
        return function(*args, **(kwargs or {}))

    def attend(self, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, **more) -> Tensor:
        self.calls.append(self.layer)
        tokens, names = self.tokens, self.tokens.names()
        if tokens.routing.rows is None:
            own = tokens.methods[names[0]](self.layer)
            return attended(own, query, key, value, attn_mask, dropout_p, is_causal, **more)
        tokens.fits(len(query))
        y = None
        for name in dict.fromkeys(names):
            index = torch.tensor([i for i, row in enumerate(names) if row == name], device=query.device)
            mask = attn_mask
            if mask is not None and mask.ndim == 4 and len(mask) == len(query):
                mask = mask.index_select(0, index)
            own = tokens.methods[name](self.layer) if name else None
            part = (t.index_select(0, index) for t in (query, key, value))
            new = attended(own, *part, mask, dropout_p, is_causal, **more)
            y = new.new_empty(len(query), *new.shape[1:]) if y is None else y
            y = y.index_copy(0, index, new)
        return y


def attended(own, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, **more) -> Tensor:
    """Attention with the virtual keys and values of `own` (base.KeyValues or None): query (B, h, Tq, d), key (B, g, Tk,
    d); g may be repeated to h already, or h packed to g."""
    call = F.scaled_dot_product_attention
    if own is None:
        return call(query, key, value, attn_mask, dropout_p, is_causal, **more)
    keys, values = (_like(t, key) for t in (own.keys, own.values))
    if own.gate is not None:
        y = call(query, key, value, attn_mask, dropout_p, is_causal, **more)
        gate = own.gate.to(y.dtype).repeat_interleave(y.shape[1] // len(own.gate))[:, None, None]
        return y + gate * call(query, keys, values, **more)
    if is_causal:  # upper left, as the function means it
        attn_mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
    if attn_mask is not None:
        seen = attn_mask.new_full((*attn_mask.shape[:-1], keys.shape[2]), attn_mask.dtype == torch.bool)
        attn_mask = torch.cat([seen, attn_mask.expand(*attn_mask.shape[:-1], key.shape[2])], -1)
    key, value = torch.cat([keys, key], 2), torch.cat([values, value], 2)
    return call(query, key, value, attn_mask, dropout_p, False, **more)


def _like(own: Tensor, real: Tensor) -> Tensor:
    """(g, p, d) -> (B, heads of `real`, p, d) in its dtype."""
    own = own.to(real.dtype).repeat_interleave(real.shape[1] // len(own), 0)
    return own.expand(len(real), -1, -1, -1)


def _functional(mode: InFront):
    """torch's own F.multi_head_attention_forward, its inner attention call being the mode's: torch hands the whole
    function to a mode, and what it calls inside is then hidden from it. With need_weights it makes no such call."""
    function = F.multi_head_attention_forward
    names = {"scaled_dot_product_attention": mode.attend, "has_torch_function": lambda tensors: False}
    copy = FunctionType(function.__code__, {**function.__globals__, **names}, None, function.__defaults__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def steps_forward(host, inner, *args, **kwargs):
    """Forward wrapper of the module that gets masks, positions and the cache: tags the cache, moves the positions."""
    place: Place = host.__dict__[ADAPTERS][OUTER]
    tokens, named = place.tokens, place.named(args, kwargs)
    cache = cache_of(named, place.keyword)
    past = past_of(cache, tokens)
    names = tokens.names()
    if not names:
        return inner(*args, **kwargs)
    shift, length = _place_tokens(named, tokens, names, past)
    output = moved_up(inner, named, shift, past + length)
    tag_cache(cache, output, place.keyword, tokens)
    return output


def _place_tokens(named: dict, tokens: Tokens, names: list[str | None], past: int) -> tuple[int, int]:
    """Positions of real tokens into `named`, moved up by each row's p where its method shifts: (most p, tokens)."""
    port = tokens.port
    x = next((named[name] for name in (port.embeds, port.ids) if name and named.get(name) is not None), None)
    mask, given = named.get(port.mask), named.get(port.positions) if port.positions else None
    if x is None:
        return 0, 0
    up = [shift_of(tokens.methods[name], port) if name else 0 for name in names]
    batch, length = x.shape[:2]
    if any(up):
        shift = torch.tensor(up, device=x.device)[:, None] if len(up) > 1 else up[0]
        named[port.positions] = real_positions(given, mask, batch, length, past, x.device) + shift
    elif given is None and mask is not None and mask.ndim == 2 and (port.positions or port.rope):
        fix = f"pass {port.positions}, as generation does" if port.positions else "pad on the right"
        right_padded(mask.bool(), port.mask, fix)
    return max(up), length


def shift_of(method, port) -> int:
    """By how much real tokens move up: p where the method says so and the network takes positions, else 0."""
    return method.tokens if method.shift and port.positions else 0


attention_forward.layer = 2
steps_forward.layer = 1  # inside the seam `embeds`, which makes positions where rows of both are mixed
