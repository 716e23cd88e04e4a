"""Prove that every site of an adapter lives: a gradient in both grad modes, a read in (eval, no_grad).

A fused kernel that passes the call path by (nn.TransformerEncoderLayer in eval) shows here, without any function mode:
the site was not read, and moves to the weight path.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from core.adapters import probe, tokens
from core.adapters.bind import call_forward, name_of, release, slot_for
from core.adapters.seam import ADAPTERS, unswitch
from core.adapters.state import Adapter, Bound, State
from core.errors import DeadSiteError, Problem


def tensors(state: State, adapter: Adapter) -> dict[str, nn.Parameter]:
    """tensor key -> parameter of one adapter, head excluded."""
    found = {f"{b.key}|{name}": p for b, name, p in state.tensors(adapter) if isinstance(p, nn.Parameter)}
    if adapter.name in state.tokens:
        for name, p in state.tokens[adapter.name].named_parameters():
            found[f"tokens|{name}"] = p
    return found


def check_live(state: State, net: nn.Module, adapter: Adapter, example: Callable, selection: bool = False) -> None:
    """Every site gets a gradient in both grad modes and is read in (eval, no_grad); DeadSiteError lists the others.

    A tensor that sites share is asked for once; a site without any of its own must be read in every mode."""
    wanted = {}
    for bound, name, p in state.tensors(adapter):
        if p.requires_grad and name not in state.method(bound).exempt:
            wanted[f"{bound.key}|{name}"] = p
    asked = {key.rsplit("|", 1)[0] for key in wanted}
    sharing = [b for b in adapter.bound if b.key not in asked]
    if adapter.name in state.tokens:
        wanted |= {k: p for k, p in tensors(state, adapter).items() if k.startswith("tokens|")}
    dead: dict[str, list[str]] = {}

    def run(mode):
        if probe.MODES[mode][1]:
            hits = {b.slot: state.slots[b.slot].hits for b in sharing}
            loss = probe.pseudo_loss(example())
            for bound in sharing:
                if state.slots[bound.slot].hits == hits[bound.slot]:
                    dead.setdefault(bound.key, []).append(f"not read in {mode}")
            grads = [None] * len(wanted)
            if wanted and loss is not None:  # a network may ask for gradients itself (Wav2Vec2 in training)
                grads = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
            for key, grad in zip(wanted, grads, strict=True):
                if grad is None:
                    dead.setdefault(key.rsplit("|", 1)[0], []).append(f"no gradient in {mode}")
            return
        unread = consumed(state, adapter, example)
        if moved := [b for b in unread if b.path == "call"]:
            for bound in moved:
                if bound.path != "call":  # another row range of the same host has moved it already
                    continue
                _to_weight(state, net, adapter, bound, f"passed by in {mode}")
            unread = consumed(state, adapter, example)
        for bound in unread:
            dead.setdefault(bound.key, []).append(f"not read in {mode}")

    if adapter.name in state.tokens:
        run = tokens.watched(net, state.tokens[adapter.name], run, dead)
    probe.in_modes(example.model, run)
    if dead and selection and len(dead) < len(adapter.bound):
        _skip(state, net, adapter, set(dead))
        return
    if dead:
        allowed = "every site is read and gets a gradient"
        raise DeadSiteError(
            problems=[
                Problem(key, "; ".join(dict.fromkeys(what)), allowed, _fix(adapter, key)) for key, what in dead.items()
            ]
        )


def _skip(state: State, net: nn.Module, adapter: Adapter, keys: set[str]) -> None:
    """A selection chose by structure: parameters that the example does not reach are left out, and listed."""
    for bound in [b for b in adapter.bound if b.key in keys]:
        slot = state.slots[bound.slot]
        slot.parts = [part for part in slot.parts if part.method != bound.method]
        del slot.methods[bound.method]
        adapter.bound.remove(bound)
        adapter.skipped.append(bound.site.key)
    release(state, net)


def consumed(state: State, adapter: Adapter, run: Callable) -> list[Bound]:
    """The sites of `adapter` that `run()` does not read."""
    slots = {b.slot: state.slots[b.slot] for b in adapter.bound}
    before = {key: slot.hits for key, slot in slots.items()}
    run()
    return [b for b in adapter.bound if slots[b.slot].hits == before[b.slot]]


def _fix(adapter: Adapter, key: str) -> str:
    if adapter.path in ("call", "hook"):
        return f"remove `path: {adapter.path}`: the weight path reaches this host"
    return "choose another role, or an example that reaches it"


def _to_weight(state: State, net: nn.Module, adapter: Adapter, bound: Bound, why: str) -> None:
    """Move a site from the call path to the weight path, its method and every other adapter's there with it."""
    slot = state.slots[bound.slot]
    parts, methods = list(slot.parts), dict(slot.methods.items())
    site = bound.site
    host = net.get_submodule(site.path)
    host.__dict__[ADAPTERS].pop(name_of(site.parameter, slot.path))
    unswitch(host, forward=call_forward)
    del state.slots[slot.key]
    new = slot_for(state, net, site, "weight")
    for part in parts:
        new.add(part, methods[part.method])
    for one in {adapter.name: adapter, **state.adapters}.values():
        for other in one.bound:
            if other.slot == slot.key:
                other.slot, other.path, other.why = new.key, "weight", why
