"""Join a method to its sites: choose each host's path, install it, prove that it lives, take it out again.

    used only inside the host's own stock forward, in all modes, untied      call    (class switch around forward)
    used outside the host, tied, in some modes only, or no stock forward      weight  (computed parameter)
    weight-normed, recurrent                                                   weight
    a module's output                                                          act     (forward hook)
    never used in any mode                                                     DeadSiteError

A fused kernel that passes the call path by (nn.TransformerEncoderLayer in eval) shows in the mode-free check: the site was not
read there, and moves to the weight path.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from core.adapters import probe
from core.adapters.base import ActivationMethod
from core.adapters.hosts import CONV, CONV_TRANSPOSE, op_for, stock_forward
from core.adapters.seam import ADAPTERS, original, stored, switch, unswitch
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
    x = _first(args, kwargs)
    if slot.routing.rows is not None:
        return slot.mixed(host, None, x, output)
    acting = slot.acting()
    return slot.changed(host, None, x, acting, output) if acting else None


def act_hook(host, args, kwargs, output):
    return host.__dict__[ADAPTERS]["@act"].act(host, _first(args, kwargs), output)


def _first(args: tuple, kwargs: dict) -> Tensor:
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            return value
    raise ConfigError("adapter", "a module called without a tensor", "a tensor argument", "choose another role")


# Choosing ------------------------------------------------------------------------------------------------------------


def owners_of(net: nn.Module, tensor: Tensor) -> list[tuple[str, str]]:
    """Every (module path, name) under which a parameter is registered: more than one where it is tied."""
    found = []
    for path, module in net.named_modules(remove_duplicate=True):
        found += [(path, name) for name, p in module._parameters.items() if p is tensor]
    return found


def watch_sites(state: State, net: nn.Module, sites: list[Site], example: Callable) -> dict[int, dict[str, set]]:
    tensors = [stored(net.get_submodule(s.path), s.parameter) for s in sites]
    keep, state.routing.active = state.routing.active, {}
    try:
        return probe.watch(example.model, [t for t in tensors if t is not None], example)
    finally:
        state.routing.active = keep


def choose(net: nn.Module, site: Site, uses: dict[int, dict[str, set]]) -> tuple[str, str]:
    """(path, why) from what the probe saw; path "" means never used."""
    host = net.get_submodule(site.path)
    tensor = host._parameters.get(site.parameter)
    if tensor is None:
        return "weight", "normed or derived weight"
    if isinstance(host, nn.RNNBase):
        return "weight", "recurrent: read many times"
    seen = uses.get(id(tensor), {})
    if not seen:
        return "", "never read"
    if len(owners := owners_of(net, tensor)) > 1:
        other = next((f"{p}" for p, n in owners if p != site.path), site.path)
        return "weight", f"tied with {other}"
    if any(module is not host for modules in seen.values() for module in modules):
        return "weight", "read outside its own forward"
    if missing := [mode for mode in probe.MODES if mode not in seen]:
        return "weight", f"not read in {', '.join(missing)}"
    if site.parameter != "weight":
        return "weight", f"{site.parameter}: no product"
    if not stock_forward(host):
        return "weight", f"{original(host).__name__} has a forward of its own"
    return "call", "read in its own forward"


def channel_axis(host: nn.Module) -> int:
    """1 where the last layer inside is a convolution or a norm over images, -1 otherwise."""
    images = (
        *CONV,
        *CONV_TRANSPOSE,
        nn.modules.batchnorm._BatchNorm,
        nn.GroupNorm,
        nn.modules.instancenorm._InstanceNorm,
    )
    for module in reversed(list(host.modules())):
        if isinstance(module, images):
            return 1
        if next(module.parameters(recurse=False), None) is not None:
            return -1
    return -1


def measure(example: Callable, net: nn.Module, sites: list[Site]) -> dict[str, tuple[torch.Size, torch.Size]]:
    """module path -> shapes of its first input and of its (first) output on the example."""
    shapes: dict[str, tuple[torch.Size, torch.Size]] = {}

    def note(path):
        def hook(module, args, kwargs, out):
            shapes[path] = _first(args, kwargs).shape, (out[0] if isinstance(out, (tuple, list)) else out).shape

        return net.get_submodule(path).register_forward_hook(hook, with_kwargs=True)

    handles = [note(path) for path in {site.path for site in sites}]
    try:
        with probe.pristine(example.model), torch.no_grad():
            example.model.eval()
            example()
    finally:
        for handle in handles:
            handle.remove()
    if missing := [site for site in sites if site.path not in shapes]:
        raise DeadSiteError(
            problems=[
                Problem(s.key, "never called on the example", "a module that runs", "choose another role")
                for s in missing
            ]
        )
    return shapes


def activation(
    cls: type[ActivationMethod],
    host: nn.Module,
    role: str,
    options: dict,
    axes: dict,
    shapes: tuple[torch.Size, torch.Size],
) -> tuple[ActivationMethod, int]:
    """(the method at one module, width of the module's output)"""
    options = dict(options)
    axis = options.pop("axis", axes.get(role, channel_axis(host)))
    x, h = shapes
    widths = (h[axis], x[axis]) if cls.reads_input else (h[axis],)
    return cls(*widths, axis=axis, **options), h[axis]


# Installing ----------------------------------------------------------------------------------------------------------


def slot_for(state: State, net: nn.Module, site: Site, path: str) -> Slot:
    """The slot of a host parameter (or module output), made and installed at its first use."""
    host = net.get_submodule(site.path)
    kind = "@act" if path == "act" else f"{site.parameter}@{path}"
    key = f"{site.path}:{kind}".replace(".", "/")
    for other in ("call", "hook", "weight"):
        if path in ("call", "hook", "weight") and other != path:
            taken = host.__dict__.get(ADAPTERS, {}).get(_name(site.parameter, other))
            if taken is not None:
                raise ConfigError(
                    f"adapter.path at {site.key}",
                    path,
                    f"{other}: another adapter is bound there",
                    f"path={other}, or detach it",
                )
    if key in state.slots:
        return state.slots[key]
    slot = Slot(state.routing, path, key)
    slot.owners = [(site.path, site.parameter)]
    if path == "weight":
        tensor = host._parameters.get(site.parameter)
        if tensor is not None:
            slot.owners = owners_of(net, tensor)
        for owner, name in slot.owners:
            module = net.get_submodule(owner)
            module.__dict__.setdefault(ADAPTERS, {})[name] = slot
            switch(module, name=name)
    else:
        host.__dict__.setdefault(ADAPTERS, {})["@act" if path == "act" else _name(site.parameter, path)] = slot
        if path == "call":
            switch(host, forward=call_forward)
        else:
            hook = act_hook if path == "act" else output_hook
            host.__dict__.setdefault(HOOKS, {})[kind] = host.register_forward_hook(hook, with_kwargs=True)
    state.slots[key] = slot
    return slot


def _name(parameter: str, path: str) -> str:
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
            kept.pop("@act" if slot.path == "act" else _name(name, slot.path))
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
    uses = watch_sites(state, net, sites, example)
    problems = []
    for site in sites:
        host = net.get_submodule(site.path)
        kind, why = choose(net, site, uses)
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
        method = cls(W.float() if W.dtype != torch.float64 else W, **options).to(W.device)
        install(state, net, adapter, site, kind, why, method, op, tuple(W.shape))
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


def install(state, net, adapter: Adapter, site: Site, path, why, method, op, shape) -> Bound:
    host = net.get_submodule(site.path)
    slot = slot_for(state, net, site, path)
    name = f"{adapter.name}|{site.role}|{len(slot.parts)}".replace(".", "/")
    slot.add(Part(adapter.name, site.role, name, op, state.batch_axis.get(site.role, 0)), method)
    count = sum(p.numel() for p in method.parameters() if p.requires_grad)
    bound = Bound(
        site,
        path,
        why,
        op.kind if op is not None and op.kind != "tensor" else original(host).__name__,
        shape,
        slot.key,
        name,
        count,
    )
    adapter.bound.append(bound)
    return bound


def bind_activation(
    state: State, net: nn.Module, adapter: Adapter, cls: type[ActivationMethod], sites, example, axes
) -> None:
    shapes = measure(example, net, sites)
    for site in sites:
        host = net.get_submodule(site.path)
        method, width = activation(cls, host, site.role, adapter.options, axes, shapes[site.path])
        device = next((p.device for p in host.parameters()), torch.device("cpu"))
        why = f"output {tuple(shapes[site.path][1])}"
        install(state, net, adapter, site, "act", why, method.to(device), None, (width,))


# Proving -------------------------------------------------------------------------------------------------------------


def tensors(state: State, adapter: Adapter) -> dict[str, nn.Parameter]:
    """tensor key -> parameter of one adapter, head excluded."""
    found = {}
    for bound in adapter.bound:
        for name, p in state.slots[bound.slot].methods[bound.method].named_parameters():
            found[f"{bound.site.key}|{name}"] = p
    if adapter.name in state.tokens:
        for name, p in state.tokens[adapter.name].named_parameters():
            found[f"tokens|{name}"] = p
    return found


def check_live(state: State, net: nn.Module, adapter: Adapter, example: Callable, selection: bool = False) -> None:
    """Every site gets a gradient in both grad modes and is read in (eval, no_grad); DeadSiteError lists those that do not."""
    wanted = {}
    for bound in adapter.bound:
        method = state.slots[bound.slot].methods[bound.method]
        for name, p in method.named_parameters():
            if p.requires_grad and name not in method.exempt:
                wanted[f"{bound.site.key}|{name}"] = p
    if adapter.name in state.tokens:
        wanted |= {k: p for k, p in tensors(state, adapter).items() if k.startswith("tokens|")}
    dead: dict[str, list[str]] = {}

    def run(mode):
        if probe.MODES[mode][1]:
            loss = probe.pseudo_loss(example())
            grads = [None] * len(wanted)
            if loss is not None:
                grads = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
            for key, grad in zip(wanted, grads, strict=True):
                if grad is None:
                    dead.setdefault(key.rsplit("|", 1)[0], []).append(f"no gradient in {mode}")
            return
        unread = consumed(state, adapter, example)
        if moved := [b for b in unread if b.path == "call"]:
            for bound in moved:
                _to_weight(state, net, adapter, bound, f"passed by in {mode}")
            unread = consumed(state, adapter, example)
        for bound in unread:
            dead.setdefault(bound.site.key, []).append(f"not read in {mode}")

    probe.in_modes(example.model, run)
    if dead and selection and len(dead) < len(adapter.bound):
        _skip(state, net, adapter, set(dead))
        return
    if dead:
        raise DeadSiteError(problems=[
            Problem(key, "; ".join(dict.fromkeys(what)), "every site is read and gets a gradient", _fix(adapter, key)) for key, what in dead.items()
        ])  # fmt: skip


def _skip(state: State, net: nn.Module, adapter: Adapter, keys: set[str]) -> None:
    """A selection chose by structure: parameters that the example does not reach are left out, and listed."""
    for bound in [b for b in adapter.bound if b.site.key in keys]:
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
    names = {part.adapter for part in parts}
    site = bound.site
    host = net.get_submodule(site.path)
    host.__dict__[ADAPTERS].pop(_name(site.parameter, slot.path))
    unswitch(host, forward=call_forward)
    del state.slots[slot.key]
    new = slot_for(state, net, site, "weight")
    for part in parts:
        new.add(part, methods[part.method])
    for name in names:
        for other in state.adapters[name].bound if name in state.adapters else []:
            if other.slot == slot.key:
                other.slot, other.path, other.why = new.key, "weight", why
    for other in adapter.bound:
        if other.slot == slot.key:
            other.slot, other.path, other.why = new.key, "weight", why
