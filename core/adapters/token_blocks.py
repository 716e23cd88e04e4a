"""Seam `blocks`: tokens are spliced in before the first block and stripped after the last, each block's own mask
extended; real tokens keep their absolute positions. Deep: in and out at every block, each with tokens of its own.

    encoders are right-padded: no seam can hide pads between prompt and text where distances count
    in a mixed batch short prompts get masked slots in front
    what the network collects between its blocks loses its virtual tokens where it is collected, in deep mode too:
    libraries record a block's input after the tokens went in
"""

from __future__ import annotations

import torch
from torch import Tensor

from core.adapters.seam import ADAPTERS
from core.adapters.token_state import Place, Tokens, cut, cut_all, cut_map, right_padded, splice
from core.errors import UnsupportedError

PLACE = "@blocks"


def block_forward(host, inner, *args, **kwargs):
    """Forward wrapper of every block."""
    place: Place = host.__dict__[ADAPTERS][PLACE]
    tokens, port, kwargs = place.tokens, place.tokens.port, place.named(args, kwargs)
    x = kwargs.pop(place.arguments[0])
    batch = x.shape[1 - port.axis]
    room = tokens.room(batch, x.device)
    if room is None:
        return inner(x, **kwargs)
    (p, keep), deep = room, _deep(tokens)
    if deep or not place.index:
        own = tokens.vectors(batch, x, place.index if deep else None)
        x = splice(x, own if port.axis == 1 else own.transpose(0, 1), port.leading, port.axis)
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
        kwargs[port.rope] = tuple(splice(table, own, port.leading, -2) for table, own in pairs)
    output = inner(x, **kwargs)
    parts = list(output) if isinstance(output, (tuple, list)) else [output]
    if deep or place.last:
        parts[0] = cut(parts[0], port.axis, port.leading, p, length)
    parts[1:] = [cut_map(part, port.leading, p, length) for part in parts[1:]]
    return type(output)(parts) if isinstance(output, (tuple, list)) else parts[0]


def wrap_forward(host, inner, *args, **kwargs):
    """Forward wrapper of the module that collects states between blocks: they lose their virtual tokens."""
    tokens: Tokens = host.__dict__[ADAPTERS][PLACE].tokens
    output = inner(*args, **kwargs)
    if not tokens.names() or not hasattr(output, "keys"):
        return output
    p = max(tokens.methods[name].tokens for name in tokens.names() if name is not None)
    length = _length(output, args, kwargs)
    for name in {*tokens.port.tokens_out, "attentions"} & set(output.keys()):
        if output[name] is not None:
            output[name] = cut_all(output[name], 1, tokens.port.leading, p, length)
    return output


block_forward.layer = wrap_forward.layer = 2


def _deep(tokens: Tokens) -> bool:
    """Whether each block has tokens of its own."""
    seams = {tokens.methods[name].seam for name in tokens.names() if name is not None}
    if len(seams) > 1:
        allowed = "all before the first block, or all before every block"
        raise UnsupportedError("mix", "shallow and deep prompts", allowed, "run these rows apart")
    return "deep" in seams


def _length(output, args, kwargs) -> int:
    """Real tokens: of the output, which has no others any more; of the first argument where it does not tell."""
    last = output["last_hidden_state"] if "last_hidden_state" in output.keys() else None
    given = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
    return (last if last is not None else given).shape[1]


def _extend_additive(mask, keep, leading: int, batch: int, length: int, p: int, x: Tensor):
    """(B, heads, Tq, Tk) bool (True: seen) or additive; virtual tokens see what the first real token sees."""
    if mask is None and keep is None:
        return None
    if mask is None:
        mask = x.new_zeros(batch, 1, length, length)
    right_padded(mask[:, 0, 0] if mask.dtype == torch.bool else mask[:, 0, 0] == 0)
    seen = torch.ones(batch, p, dtype=torch.bool, device=x.device) if keep is None else keep
    if mask.dtype != torch.bool:
        lowest = torch.finfo(mask.dtype).min
        seen = torch.zeros(seen.shape, dtype=mask.dtype, device=x.device).masked_fill(~seen, lowest)
    columns = seen[:, None, None].expand(batch, mask.shape[1], mask.shape[2], p)
    mask = splice(mask.expand(batch, -1, -1, -1), columns, leading, -1)
    if mask.shape[2] == 1:
        return mask
    return splice(mask, mask[:, :, :1].expand(-1, -1, p, -1), leading, -2)


def _extend_padding(mask, keep, leading: int, batch: int, length: int, p: int, x: Tensor):
    """(B, T) bool, True at pads."""
    if mask is None and keep is None:
        return None
    if mask is None:
        mask = torch.zeros(batch, length, dtype=torch.bool, device=x.device)
    right_padded(~mask.bool())
    own = mask.new_zeros(batch, p) if keep is None else (~keep).to(mask.dtype)
    return splice(mask, own, leading)
