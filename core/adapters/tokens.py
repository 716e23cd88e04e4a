"""Binding of token methods: which seam of a backbone's token port serves a method, and what is installed there.

`contracts.TokenPort` declares the port. A method's `seam` says what it wants: "tokens" is served by `embeds`, or by
`blocks` where the port has no `embeds`; "deep" by `blocks`; "kv" by `kv`. All token adapters at one seam share it: it
comes with the first of them and goes with the last. The seams: token_embeds.py, token_blocks.py, token_kv.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import reduce
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from core.adapters import token_blocks, token_embeds, token_kv
from core.adapters.seam import ADAPTERS, original, stored, switch, unswitch
from core.adapters.sites import resolve
from core.adapters.token_state import Place, Tokens
from core.contracts import TokenPort
from core.errors import ConfigError, UnsupportedError

SERVES = {"embeds": ("tokens",), "blocks": ("tokens", "deep"), "kv": ("kv",)}  # seam -> what methods may want of it
PLACES = {
    "embeds": (token_embeds.PLACE,),
    "blocks": (token_blocks.PLACE,),
    "kv": (token_kv.PLACE, token_kv.OUTER),
}
WRAPPERS = {
    "embeds": (token_embeds.embeds_forward, token_embeds.memory_forward),
    "blocks": (token_blocks.block_forward, token_blocks.wrap_forward),
    "kv": (token_kv.attention_forward, token_kv.steps_forward),
}
DECLARES = {"embeds": "model", "blocks": "blocks", "kv": "attn"}  # the port's field that offers a seam
WANTED = {
    "tokens": "virtual tokens",
    "deep": "virtual tokens before every block",
    "kv": "virtual keys and values",
}


class Described(NamedTuple):
    """One line of a summary."""

    why: str
    host: str
    shape: tuple[int, ...]


def bind_tokens(model: nn.Module, adapter, cls) -> None:
    """Make the method, register it in the model's state, install the seam where it is not yet."""
    from core.adapters.model import network, state_of

    net, state, port = network(model), state_of(model), getattr(model, "token_port", None)
    method = build(model, cls, adapter.options)
    device = next((p.device for p in net.parameters()), torch.device("cpu"))
    seam = _seam(model, cls)
    installed = any(_seam(model, other) == seam for other in state.tokens.values())
    state.tokens[adapter.name] = method.to(device)
    if installed:
        return
    serves = tuple(want for want in SERVES[seam] if _served(port, want) == seam)
    tokens = Tokens(state.routing, state.tokens, port, serves)
    for host, key, wrapper, place in _hosts(net, port, seam, tokens):
        host.__dict__.setdefault(ADAPTERS, {})[key] = place
        switch(host, forward=wrapper)


def build(model: nn.Module, cls, options: dict) -> nn.Module:
    """The method of a token adapter; the model is not changed."""
    from core.adapters.model import network

    seam, net = _seam(model, cls), network(model)
    port: TokenPort = model.token_port
    if seam == "kv":
        return cls(_shapes(net, port), **options)
    inner = net.get_submodule(port.model) if seam == "embeds" else None
    embed = inner.get_submodule(port.embed) if seam == "embeds" and port.embed else None
    table = stored(embed, "weight").detach() if embed is not None else None
    dim = port.dim or (table.shape[1] if table is not None else None)
    if dim is None:
        raise ConfigError("token_port.dim", "None", "the width of a virtual token", "declare it in the backbone")
    method = cls(dim, len(_blocks(net, port)), **options) if cls.seam == "deep" else cls(dim, **options)
    method.start(table)
    return method


def describe(model: nn.Module, method: nn.Module) -> Described:
    """Where the virtual tokens of a built method enter."""
    from core.adapters.model import network

    net, port, seam = network(model), model.token_port, _seam(model, method)
    if seam == "kv":
        hosts, shapes = list(_attentions(net, port).values()), _shapes(net, port)
        moved = token_kv.shift_of(method, port)
        why = f"keys and values of {len(hosts)} attentions" + (f", positions + {moved}" if moved else "")
        return Described(why, original(hosts[0]).__name__, (method.tokens, sum(2 * h * d for h, d in shapes)))
    if method.seam == "deep":
        blocks = _blocks(net, port)
        shape = (len(blocks), *method(0).shape)
        return Described(f"before each of {len(blocks)} blocks", original(blocks[0]).__name__, shape)
    inner = net.get_submodule(port.model) if seam == "embeds" else _blocks(net, port)[0]
    why = "input embeddings" if seam == "embeds" else "before the first block"
    return Described(why, original(inner).__name__, tuple(method().shape))


def unbind_tokens(model: nn.Module, name: str) -> None:
    """Remove one token adapter; with the last one at its seam, the seam."""
    from core.adapters.model import network, state_of

    state = state_of(model)
    seam = _seam(model, state.tokens[name])
    del state.tokens[name]
    if any(_seam(model, other) == seam for other in state.tokens.values()):
        return
    for host in network(model).modules():
        kept = host.__dict__.get(ADAPTERS, {})
        if not [kept.pop(key) for key in PLACES[seam] if key in kept]:
            continue
        for wrapper in WRAPPERS[seam]:
            unswitch(host, forward=wrapper)
        if not kept:
            del host.__dict__[ADAPTERS]


def watched(net: nn.Module, method: nn.Module, run: Callable[[str], None], dead: dict[str, list[str]]):
    """`run(mode)`, after which `dead` names every attention that took no virtual keys and values in that mode."""

    def counted(mode: str) -> None:
        before = {place.keyword: place.hits for place in _takers(net)}
        run(mode)
        for place in _takers(net):
            if place.hits == before[place.keyword]:
                dead.setdefault(f"{place.keyword}|tokens", []).append(f"not called in {mode}")

    return counted if method.seam == "kv" else run


