"""Which parameters a selection trains: biases, norms and blocks, found by what they are and not by a model's names."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from core.adapters.base import Chosen
from core.adapters.sites import resolve
from core.errors import ConfigError

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, _NormBase)  # _NormBase: every batch and instance norm
_NORM_NAME = re.compile(r"norm(\dd)?$", re.IGNORECASE)  # LlamaRMSNorm, T5LayerNorm, LayerNorm2d
_BIAS_NAME = re.compile(r"^bias$|^bias_|_bias$")  # a recurrent layer's bias_ih_l0, attention's in_proj_bias


def parameters(net: nn.Module) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    """(module path, module, name, parameter) of every parameter in network order, tied ones once."""
    seen: set[int] = set()
    for path, module in net.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                yield path, module, name, parameter


def is_norm(module: nn.Module) -> bool:
    """A normalisation layer with trainable vectors: a class of torch's, or one that is named and shaped like it."""
    own = [p for p in module._parameters.values() if p is not None]
    if isinstance(module, NORMS):
        return bool(own)
    return bool(own) and bool(_NORM_NAME.search(type(module).__name__)) and all(p.ndim == 1 for p in own)


def is_bias(name: str, parameter: Tensor) -> bool:
    """Tables of relative positions are called bias too, but are no vectors."""
    return parameter.ndim == 1 and bool(_BIAS_NAME.search(name))


def inside(path: str, roots: Collection[str]) -> bool:
    """True for a module path at or below one of `roots`."""
    return any(root in ("", path) or path.startswith(root + ".") for root in roots)


def roots_of(net: nn.Module, roles: dict, targets: Sequence[str]) -> set[str]:
    """Paths of the modules at the roles `targets`; the whole network where none are named."""
    return {site.path for site in resolve(net, roles, targets)} if targets else {""}


def choose(
    net: nn.Module,
    roles: dict,
    targets: Sequence[str],
    role: str,
    wanted: Callable[[nn.Module, str, nn.Parameter], bool],
    *,
    instead: str,
) -> list[Chosen]:
    """The wanted parameters of `net`, or of the modules at the roles `targets`; ConfigError where there is none."""
    roots = roots_of(net, roles, targets)
    found = [row for row in parameters(net) if inside(row[0], roots) and wanted(*row[1:])]
    if not found:
        place = f"at {', '.join(targets)}" if targets else f"in {type(net).__name__}"
        raise ConfigError("adapter", f"no {role} {place}", f"a network with a trainable {role}", f"try `{instead}`")
    return [Chosen(path, name, role) for path, _, name, _ in found]
