"""What bottleneck adapters share: two projections, the second zero at the start, run along a module's channels."""

from __future__ import annotations

from collections.abc import Callable

from torch import Size, Tensor, nn


def projections(dim: int, size: int, out: int, *, bias: bool = True) -> tuple[nn.Linear, nn.Linear]:
    """(down: dim -> size, up: size -> out), up zero, so that the adapter starts as the identity."""
    down, up = nn.Linear(dim, size, bias=bias), nn.Linear(size, out, bias=bias)
    for tensor in up.parameters():
        nn.init.zeros_(tensor)
    return down, up


def along(axis: int, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """`function`, which works on the last axis, applied to `axis` of x: axis 1 for convolutional features."""
    return function(x) if axis in (-1, x.ndim - 1) else function(x.movedim(axis, -1)).movedim(-1, axis)


def refuses_change(x: Size, h: Size, axis: int) -> str:
    """Why a branch from a module's input x cannot be added to its output h; "" where it can."""
    axis = axis % len(h)
    same = len(x) == len(h) and all(a == b or i == axis for i, (a, b) in enumerate(zip(x, h, strict=True)))
    what = f"the output {tuple(h)} has another shape than the input {tuple(x)}, beside the channels"
    return "" if same else f"{what}: use houlsby, or a role whose modules keep it"
