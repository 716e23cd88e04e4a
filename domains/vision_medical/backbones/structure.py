"""Roles by what a layer is, for what no profile names: convolutions and norms need no names. And by where it stands:
the halves of a U-shaped network as groups of roles.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import nn

from core.adapters.hosts import CONV, CONV_TRANSPOSE
from core.adapters.selection import inside, is_norm, roots_of
from core.adapters.sites import PATTERN, resolve

Roles = dict[str, "str | list[str]"]
MODULES = ("attn", "mlp", "block", "features", "encoder", "decoder")  # roles of whole modules: they claim no layer
HALVES = ("encoder", "decoder")
FUSED = re.compile(r"(^|_)qkv$")
AFTER_ATTENTION = re.compile(r"(^|_)(out_)?proj$|^to_out$")


def completed(
    net: nn.Module, roles: Mapping[str, str | list[str]], *, without: str = "", linears: bool = False
) -> Roles:
    """`roles` with `conv`, `conv.dw` (depthwise), `conv.up` (transposed) and `norm` of all layers that have no role.

    without   last segment of paths that stay out: layers that no forward reads
    linears   also `attn.qkv`, `attn.out`, `mlp.in` (widening) and `mlp.out`, by the names that libraries use
    """
    named = [role for role in roles if role not in MODULES]
    taken = {site.path for site in resolve(net, roles, named)} if named else set()
    found: Roles = dict(roles)
    for path, module in net.named_modules():
        last = path.rpartition(".")[2]
        role = _kind(module) or (_linear(last, module) if linears and isinstance(module, nn.Linear) else "")
        if role and path not in taken and not (without and last == without):
            found[role] = [*_listed(found.get(role, [])), path]
    return found


def _kind(module: nn.Module) -> str:
    if isinstance(module, tuple(CONV_TRANSPOSE)):
        return "conv.up"
    if isinstance(module, tuple(CONV)):
        return "conv.dw" if 1 < module.groups == module.in_channels else "conv"
    return "norm" if is_norm(module) else ""


def _linear(name: str, module: nn.Linear) -> str:
    if FUSED.search(name):
        return "attn.qkv"
    if AFTER_ATTENTION.search(name):
        return "attn.out"
    return "mlp.in" if module.out_features > module.in_features else "mlp.out"


def halved(net: nn.Module, roles: Mapping[str, str | list[str]]) -> Roles:
    """`roles`, and those of the layers below the roles `encoder` and `decoder` once more by half: `encoder.conv`."""
    found: Roles = dict(roles)
    for half in HALVES:
        roots = roots_of(net, dict(roles), [half])
        for role in [role for role in roles if role not in HALVES]:
            globs = [(pattern, PATTERN.match(pattern)["glob"]) for pattern in _listed(roles[role])]
            here = [p + pattern[len(glob) :] for pattern, glob in globs for p in _paths(net, glob) if inside(p, roots)]
            if here:
                found[f"{half}.{role}"] = here
    return found


def _listed(patterns: str | list[str]) -> list[str]:
    return [patterns] if isinstance(patterns, str) else patterns


def _paths(net: nn.Module, glob: str) -> list[str]:
    regex = re.compile("".join("[^.]+" if c == "*" else re.escape(c) for c in glob))
    return [path for path, _ in net.named_modules() if regex.fullmatch(path)]
