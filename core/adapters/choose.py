"""Choose a host's path from how the network really uses its parameter.

used only inside the host's own stock forward, in all modes, untied   call    (class switch around forward)
used outside the host, tied, in some modes only, no stock forward     weight  (computed parameter)
weight-normed, recurrent                                              weight
never used in any mode                                                "": a dead site
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from core.adapters import probe
from core.adapters.base import ActivationMethod
from core.adapters.conv_op import CONV, CONV_TRANSPOSE
from core.adapters.hosts import stock_forward
from core.adapters.seam import lying, original
from core.adapters.sites import OUTPUTS, Site
from core.adapters.state import State
from core.errors import ConfigError, DeadSiteError, Problem, UnsupportedError


def owners_of(net: nn.Module, tensor: Tensor) -> list[tuple[str, str]]:
    """Every (module path, name) under which a parameter is registered: more than one where it is tied."""
    found = []
    for path, module in net.named_modules(remove_duplicate=True):
        found += [(path, name) for name, p in module._parameters.items() if p is tensor]
    return found


def watch_sites(state: State, net: nn.Module, sites: list[Site], example: Callable) -> dict[int, dict[str, set]]:
    tensors = [lying(net.get_submodule(s.path), s.parameter) for s in sites]
    keep, state.routing.active = state.routing.active, {}
    try:
        return probe.watch(example.model, [t for t in tensors if t is not None], example)
    finally:
        state.routing.active = keep


def choose(net: nn.Module, site: Site, uses: dict[int, dict[str, set]]) -> tuple[str, str]:
    """(path, why) from what the probe saw; path "" means never used."""
    host = net.get_submodule(site.path)
    tensor = lying(host, site.parameter)
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


def channel_axis(net: nn.Module, host: nn.Module) -> int:
    """1 where the last layer inside is a convolution or a norm over images, -1 otherwise; a module without layers
    passes on what the layer before it in the network has made."""
    images = (
        *CONV,
        *CONV_TRANSPOSE,
        nn.modules.batchnorm._BatchNorm,
        nn.GroupNorm,
        nn.modules.instancenorm._InstanceNorm,
    )
    every, inside = list(net.modules()), set(host.modules())
    last = max(i for i, module in enumerate(every) if module in inside)
    for module in reversed(every[: last + 1]):
        if isinstance(module, (ParametrizationList, nn.PReLU)):  # a normed layer's weight, an activation's slope: they
            continue  # say nothing of the layout, and the layer comes next
        if isinstance(module, images):
            return 1
        if next(module.parameters(recurse=False), None) is not None:
            return -1
    return -1


def measure(example: Callable, net: nn.Module, sites: list[Site]) -> dict[str, tuple[torch.Size, torch.Size]]:
    """module path -> shapes of its first input and of its (first) output on the example."""
    shapes: dict[str, tuple[torch.Size, torch.Size]] = {}

    def note(path, args, kwargs, out):
        shapes[path] = first_tensor(args, kwargs).shape, (out[0] if isinstance(out, (tuple, list)) else out).shape

    probe.calls(net, {site.path for site in sites}, example, note)
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
    net: nn.Module,
    site: Site,
    options: dict,
    axes: dict,
    shapes: tuple[torch.Size, torch.Size],
) -> tuple[ActivationMethod, int]:
    """(the method at one module, the width that it adapts). UnsupportedError where it has no meaning there."""
    host, (x, h) = net.get_submodule(site.path), shapes
    axis = axes[site.role] if site.role in axes else channel_axis(net, host)
    axis = options.get("axis", axis)
    options = {**options, "axis": axis}
    if site.rows is not None:  # of a fused projection: its own channels alone
        h = torch.Size(len(site.rows) if i == axis % len(h) else n for i, n in enumerate(h))
    reason = cls.refuses(host, x, h, options)
    if site.parameter != "weight":
        reason = f"{site.parameter} is no module's output: target roles of modules, as {', '.join(OUTPUTS)}"
    if reason:
        got = f"{cls.__name__} on {original(host).__name__} {tuple(x)} -> {tuple(h)}"
        raise UnsupportedError(site.key, got, "", reason)
    widths = (h[axis], x[axis]) if cls.reads_input else (h[axis],)
    method = cls(*widths, **cls.options_for(host, x, h, options))
    method.role = site.role
    return method, h[axis]


def first_tensor(args: tuple, kwargs: dict) -> Tensor:
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            return value
    raise ConfigError("adapter", "a module called without a tensor", "a tensor argument", "choose another role")