def _takers(net: nn.Module) -> Iterator[Place]:
    for host in net.modules():
        if token_kv.PLACE in host.__dict__.get(ADAPTERS, {}):
            yield host.__dict__[ADAPTERS][token_kv.PLACE]


def _seam(model: nn.Module, cls) -> str:
    """The seam that serves a method; UnsupportedError where the model offers none: says why, and who has one."""
    port: TokenPort | None = getattr(model, "token_port", None)
    seam = _served(port, cls.seam)
    if seam is not None:
        return seam
    wanted, name = WANTED[cls.seam], type(model).__name__
    if port is None:
        got = f"{wanted} on {name}, which has no token port"
        raise UnsupportedError("adapter", got, f"a backbone with one: {_who()}", "choose a weight or activation method")
    offered = [want for want in WANTED if _served(port, want)]
    if cls.seam == "deep" and port.cache:
        why = "each block's tokens would need places of their own in the cache"
        fix = "prefix: keys and values before every attention are the deep form for decoders"
    elif cls.seam == "kv":
        why = "its port names no attention that makes one scaled_dot_product_attention call"
        fix = "choose a weight or activation method" + (", or prompt" if "tokens" in offered else "")
    else:
        why = "its port names no blocks" + (", nor embeddings" if cls.seam == "tokens" else "")
        fix = "prefix: it has attentions" if "kv" in offered else "choose a weight or activation method"
    allowed = f"what its port serves: {', '.join(WANTED[want] for want in offered)}; a backbone with it: "
    keys = [DECLARES[seam] for seam, wants in SERVES.items() if cls.seam in wants]
    raise UnsupportedError("adapter", f"{wanted} on {name}: {why}", allowed + _who(*keys), fix)


def _served(port: TokenPort | None, wants: str) -> str | None:
    """The seam of a port that serves what a method wants."""
    if port is None:
        return None
    if wants == "tokens" and port.model is not None:
        return "embeds"
    if wants in ("tokens", "deep"):
        return "blocks" if port.blocks else None
    return "kv" if port.attn else None


def _blocks(net: nn.Module, port: TokenPort) -> list[nn.Module]:
    return [net.get_submodule(site.path) for site in resolve(net, {"block": port.blocks}, ["block"])]


def _attentions(net: nn.Module, port: TokenPort) -> dict[str, nn.Module]:
    patterns = [port.attn] if isinstance(port.attn, str) else list(port.attn)
    return {site.path: net.get_submodule(site.path) for site in resolve(net, {"attn": patterns}, ["attn"])}


def _shapes(net: nn.Module, port: TokenPort) -> list[tuple[int, int]]:
    """(key/value heads, channels of one) of each attention, as the live modules say."""
    return [(_number(host, port.heads), _number(host, port.head_dim)) for host in _attentions(net, port).values()]


def _number(host: nn.Module, value: int | str) -> int:
    """A number; what an attribute path of the module holds; a quotient of two such paths."""
    if not isinstance(value, str):
        return value
    first, *rest = (reduce(getattr, path.split("."), host) for path in value.split("/"))
    return first // rest[0] if rest else first


def _hosts(net: nn.Module, port: TokenPort, seam: str, tokens: Tokens):
    """(host, key of its place, wrapper, place) of a seam."""
    if seam == "embeds":
        inner = net.get_submodule(port.model)
        yield inner, token_embeds.PLACE, token_embeds.embeds_forward, Place(tokens, inner)
        for path, keyword in port.memory:
            reader = net.get_submodule(path)
            yield reader, token_embeds.PLACE, token_embeds.memory_forward, Place(tokens, reader, keyword=keyword)
        return
    if seam == "kv":
        for index, (path, host) in enumerate(_attentions(net, port).items()):
            yield host, token_kv.PLACE, token_kv.attention_forward, Place(tokens, host, index, keyword=path)
        path, keyword = port.outer or (port.model, port.cache)
        if path is not None:
            outer = net.get_submodule(path)
            yield outer, token_kv.OUTER, token_kv.steps_forward, Place(tokens, outer, keyword=keyword)
        return
    blocks = _blocks(net, port)
    for index, block in enumerate(blocks):
        place = Place(tokens, block, index, last=block is blocks[-1])
        yield block, token_blocks.PLACE, token_blocks.block_forward, place
    if port.wrap is not None:
        collector = net.get_submodule(port.wrap)
        yield collector, token_blocks.PLACE, token_blocks.wrap_forward, Place(tokens, collector)


def _who(*keys: str) -> str:
    """Backbones of this installation whose token port declares one of `keys` (any, without), by the text of their
    files: a TokenPort(...) in Python, a `port:` in a family profile."""
    root, having = Path(__file__).resolve().parents[2] / "domains", []
    wanted = re.compile(rf"\b({'|'.join(keys)})\b *[:=](?! *None)" if keys else "")
    for file in sorted([*root.glob("*/backbones/*.py"), *root.glob("*/backbones/profiles/**/*.yaml")]):
        start = r"TokenPort\((.*?)\n? *\)\n" if file.suffix == ".py" else r"^port:(.*?)(?=^\w|\Z)"
        if any(wanted.search(text) for text in re.findall(start, file.read_text(encoding="utf-8"), re.S | re.M)):
            having.append(f"{file.relative_to(root).parts[0]}/{file.stem}")
    return ", ".join(having) or "none is installed"
