"""The class switch: how a host's behaviour changes without replacing the module, its parameters or its keys.

`host.__class__` becomes a subclass of the host's own class, same name, that may compute chosen parameters (a property
reads the untouched entry of `_parameters` and returns W') and may wrap `forward`. Classes are cached by (class,
names, forwards) and never mutated. Switching back restores the very class object. deepcopy and pickle rebuild from
the base class and the names.

Why not torch.nn.utils.parametrize: a deepcopy shares the original's dynamic class, so removal on the copy breaks the
original; pickling is forbidden; state-dict keys change, so base checkpoints no longer load.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

ADAPTERS = "_adapters"  # plain dict in host.__dict__: never a registered child (a Sequential would call it)


def stored(host: nn.Module, name: str) -> Tensor | None:
    """The untouched parameter: what `_parameters` (or torch's own parametrisation) holds, never the computed one."""
    value = host._parameters.get(name)
    if value is not None:
        return value
    if name in host.__dict__:  # old-style weight norm keeps the normed weight as a plain attribute
        return host.__dict__[name]
    base = original(host)
    inherited = getattr(base, name, None)
    if isinstance(inherited, property):  # torch's own parametrisation
        if torch.compiler.is_compiling():  # it takes a module's call, and no `fget`
            return host.parametrizations[name]()
        return inherited.fget(host)
    return None


def lying(host: nn.Module, name: str) -> Tensor | None:
    """The tensor that lies in the host: its parameter, or what its class makes the parameter of (`made_of`)."""
    source = getattr(original(host), "made_of", {}).get(name)
    return host._parameters.get(name) if source is None else host._buffers[source]


def coded(host: nn.Module) -> bool:
    """Whether the host's weight is made of codes: 4 bits."""
    return hasattr(original(host), "made_of")


def base_count(net: nn.Module) -> int:
    """Parameters of the base: adapters left out, weights that are made of codes counted as weights."""
    total = 0
    for path, module in net.named_modules():
        if path.split(".")[0] != "_peft":
            total += sum(stored(module, name).numel() for name in getattr(original(module), "made_of", {}))
    return total + sum(p.numel() for key, p in net.named_parameters() if key.split(".")[0] != "_peft")


def original(host: nn.Module) -> type:
    """The host's own class, seen through the switch."""
    return getattr(type(host), "_original", type(host))


def _read(host: nn.Module, name: str):
    value = stored(host, name)
    slot = host.__dict__.get(ADAPTERS, {}).get(name)
    if slot is None or value is None or hasattr(value, "placements"):  # FSDP2 reads its shards by getattr
        return value
    return slot.compute(host, value)


def _write(host: nn.Module, value, name: str):
    inherited = getattr(original(host), name, None)
    if name in host._parameters:
        host._parameters[name] = value
    elif isinstance(inherited, property):
        inherited.fset(host, value)
    else:
        host.__dict__[name] = value


def _rebuild(base, names, forwards):
    host = base.__new__(base)
    object.__setattr__(host, "__class__", computed_class(base, names, forwards))
    return host


def _reduce(host, protocol):
    base, names, forwards = type(host)._switch
    own = [k for k in base.__mro__ if "__getstate__" in k.__dict__ and k not in (object, nn.Module)]
    state = base.__getstate__(host) if own else dict(host.__dict__)
    if isinstance(host, nn.RNNBase):
        # A recurrent layer keeps a list of derived tensors; only leaves can be copied.
        state = {**state, "_flat_weights": [host._parameters.get(n) for n in host._flat_weights_names]}
    return _rebuild, (base, names, forwards), state


@functools.cache
def computed_class(base: type, names: tuple[str, ...], forwards: tuple[Callable, ...]) -> type:
    """A subclass of `base` that computes `names` and runs `forwards` (innermost first) around its forward.

    forwards   module-level functions (host, inner, *args, **kwargs), inner being the next forward in"""
    body = {
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "__reduce_ex__": _reduce,
        "_switch": (base, names, forwards),
        "_original": base,
    }
    for name in names:
        body[name] = property(functools.partial(_read, name=name), functools.partial(_write, name=name))
    run = base.forward
    for wrapper in forwards:
        run = _around(run, wrapper)
    if forwards:
        body["forward"] = run
    return type(base.__name__, (base,), body)


def _around(inner: Callable, wrapper: Callable) -> Callable:
    @functools.wraps(inner)  # libraries inspect the signature of forward
    def forward(self, *args, **kwargs):
        return wrapper(self, functools.partial(inner, self), *args, **kwargs)

    return forward


def switch(host: nn.Module, *, name: str | None = None, forward: Callable | None = None) -> None:
    """Start computing parameter `name`, or start running `forward` around the host's own."""
    base, names, forwards = getattr(type(host), "_switch", (type(host), (), ()))
    if name is not None:
        names = tuple(sorted({*names, name}))
    if forward is not None and forward not in forwards:
        forwards = tuple(sorted((*forwards, forward), key=_order))
    host.__class__ = computed_class(base, names, forwards)


def unswitch(host: nn.Module, *, name: str | None = None, forward: Callable | None = None) -> None:
    """The inverse of `switch`; with nothing left the host gets its own class object back."""
    base, names, forwards = getattr(type(host), "_switch", (type(host), (), ()))
    names = tuple(n for n in names if n != name)
    forwards = tuple(f for f in forwards if f is not forward)
    host.__class__ = computed_class(base, names, forwards) if names or forwards else base


def _order(forward: Callable):
    """Stable nesting whatever the order of attaching: by the function's `layer` (0 innermost), then by name."""
    return getattr(forward, "layer", 0), forward.__qualname__


__all__ = ["ADAPTERS", "computed_class", "original", "stored", "switch", "unswitch"]
