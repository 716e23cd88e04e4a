"""How many parameters a method would have at a network's own sites: built on the meta device, nothing is attached.

places(model, cls, ...)           the sites and what the method would meet there, once
count(model, cls, places, ...)    trained numbers with these options; PeftError where the method refuses them
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from core.adapters import choose, probe
from core.adapters.hosts import op_for
from core.adapters.model import network
from core.adapters.seam import stored
from core.adapters.sites import Site, choose_targets, resolve
from core.errors import Problem, UnsupportedError


@dataclass(frozen=True)
class Place:
    """A site: its module and, for a weight method, host kind and matrix (on the meta device), for an activation method
    the shapes of the module's input and output."""

    site: Site
    host: nn.Module
    kind: str = ""
    W: Tensor | None = None
    shapes: tuple[torch.Size, torch.Size] | None = None


def places(
    model: nn.Module, cls: type, targets: Any, roles: Mapping, example: tuple[tuple, dict] | Callable | None
) -> list[Place]:
    """Where a weight or activation method would go; empty for the other faces, which find their own places."""
    if cls.face not in ("weight", "activation"):
        return []
    net = network(model)
    sites = resolve(net, roles, choose_targets(targets, cls.targets, cls.face, roles))
    hosts = [net.get_submodule(site.path) for site in sites]
    if cls.face == "activation":
        shapes = choose.measure(probe.Example(model, example), net, sites)
        return [Place(s, host, shapes=shapes[s.path]) for s, host in zip(sites, hosts, strict=True)]
    found = []
    for site, host in zip(sites, hosts, strict=True):
        op = op_for(host, site.parameter, site.rows)
        found.append(Place(site, host, op.kind, op.matrix(stored(host, site.parameter).detach().to("meta"))))
    return found


def count(model: nn.Module, cls: type, found: list[Place], targets: Any, roles: Mapping, options: dict) -> int:
    """Trained parameters of `cls` with all its `options`, what sites share once. UnsupportedError: a refused option."""
    if cls.face == "token":
        from core.adapters import tokens

        with torch.random.fork_rng(devices=[]):
            return _trained([tokens.build(model, cls, options)])
    if cls.face == "selection":
        net = network(model)
        chosen = cls.select(net, roles, choose_targets(targets, cls.targets, cls.face, roles), **options)
        own = (net.get_submodule(c.path)._parameters[c.parameter] for c in chosen)
        return sum(p.numel() for p in {id(p): p for p in own}.values())
    if cls.face == "weight":
        _refuse(cls, found, options)
    axes = getattr(model, "channel_axis", {})
    built = []
    with torch.device("meta"):
        for place in found:
            if cls.face == "activation":
                built.append(choose.activation(cls, network(model), place.site, options, axes, place.shapes)[0])
            else:
                built.append(cls(place.W, **cls.options_for(place.site.role, options)))
            built[-1].role = place.site.role
        cls.join(built)
    return _trained(built)


def widest(model: nn.Module, cls: type, found: list[Place], options: dict) -> int:
    """Channels of the widest output that an activation method would adapt."""
    axes = getattr(model, "channel_axis", {})
    with torch.device("meta"):
        return max(choose.activation(cls, network(model), p.site, options, axes, p.shapes)[1] for p in found)


def _refuse(cls: type, found: list[Place], options: dict) -> None:
    problems = []
    for place in found:
        own = cls.options_for(place.site.role, options)
        if reason := cls.refuses(place.kind, tuple(place.W.shape), own):
            problems.append(
                Problem(place.site.key, f"{cls.__name__} on {place.kind} {tuple(place.W.shape)}", "", reason)
            )
    if not problems and (reason := cls.refuses_all([tuple(place.W.shape) for place in found], options)):
        problems.append(Problem("adapter", f"{cls.__name__} {options}", "", reason))
    if problems:
        raise UnsupportedError(problems=problems)


def _trained(built: list[nn.Module]) -> int:
    return sum(p.numel() for p in {id(p): p for m in built for p in m.parameters() if p.requires_grad}.values())
