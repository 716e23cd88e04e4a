"""Attach, route and detach. All calls change the model in place and return it.

attach(model, "lora", targets=["attn.q", "attn.v"], rank=8)     one adapter more, active alone; base frozen
attach(model, "lora", budget="1%")                               its size from a budget (core/adapters/budget.py)
attach(model, {"lora": {"rank": 4}, "norm": {}})                 several methods as one (core/adapters/combine.py)
set_active(model, {"a": 0.7, "b": 0.3})                          W' = W + sum_i w_i (f_i(W) - W)
with use(model, None): ...                                       the base
with mix(model, ["a", "b", None]): ...                           one adapter per batch row
detach(model, "a")                                               bit-equal to before
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from core.adapters import bind, combine, influence, live, methods, probe
from core.adapters import thin as thin_layers
from core.adapters.seam import coded
from core.adapters.sites import Site, choose_targets, resolve
from core.adapters.state import Adapter, State
from core.errors import ConfigError, Problem, UnsupportedError, did_you_mean

STATE = "_peft"
PATHS = ("auto", "call", "hook", "weight")


def network(model: nn.Module) -> nn.Module:
    """The network whose paths sites are named by: `model.net` of a Backbone, else the model itself."""
    net = getattr(model, "net", None)
    return net if isinstance(net, nn.Module) and hasattr(model, "example") else model


def state_of(model: nn.Module) -> State:
    state = model._modules.get(STATE)
    if state is None:
        raise ConfigError("model", "no adapter attached", "a model after attach()", "call attach(model, ...) first")
    return state


def record(model: nn.Module, name: str) -> Adapter:
    known = state_of(model).adapters
    if name not in known:
        raise ConfigError("adapter name", name, sorted(known), did_you_mean(name, known))
    return known[name]


def attach(
    model: nn.Module,
    method: str | type | Iterable[str] | Mapping[str, Mapping[str, Any]] = "lora",
    *,
    targets: Iterable[str] | None = None,
    name: str = "default",
    path: str = "auto",
    budget: int | float | str | None = None,
    roles: Mapping[str, str | list[str]] | None = None,
    example: tuple[tuple, dict] | Callable | None = None,
    head: nn.Module | None = None,
    verify: bool = True,
    seed: int | None = None,
    thin: bool = True,
    **options: Any,
) -> nn.Module:
    """The same model with one adapter more, which is then active alone. A failure leaves the model as it was.

    method    name of a method (core/adapters/methods, entry points `peft_atlas.methods`), or its class; several names,
              or part -> its options, make a combination
    targets   roles, or `all`; the method's own choice for this network where None
    budget    parameters: "1%" of the base, or a count; solves the method's size, the head is not part of it
    roles     role -> path pattern(s), example (args, kwargs) of a tiny forward: from a Backbone where None
    path      auto | call | hook | weight: force the path of weight methods (benchmarks); liveness still rules
    head      a module trained, saved, loaded and detached with the adapter
    verify    False skips the liveness check (benchmarks only)
    thin      frozen convolutions and norms keep less for the backward pass
    ConfigError, UnsupportedError, DeadSiteError
    """
    recipes = combine.recipes(method, targets, path, budget, options)
    first = STATE not in model._modules
    state = State() if first else model._modules[STATE]
    net = network(model)
    roles = dict(roles if roles is not None else state.roles or getattr(model, "roles", {}))
    if example is None:
        example = state.example if state.example is not None else getattr(model, "example", None)
    _check(model, recipes, name, example, state)
    parts = [_record(model, name, recipe, roles, example) for recipe in recipes]
    adapter = parts[0] if not recipes[0].part else combine.together(name, parts, path)
    before = dict(state.routing.active)
    if first:
        _begin(model, net, state, roles, example)
    run = probe.Example(model, example)
    try:
        with torch.random.fork_rng(enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            for part, recipe in zip(parts, recipes, strict=True):
                with combine.naming(recipe.part):
                    _bind(model, net, state, part, recipe.cls, roles, run, recipe.path)
        combine.gather(adapter)
        state.adapters[name] = adapter
        if head is not None:
            state.heads[name] = head
        state.train(model.training)  # a new module is in train mode: dropout would act in an eval model
        state.routing.active = {name: 1.0}
        if not adapter.in_place:
            probe.rest(net.modules())
            if thin:
                state.thinned = thin_layers.thin(net)
        for part, recipe in zip(parts, recipes, strict=True):
            with combine.naming(recipe.part):
                if verify and recipe.cls.face == "weight":
                    influence.check(state, net, part, run)
                if verify and not adapter.in_place:
                    live.check_live(state, net, part, run, selection=recipe.cls.face == "selection")
        combine.gather(adapter)
    except BaseException:
        _forget(model, net, state, name)
        state.routing.active = before
        raise
    return model


def _record(model, name: str, recipe: combine.Recipe, roles, example) -> Adapter:
    """The record of one method, its size solved where a budget is given."""
    cls, options, solved = recipe.cls, {**methods.options(recipe.cls), **recipe.options}, None
    if recipe.budget is not None:
        from core.adapters.budget import solve

        with combine.naming(recipe.part):
            where = {"targets": recipe.targets, "roles": roles, "example": example}
            solved = solve(model, cls, recipe.label, recipe.budget, options, **where)
        options[solved.option] = solved.size
    targets = choose_targets(recipe.targets, cls.targets, cls.face, roles)
    return Adapter(name, recipe.label, options, targets, recipe.path, budget=solved, part=recipe.part)


def _place(recipe: combine.Recipe) -> str:
    return f"adapter.parts.{recipe.part}" if recipe.part else "adapter"


def _check(model, recipes: list[combine.Recipe], name, example, state) -> None:
    problems = []
    for recipe in recipes:
        known, place = methods.options(recipe.cls), _place(recipe)
        allowed = [*known, "axis"] if recipe.cls.face == "activation" else known
        problems += [
            Problem(f"{place}.{key}", repr(value), ", ".join(allowed) or "no option", did_you_mean(key, allowed))
            for key, value in recipe.options.items()
            if key not in allowed
        ]
    if isinstance(model, (nn.Sequential, nn.ModuleList)):
        problems.append(
            Problem("model", type(model).__name__, "a module with a forward of its own", "wrap it in a Backbone")
        )
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        problems.append(Problem("adapter.name", repr(name), "letters, digits, - and _", "rename it"))
    elif name in state.adapters:
        problems.append(
            Problem("adapter.name", name, "a new name", f"detach it first; attached: {', '.join(state.adapters)}")
        )
    for recipe in recipes:
        if recipe.path not in PATHS:
            near = did_you_mean(recipe.path, PATHS)
            problems.append(Problem(f"{_place(recipe)}.path", recipe.path, ", ".join(PATHS), near))
    label = "+".join(recipe.label for recipe in recipes)
    if example is None:
        problems.append(
            Problem("example", "None", "(args, kwargs) of a tiny forward call", "pass example=, or a Backbone")
        )
    if any(a.in_place for a in state.adapters.values()):
        problems.append(
            Problem("adapter", label, "the only adapter beside `full`", "full trains in place: build the model anew")
        )
    elif getattr(recipes[0].cls, "in_place", False) and state.adapters:
        problems.append(Problem("adapter", label, "a model without adapters", "detach the others first"))
    if any(a.merged for a in state.adapters.values()):
        problems.append(Problem("adapter", label, "an unmerged model", "unmerge(model) first"))
    if problems:
        raise ConfigError(problems=problems)


def _begin(model, net, state: State, roles, example) -> None:
    """Freeze the base and register the state. Frozen norms that keep what they have seen go to eval."""
    state.requires_grad_before = {key: p.requires_grad for key, p in model.named_parameters()}
    state.roles, state.batch_axis = roles, dict(getattr(model, "batch_axis", {}))
    if not hasattr(model, "example"):  # a plain module cannot be asked again
        state.example = example() if callable(example) else example
    for p in model.parameters():
        p.requires_grad_(False)
    for module in probe.keeping(net.modules()):
        module.eval()
    model.add_module(STATE, state)


def _bind(model, net, state: State, adapter: Adapter, cls, roles, run, path) -> None:
    if cls.face == "token":
        from core.adapters import tokens

        tokens.bind_tokens(model, adapter, cls)
    elif cls.face == "activation":
        sites = resolve(net, roles, adapter.targets)
        bind.bind_activation(state, net, adapter, cls, sites, run, getattr(model, "channel_axis", {}))
    elif cls.face == "selection":
        if not cls.vectors and (found := [path for path, module in net.named_modules() if coded(module)]):
            got = f"{adapter.method} on 4-bit weights: {found[0]}, ..."
            raise UnsupportedError("adapter", got, "full weights", "quantise=none, or an adapter beside the base")
        if cls.in_place:
            from core.adapters.io import fingerprint

            adapter.in_place = True
            state.base_fingerprint = fingerprint(model)
            for path, name, _ in cls.select(net, roles, adapter.targets, **adapter.options):
                p = net.get_submodule(path)._parameters[name]
                p.requires_grad_(p.is_floating_point())
            return
        chosen = cls.select(net, roles, adapter.targets, **adapter.options)
        sites = list(dict.fromkeys(Site(c.role, c.path, c.parameter) for c in chosen))
        if sites or not cls.empty:
            bind.bind_weight(state, net, adapter, cls, _untied(net, sites), run, path)
    else:
        bind.bind_weight(state, net, adapter, cls, resolve(net, roles, adapter.targets), run, path)


def _untied(net: nn.Module, sites: list[Site]) -> list[Site]:
    """A tied parameter is chosen once."""
    seen, kept = set(), []
    for site in sites:
        p = net.get_submodule(site.path)._parameters.get(site.parameter)
        if p is None or id(p) not in seen:
            kept.append(site)
            seen.add(id(p))
    return kept


def _forget(model, net, state: State, name: str) -> None:
    """Remove every trace of one adapter; with the last one, of the state."""
    if name in state.tokens:
        from core.adapters import tokens

        tokens.unbind_tokens(model, name)
    bind.remove(state, net, name)
    state.adapters.pop(name, None)
    state.routing.active.pop(name, None)
    if name in state.heads:
        del state.heads[name]
    if not state.adapters:
        thin_layers.unthin(net)
        probe.unrest(net.modules())
        del model._modules[STATE]
        for key, p in model.named_parameters():
            p.requires_grad_(state.requires_grad_before.get(key, True))
            if not p.requires_grad:
                p.grad = None


def detach(model: nn.Module, name: str | None = None) -> nn.Module:
    """Remove one adapter, or all: outputs, state dict, classes and requires_grad flags are as before attach.

    A merged adapter is removed and the merged base stays. ConfigError for `full`, which has changed the base itself."""
    state = state_of(model)
    names = list(state.adapters) if name is None else [record(model, name).name]
    for one in names:
        if state.adapters[one].in_place:
            raise ConfigError(
                f"adapter {one}", "full trains in place", "an adapter beside the base", "build the model anew"
            )
    for one in names:
        _forget(model, network(model), state, one)
    return model


def set_active(model: nn.Module, x: str | Iterable[str] | Mapping[str, float] | None) -> nn.Module:
    """Activate one adapter, several, several with weights, or None: the base."""
    state = state_of(model)
    if x is None:
        active = {}
    elif isinstance(x, str):
        active = {x: 1.0}
    elif isinstance(x, Mapping):
        active = {key: float(weight) for key, weight in x.items()}
    else:
        active = dict.fromkeys(x, 1.0)
    for one in active:
        if record(model, one).merged:
            raise ConfigError(f"adapter {one}", "merged into the base", "an unmerged adapter", "unmerge(model) first")
    if len(ported := [one for one in active if one in state.tokens]) > 1:
        raise ConfigError("active adapters", ported, "one token adapter at a time", "use mix for different rows")
    state.routing.active = active
    return model


@contextmanager
def use(model: nn.Module, x):
    """`set_active` for the length of a with block."""
    before = dict(state_of(model).routing.active)
    set_active(model, x)
    try:
        yield model
    finally:
        state_of(model).routing.active = before


@contextmanager
def mix(model: nn.Module, rows: list[str | None]):
    """Route batch rows: row i goes through adapter rows[i], None is the base. Weight-path sites raise ConfigError."""
    state = state_of(model)
    for one in {row for row in rows if row is not None}:
        record(model, one)
    state.routing.rows = list(rows)
    try:
        yield model
    finally:
        state.routing.rows = None


def head(model: nn.Module, name: str = "default") -> nn.Module | None:
    """The head that adapter `name` owns."""
    return state_of(model).heads[name] if name in state_of(model).heads else None


def acting_head(model: nn.Module) -> nn.Module | None:
    """The head of the adapter that is active, None for the base alone: for networks that read it inside."""
    state = model._modules.get(STATE)
    owners = [name for name in state.routing.active if name in state.heads] if state is not None else []
    return state.heads[owners[0]] if owners else None


def trainable(model: nn.Module, name: str = "default") -> dict[str, nn.Parameter]:
    """tensor key -> parameter: the adapter's own, then its head's (`head|...`); what an optimiser gets."""
    adapter = record(model, name)
    net = network(model)
    if adapter.in_place:
        found = {f"{_owner(key)}|full|value": p for key, p in net.named_parameters() if not key.startswith(f"{STATE}.")}
    else:
        found = live.tensors(state_of(model), adapter)
    own = head(model, name)
    if own is not None:
        found |= {f"head|{key}": p for key, p in own.named_parameters()}
    return {key: p for key, p in found.items() if p.requires_grad}


def _owner(key: str) -> str:
    path, _, parameter = key.rpartition(".")
    return f"{path}:{parameter}"


def check_live(model: nn.Module, name: str = "default", run: Callable | None = None) -> None:
    """DeadSiteError where a site of `name` gets no gradient or is not read by `run()`, the example by default."""
    state = state_of(model)
    example = state.example if state.example is not None else model.example
    live.check_live(state, network(model), record(model, name), run or probe.Example(model, example))
