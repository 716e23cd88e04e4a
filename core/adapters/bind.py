"""Install a method at its sites, by the path that each host needs, and take it out again.

call    class switch around the host's forward          weight  computed parameter
hook    forward hook, where it is asked for             act     forward hook on a module's output
"""

from __future__ import annotations

import torch
from torch import nn

from core.adapters import choose
from core.adapters.base import ActivationMethod, Method
from core.adapters.hosts import op_for
from core.adapters.op import precise
from core.adapters.seam import ADAPTERS, coded, original, stored, switch, unswitch
from core.adapters.sites import Site
from core.adapters.state import Adapter, Bound, Part, Slot, State
from core.errors import ConfigError, DeadSiteError, Problem, UnsupportedError

HOOKS = "_peft_hooks"


def call_forward(host: nn.Module, inner, *args, **kwargs):
    """The call path's forward. Module level, so that copies and pickles find it by name."""
    slot = host.__dict__[ADAPTERS].get("weight@call")
    if slot is None:
        return inner(*args, **kwargs)
    if len(args) + len(kwargs) != 1:  # ConvTranspose's output_size: geometry that the op does not know
        slot.hit()
        if not slot.acting() and slot.routing.rows is None:
            return inner(*args, **kwargs)
        raise UnsupportedError(slot.key, "a forward call with more than one argument", "x alone", "path=weight")
    return slot.call(host, inner, args[0] if args else next(iter(kwargs.values())))


call_forward.layer = 1


def output_hook(host, args, kwargs, output):
    """The hook path: the host has already computed its own output. Forced only; `call` is cheaper."""
    slot = host.__dict__[ADAPTERS]["weight@hook"]
    slot.hit()
    x = choose.first_tensor(args, kwargs)
    if slot.routing.rows is not None:
        return slot.mixed(host, None, x, output)
    acting = slot.acting()
    return slot.changed(host, None, x, acting, output) if acting else None


def act_hook(host, args, kwargs, output):
    return host.__dict__[ADAPTERS]["@act"].act(host, choose.first_tensor(args, kwargs), output)


# Installing -----------------------------------------------------------------------------------------------------------


def slot_for(state: State, net: nn.Module, site: Site, path: str) -> Slot:
    """The slot of a host parameter (or module output), made and installed at its first use."""
    host = net.get_submodule(site.path)
    kind = "@act" if path == "act" else f"{site.parameter}@{path}"
    key = f"{site.path}:{kind}".replace(".", "/")
    for other in ("call", "hook", "weight"):
        if path in ("call", "hook", "weight") and other != path:
            taken = host.__dict__.get(ADAPTERS, {}).get(name_of(site.parameter, other))
            if taken is not None:
                raise ConfigError(
                    f"adapter.path at {site.key}",
                    path,
                    f"{other}: another adapter is bound there",
                    f"path={other}, or detach it",
                )
    shared = host.__dict__.get(ADAPTERS, {}).get(site.parameter) if path == "weight" else None
    if shared is not None and shared.key != key:  # one tensor, two views of it: as a table and as a matrix
        got = f"tied with {shared.owners[0][0]}.{shared.owners[0][1]}, which is adapted already"
        raise UnsupportedError(site.key, got, "one role of a tied tensor", "leave one of the two roles out")
    if key in state.slots:
        return state.slots[key]
    slot = Slot(state.routing, path, key)
    slot.owners = [(site.path, site.parameter)]
    if path == "weight":
        tensor = host._parameters.get(site.parameter)
        if tensor is not None:
            slot.owners = choose.owners_of(net, tensor)
        for owner, name in slot.owners:
            module = net.get_submodule(owner)
            module.__dict__.setdefault(ADAPTERS, {})[name] = slot
            switch(module, name=name)
    else:
        host.__dict__.setdefault(ADAPTERS, {})["@act" if path == "act" else name_of(site.parameter, path)] = slot
        if path == "call":
            switch(host, forward=call_forward)
        else:
            hook = act_hook if path == "act" else output_hook
            host.__dict__.setdefault(HOOKS, {})[kind] = host.register_forward_hook(hook, with_kwargs=True)
    state.slots[key] = slot
    return slot


def name_of(parameter: str, path: str) -> str:
    return parameter if path == "weight" else f"{parameter}@{path}"


def remove(state: State, net: nn.Module, adapter: str) -> None:
    """Take one adapter's methods out; hosts without any are left as they were found."""
    for slot in state.slots.values():
        slot.remove(adapter)
    release(state, net)


def release(state: State, net: nn.Module) -> None:
    """Take slots without methods off their hosts."""
    for key, slot in list(state.slots.items()):
        if slot.parts:
            continue
        for owner, name in slot.owners:
            module = net.get_submodule(owner)
            kept = module.__dict__[ADAPTERS]
            kept.pop("@act" if slot.path == "act" else name_of(name, slot.path))
            if slot.path == "weight":
                unswitch(module, name=name)
                if isinstance(module, nn.RNNBase):
                    module._init_flat_weights()  # it caches what it read
            elif slot.path == "call":
                unswitch(module, forward=call_forward)
            else:
                hooks = module.__dict__[HOOKS]
                hooks.pop("@act" if slot.path == "act" else f"{name}@{slot.path}").remove()
                if not hooks:
                    del module.__dict__[HOOKS]
            if not kept:
                del module.__dict__[ADAPTERS]
        del state.slots[key]


