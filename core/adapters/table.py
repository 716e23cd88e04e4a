"""What is attached where, and what would be: `summary`, `plan`, `adapters`."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from core.adapters import choose, methods, orders, probe, tokens
from core.adapters.hosts import op_for
from core.adapters.model import STATE, _untied, network, state_of, trainable
from core.adapters.seam import base_count, stored
from core.adapters.sites import Site, choose_targets, resolve
from core.adapters.state import Adapter, Bound, State


@dataclass(frozen=True)
class Row:
    """One site. `why` is the fact that decided the path; `order` what it computes (core/adapters/orders.py)."""

    adapter: str
    site: str
    role: str
    path: str
    why: str
    host: str
    shape: tuple[int, ...]
    method: str
    parameters: int
    order: str = ""


@dataclass
class Summary:
    """`rows` are sites; `str()` is a table with one line per role. `base` and `head` are parameter counts."""

    rows: list[Row]
    base: int
    head: int = 0
    trained: int = 0
    thinned: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    budgets: list[str] = field(default_factory=list)

    @property
    def parameters(self) -> int:
        return self.trained

    def roles(self) -> Iterator[tuple[str, list[Row]]]:
        groups: dict[tuple, list[Row]] = {}
        for row in self.rows:
            groups.setdefault((row.role, row.method, row.path, row.why, row.order, row.shape), []).append(row)
        for rows in groups.values():
            yield rows[0].role, rows

    def __str__(self) -> str:
        head = ("role", "sites", "path", "why", "order", "(out, in)", "per site", "parameters")
        lines = [head]
        several = len({row.method for row in self.rows}) > 1
        for role, rows in self.roles():
            first = rows[0]
            shape = "(" + ", ".join(map(str, first.shape)) + ")"
            lines.append(
                (
                    f"{role} ({first.method})" if several else role,
                    str(len(rows)),
                    first.path,
                    first.why,
                    first.order,
                    shape,
                    _span([r.parameters for r in rows]),
                    f"{sum(r.parameters for r in rows):,}",
                )
            )
        share = f"{100 * self.trained / self.base:.2f} % of {self.base:,}" if self.base else "-"
        lines.append(("total", str(len(self.rows)), "", "", "", "", "", f"{self.trained:,}"))
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        right = {1, 5, 6, 7}
        text = [
            "  ".join(
                cell.rjust(w) if i in right else cell.ljust(w)
                for i, (cell, w) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        text[-1] += f"   {share}"
        text += self.budgets
        if self.head:
            text.append(f"head {self.head:,} parameters, saved with the adapter")
        if self.skipped:
            more = " ..." if len(self.skipped) > 3 else ""
            text.append(f"skipped {len(self.skipped)}, read by no forward: {', '.join(self.skipped[:3])}{more}")
        if self.thinned:
            text.append(f"thin    {len(self.thinned)} frozen layers keep only their weight for the backward pass")
        return "\n".join(text)


def _span(counts: list[int]) -> str:
    """What the sites of a role hold: less where an earlier one holds what they share."""
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


@dataclass(frozen=True)
class AdapterInfo:
    """name, method, options, sites (keys), weight (0 where inactive), merged, parameters, head_parameters"""

    name: str
    method: str
    options: dict[str, Any]
    sites: list[str]
    weight: float
    merged: bool
    parameters: int
    head_parameters: int


def adapters(model: nn.Module) -> dict[str, AdapterInfo]:
    """name -> what is attached under it; empty where nothing is."""
    if STATE not in model._modules:
        return {}
    state = state_of(model)
    found = {}
    for name, a in state.adapters.items():
        counts = trainable(model, name)
        own = sum(p.numel() for k, p in counts.items() if not k.startswith("head|"))
        heads = sum(p.numel() for k, p in counts.items() if k.startswith("head|"))
        sites = [b.key for b in a.bound]
        found[name] = AdapterInfo(
            name, a.method, dict(a.options), sites, state.routing.active.get(name, 0.0), a.merged, own, heads
        )
    return found


def summary(model: nn.Module, name: str | None = None) -> Summary:
    """The table of one adapter, or of all."""
    state = state_of(model)
    chosen = [a for a in state.adapters.values() if name is None or a.name == name]
    net = network(model)
    rows = [_row(state, net, a.name, b.part or a.method, b) for a in chosen for b in a.bound]
    giving = [a for a in chosen if a.name in state.tokens]
    rows += [_token_row(a.name, _giver(state, a), model, state.tokens[a.name]) for a in giving]
    infos = adapters(model)
    return Summary(
        rows,
        base_count(net),
        sum(infos[a.name].head_parameters for a in chosen),
        sum(infos[a.name].parameters for a in chosen),
        list(state.thinned),
        [key for a in chosen for key in a.skipped],
        [f"{p.part} {p.budget}".strip() for a in chosen for p in a.parts or [a] if p.budget is not None],
    )


def _row(state: State, net: nn.Module, adapter: str, method: str, b: Bound) -> Row:
    order, slot = "", state.slots[b.slot]
    part = state.part(b)
    if part.op is not None:
        W = stored(net.get_submodule(b.site.path), b.site.parameter)
        order = orders.describe(part.op, slot.methods[b.method], b.path, tuple(part.op.full(W).shape))
    return Row(adapter, b.key, b.site.role, b.path, b.why, b.host, b.shape, method, b.parameters, order)


def _giver(state: State, adapter: Adapter) -> str:
    """What gives the virtual tokens of an adapter: its method, or that part of a combination."""
    giver = methods.name_of(type(state.tokens[adapter.name]))
    return next((part.part for part in adapter.parts if part.method == giver), adapter.method)


def _token_row(adapter: str, label: str, model: nn.Module, method: nn.Module) -> Row:
    why, host, shape = tokens.describe(model, method)
    count = sum(p.numel() for p in method.parameters() if p.requires_grad)
    return Row(adapter, "tokens", "tokens", "token", why, host, shape, label, count)


def plan(
    model: nn.Module,
    method: str | type = "lora",
    *,
    targets=None,
    name: str = "default",
    path: str = "auto",
    roles=None,
    example=None,
    verify: bool = True,
    **options: Any,
) -> Summary:
    """The same table without attaching: methods are built on the meta device, the model is not changed.

    verify   False skips the forward passes of the probe: paths are then "-" (also for models on the meta device)"""
    cls = methods.find(method) if isinstance(method, str) else method
    label = method if isinstance(method, str) else methods.name_of(cls)
    net = network(model)
    roles = dict(roles if roles is not None else getattr(model, "roles", {}))
    merged = {**methods.options(cls), **options}
    targets = choose_targets(targets, cls.targets, cls.face, roles)
    base = base_count(net)
    rows: list[Row] = []
    if cls.face == "selection" and cls.in_place:
        chosen = cls.select(net, roles, targets, **merged)
        trained = sum(net.get_submodule(c.path)._parameters[c.parameter].numel() for c in chosen)
        return Summary([], base, 0, trained)
    if cls.face == "selection":
        sites = _untied(
            net,
            list(dict.fromkeys(Site(c.role, c.path, c.parameter) for c in cls.select(net, roles, targets, **merged))),
        )
    elif cls.face == "token":
        with torch.random.fork_rng(devices=[]):
            row = _token_row(name, label, model, tokens.build(model, cls, merged))
        return Summary([row], base, 0, row.parameters)
    else:
        sites = resolve(net, roles, targets)
    run = None
    if verify:
        run = probe.Example(model, example if example is not None else model.example)
    uses = choose.watch_sites(State(), net, sites, run) if verify and cls.face in ("weight", "selection") else {}
    shapes = choose.measure(run, net, sites) if cls.face == "activation" else {}
    skipped, every = [], []
    for site in sites:
        host = net.get_submodule(site.path)
        if cls.face == "activation":
            with torch.device("meta"):
                built, width = choose.activation(
                    cls, net, site, merged, getattr(model, "channel_axis", {}), shapes[site.path]
                )
            kind, why, named, shape = "act", "module output", type(host).__name__, (width,)
        else:
            kind, why = choose.choose(net, site, uses) if verify else ("-", "not probed")
            if not kind:
                skipped.append(site.key)
                continue
            op = op_for(host, site.parameter, site.rows)
            stored_ = stored(host, site.parameter).detach().to("meta")
            W, whole = op.matrix(stored_), tuple(op.full(stored_).shape)
            shape, named = tuple(W.shape), op.kind if op.kind != "tensor" else type(host).__name__
            own = {} if cls.face == "selection" else cls.options_for(site.role, copy.copy(merged))
            with torch.device("meta"):
                built = cls(W, **own)
        built.role = site.role
        every.append(built)
        kind = kind if path == "auto" else path
        order = "" if cls.face == "activation" else orders.describe(op, built, kind, whole)
        rows.append(Row(name, site.key, site.role, kind, why, named, shape, label, 0, order))
    cls.join(every)
    seen: set[int] = set()
    rows = [replace(row, parameters=_count(built, seen)) for row, built in zip(rows, every, strict=True)]
    return Summary(rows, base, 0, sum(r.parameters for r in rows), [], skipped)


def _count(method: nn.Module, seen: set[int]) -> int:
    """Trained numbers of one site, those left out that an earlier site has counted (`seen`)."""
    own = {id(p): p.numel() for p in method.parameters() if p.requires_grad and id(p) not in seen}
    seen.update(own)
    return sum(own.values())
