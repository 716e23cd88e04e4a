"""Binding of token methods: which seam a backbone's token port offers, and what is installed there.

`contracts.TokenPort` declares the port; seam `embeds` is taken where both are offered. All token adapters of a model
share one seam, installed with the first and removed with the last. The seams themselves: core/adapters/token_seams.py.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from core.adapters.seam import ADAPTERS, stored, switch, unswitch
from core.adapters.sites import resolve
from core.adapters.token_seams import (
    PLACE,
    Place,
    Tokens,
    block_forward,
    embeds_forward,
    memory_forward,
    wrap_forward,
)
from core.contracts import TokenPort
from core.errors import ConfigError, UnsupportedError

WHY = {"embeds": "input embeddings", "blocks": "before the first block"}


def bind_tokens(model: nn.Module, adapter, cls) -> None:
    """Make the method, register it in the model's state, install the seam where it is not yet."""
    from core.adapters.model import network, state_of

    net, state = network(model), state_of(model)
    method = build(model, cls, adapter.options)
    device = next((p.device for p in net.parameters()), torch.device("cpu"))
    installed = bool(state.tokens)
    state.tokens[adapter.name] = method.to(device)
    if installed:
        return
    tokens = Tokens(state.routing, state.tokens, model.token_port)
    for host, wrapper, place in _hosts(net, model.token_port, _seam(model.token_port), tokens):
        host.__dict__.setdefault(ADAPTERS, {})[PLACE] = place
        switch(host, forward=wrapper)


def build(model: nn.Module, cls, options: dict) -> nn.Module:
    """The method of a token adapter; the model is not changed."""
    port, inner, _ = entry(model)
    embed = inner.get_submodule(port.embed) if _seam(port) == "embeds" and port.embed else None
    table = stored(embed, "weight").detach() if embed is not None else None
    dim = port.dim or (table.shape[1] if table is not None else None)
    if dim is None:
        raise ConfigError("token_port.dim", "None", "the width of a virtual token", "declare it in the backbone")
    method = cls(dim, **options)
    method.start(table)
    return method


def entry(model: nn.Module) -> tuple[TokenPort, nn.Module, str]:
    """(the port, the module at which tokens enter, where that is in words).

    UnsupportedError where the model declares none: lists the backbones that have one."""
    from core.adapters.model import network

    port: TokenPort | None = getattr(model, "token_port", None)
    seam, net = _seam(port), network(model)
    if seam is None:
        raise UnsupportedError(
            "adapter",
            f"virtual tokens on {type(model).__name__}, which has no token port",
            f"a backbone with one: {_who()}",
            "choose a weight or activation method",
        )
    return port, net.get_submodule(port.model) if seam == "embeds" else _blocks(net, port)[0], WHY[seam]


def _blocks(net: nn.Module, port: TokenPort) -> list[nn.Module]:
    return [net.get_submodule(site.path) for site in resolve(net, {"block": port.blocks}, ["block"])]


def unbind_tokens(model: nn.Module, name: str) -> None:
    """Remove one token adapter; with the last one, the seam."""
    from core.adapters.model import network, state_of

    state = state_of(model)
    del state.tokens[name]
    if state.tokens:
        return
    for host in network(model).modules():
        kept = host.__dict__.get(ADAPTERS, {})
        if kept.pop(PLACE, None) is None:
            continue
        for wrapper in (embeds_forward, memory_forward, block_forward, wrap_forward):
            unswitch(host, forward=wrapper)
        if not kept:
            del host.__dict__[ADAPTERS]


def _seam(port: TokenPort | None) -> str | None:
    if port is None:
        return None
    return "embeds" if port.model is not None else "blocks" if port.blocks else None


def _hosts(net: nn.Module, port: TokenPort, seam: str, tokens: Tokens):
    """(host, wrapper, place) of a seam."""
    if seam == "embeds":
        inner = net.get_submodule(port.model)
        yield inner, embeds_forward, Place(tokens, inner)
        for path, keyword in port.memory:
            reader = net.get_submodule(path)
            yield reader, memory_forward, Place(tokens, reader, keyword=keyword)
        return
    blocks = _blocks(net, port)
    for block in blocks:
        yield block, block_forward, Place(tokens, block, first=block is blocks[0], last=block is blocks[-1])
    if port.wrap is not None:
        collector = net.get_submodule(port.wrap)
        yield collector, wrap_forward, Place(tokens, collector)


def _who() -> str:
    """Backbones of this installation that declare a token port, by the text of their files."""
    files = sorted((Path(__file__).resolve().parents[2] / "domains").glob("*/backbones/*.py"))
    having = [f"{f.parts[-3]}/{f.stem}" for f in files if "TokenPort(" in f.read_text(encoding="utf-8")]
    return ", ".join(having) or "none is installed"