def bind_weight(state: State, net: nn.Module, adapter: Adapter, cls, sites: list[Site], example, path: str) -> None:
    """Bind a weight method or a selection at its sites, each by the path that its host needs."""
    if cls.needs_codes and not any(coded(net.get_submodule(site.path)) for site in sites):
        raise ConfigError("adapter", f"{adapter.method} on full weights", "a base with 4-bit layers", cls.needs_codes)
    uses = choose.watch_sites(state, net, sites, example)
    problems = []
    for site in sites:
        host = net.get_submodule(site.path)
        kind, why = choose.choose(net, site, uses)
        if not kind:
            if cls.face == "selection":
                adapter.skipped.append(site.key)
                continue
            problems.append(
                Problem(
                    site.key,
                    "never read in train, eval, eval + no_grad",
                    "a parameter that a forward reads",
                    "choose another role",
                )
            )
            continue
        if path != "auto" and site.parameter == "weight":
            if path in ("call", "hook") and kind == "weight":
                why = f"forced: {why}"
            kind, why = path, why if why.startswith("forced") else "forced"
        options = {} if cls.face == "selection" else cls.options_for(site.role, adapter.options)
        op = op_for(host, site.parameter, site.rows)
        W = op.matrix(stored(host, site.parameter).detach())
        if reason := cls.refuses(op.kind, tuple(W.shape), options):
            problems.append(Problem(site.key, f"{adapter.method} on {op.kind} {tuple(W.shape)}", "", reason))
            continue
        if kind == "weight" and options.get("dropout"):
            problems.append(
                Problem(
                    site.key,
                    f"dropout {options['dropout']} on the weight path ({why})",
                    "0: there is no input to drop",
                    "dropout=0",
                )
            )
            continue
        method = cls(precise(W), **options).to(W.device)
        method.start(host, site.rows)
        install(state, net, adapter, site, kind, why, method, op, tuple(W.shape))
    shapes = [bound.shape for bound in adapter.bound]
    if shapes and not problems and (reason := cls.refuses_all(shapes, adapter.options)):
        problems.append(Problem("adapter", f"{adapter.method} {adapter.options}", "", reason))
    if problems:
        raise (DeadSiteError if all(p.got.startswith("never read") for p in problems) else UnsupportedError)(
            problems=problems
        )
    if not adapter.bound and not getattr(cls, "empty", False):
        raise ConfigError(
            "adapter",
            f"{adapter.method} found nothing to train",
            "a network with such parameters",
            "choose another method",
        )
    join(state, adapter, cls)


def install(state, net, adapter: Adapter, site: Site, path, why, method, op, shape) -> Bound:
    host = net.get_submodule(site.path)
    slot = slot_for(state, net, site, path)
    name = f"{adapter.name}|{site.role}|{len(slot.parts)}".replace(".", "/")
    method.role = site.role
    slot.add(Part(adapter.name, site.role, name, op, state.batch_axis.get(site.role, 0), site.rows), method)
    bound = Bound(
        site,
        path,
        why,
        op.kind if op is not None and op.kind != "tensor" else original(host).__name__,
        shape,
        slot.key,
        name,
        part=adapter.part,
    )
    adapter.bound.append(bound)
    return bound


def bind_activation(
    state: State, net: nn.Module, adapter: Adapter, cls: type[ActivationMethod], sites, example, axes
) -> None:
    shapes = choose.measure(example, net, sites)
    problems, outputs = [], []
    for site in sites:
        host = net.get_submodule(site.path)
        h = shapes[site.path][1]
        try:
            method, width = choose.activation(cls, net, site, adapter.options, axes, shapes[site.path])
        except UnsupportedError as refused:
            problems += refused.problems
            continue
        device = next((p.device for m in (host, net) for p in m.parameters()), torch.device("cpu"))
        outputs.append(h)
        install(state, net, adapter, site, "act", f"output {tuple(h)}", method.to(device), None, (width,))
    if not problems and (reason := cls.refuses_all(outputs, adapter.options)):
        shown = ", ".join(str(tuple(h)) for h in dict.fromkeys(outputs))
        problems.append(Problem("adapter", f"{adapter.method} on outputs {shown}", "", reason))
    if problems:
        raise UnsupportedError(problems=problems)
    join(state, adapter, cls)


def join(state: State, adapter: Adapter, cls: type[Method]) -> None:
    """Let the methods of all sites tie what they share, then count: a shared tensor at its first site alone."""
    cls.join([state.method(bound) for bound in adapter.bound])
    for bound, _, tensor in state.tensors(adapter):
        if tensor.requires_grad:
            bound.parameters += tensor.numel()
