"""Does a host cancel what a method does to its weight? A standardised convolution divides every row of its weight by
the row's deviation: a factor per row, such as IA3's or DoRA's, would get a gradient out of rounding and change nothing.

Looked at where a host's forward is not its stock class's: each tensor of the method is moved, and the host asked.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from core.adapters import probe
from core.adapters.hosts import stock_forward
from core.adapters.op import precise
from core.adapters.seam import original
from core.adapters.state import Adapter, State
from core.errors import Problem, UnsupportedError

LEAST = 0.02  # relative change of the output over that of the weight, by norms: about 1 where a host keeps the change


def check(state: State, net: nn.Module, adapter: Adapter, example: Callable) -> None:
    """UnsupportedError names the tensors of a weight method whose changes some hosts divide out."""
    own = [b for b in adapter.bound if b.path == "weight" and b.site.parameter == "weight" and b.host != "Embedding"]
    hosts = {b.site.path: net.get_submodule(b.site.path) for b in own}
    own = [b for b in own if not stock_forward(host := hosts[b.site.path]) and "weight" in host._parameters]
    keep, state.routing.active = state.routing.active, {}
    try:
        called = _calls(net, {b.site.path for b in own}, example)
        problems = []
        for bound in own:
            host = hosts[bound.site.path]
            if bound.site.path in called and (names := _cancelled(state, bound, host, *called[bound.site.path])):
                got = f"{adapter.method}: {original(host).__name__} divides out what {names} does to its weight"
                allowed = "a method whose every tensor acts there"
                problems.append(Problem(bound.site.key, got, allowed, "lora, or another role"))
    finally:
        state.routing.active = keep
    if problems:
        raise UnsupportedError(problems=problems)


def _calls(net: nn.Module, paths: set[str], example: Callable) -> dict[str, tuple[tuple, dict, Tensor]]:
    """path -> (args, kwargs, output) of the last call of the module there."""
    found: dict[str, tuple] = {}

    def note(path, args, kwargs, out):
        if isinstance(out, Tensor):
            found[path] = args, kwargs, out

    if paths:
        probe.calls(net, paths, example, note)
    return found


@torch.no_grad()
def _cancelled(state: State, bound, host: nn.Module, args: tuple, kwargs: dict, y: Tensor) -> str:
    """Names of the tensors that change W and not the output; "" where there are none."""
    method, W, dead = state.method(bound), host._parameters["weight"], []
    op = state.part(bound).op
    M = precise(op.matrix(W))
    start = method.weight(M)
    generator = torch.Generator().manual_seed(0)
    for name, p in method.named_parameters():
        kept = p.clone()
        p.add_(0.2 * torch.randn(p.shape, generator=generator).to(p))
        moved = method.weight(M)
        p.copy_(kept)
        change = _relative(moved, start)
        if change <= 1e-4:  # B = 0 hides what A does
            continue
        new = functional_call(host, {"weight": op.put(W, moved).to(W.dtype)}, args, kwargs)
        if _relative(new, y) < LEAST * change:
            dead.append(name)
    return ", ".join(dead)


def _relative(a: Tensor, b: Tensor) -> float:
    return float(torch.linalg.vector_norm((a - b).float()) / torch.linalg.vector_norm(b.float()).clamp_min(1e-12))
