"""Dropout on the input of a low-rank change, at one byte per element.

torch keeps the scaled mask and the dropped input for backward, each as large as x. Here x itself is kept, which the
network often keeps anyway, and one byte per element for the mask; beside a convolution, which costs more than its
mask, a seed that draws it again. Random bytes come from 8-byte words, so p is a multiple of 1/256; drawing a float mask
on CPU costs more than a small layer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

STEPS = 256


def quantised(p: float) -> float:
    """The nearest multiple of 1/256."""
    return round(p * STEPS) / STEPS


def dropped_down(x: Tensor, A: Tensor, op, p: float) -> Tensor:
    """`op.down(dropout(x, p), A)`; p a multiple of 1/256."""
    if torch.compiler.is_compiling():  # the compiler fuses the mask itself
        return op.down(F.dropout(x, p), A)
    return _DroppedDown.apply(x, A, op, p)


def draw_seed() -> int:
    """From torch's own CPU generator: nothing waits for the device, and a run's seed decides it."""
    return int(torch.randint(2**63 - 1, ()))


def keep_mask(like: Tensor, p: float, seed: int | None = None) -> Tensor:
    """(shape of `like`) uint8, 0 with probability p, else 1; of a seed always the same. Bytes compare and multiply
    faster than bools."""
    source = None if seed is None or like.is_meta else torch.Generator(like.device).manual_seed(seed)
    words = torch.empty(-(-like.numel() // 8), dtype=torch.int64, device=like.device)
    words.random_(-(2**63), None, generator=source)
    return words.view(torch.uint8)[: like.numel()].ge_(round(p * STEPS)).view(like.shape)


def _blocks(x: Tensor) -> list[slice]:
    """Row ranges of a matrix: on CPU small enough for the cache, so that no temporary is as large as x."""
    rows = max(64, 2**17 // x.shape[1]) if x.device.type == "cpu" else max(1, len(x))
    return [slice(start, start + rows) for start in range(0, len(x), rows)]


def masked_product(x: Tensor, mask: Tensor, A: Tensor) -> Tensor:
    """(x * mask) @ A.T, (tokens, rank)"""
    h = x.new_empty(len(x), len(A))
    for s in _blocks(x):
        torch.mm(x[s] * mask[s], A.T, out=h[s])
    return h


def masked_gradients(x, mask, A: Tensor, gB: Tensor, dx: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """(gB @ (x * mask), A @ (x * mask).T); where given, dx gains scale * mask * (gB.T @ A).

    x, mask, dx   (tokens, in)   A (rank, in)   gB (rank, tokens)"""
    dA = torch.zeros(A.shape, dtype=torch.promote_types(A.dtype, torch.float32), device=A.device)
    h = A.new_empty(gB.shape)
    for s in _blocks(x):
        seen = x[s] * mask[s]
        dA += gB[:, s] @ seen
        h[:, s] = A @ seen.T
        if dx is not None:
            dx[s].add_((gB[:, s].T @ A).mul_(mask[s]), alpha=scale)
    return dA, h


def masked_input_gradient(dx: Tensor, mask: Tensor, A: Tensor, gB: Tensor, scale: float) -> None:
    """dx += scale * mask * (gB.T @ A), in place."""
    for s in _blocks(dx):
        dx[s].add_((gB[:, s].T @ A).mul_(mask[s]), alpha=scale)


class _DroppedDown(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, A, op, p):
        ctx.seed = None if op.linear else draw_seed()
        mask = keep_mask(x, p, ctx.seed)
        ctx.op, ctx.p, ctx.scale = op, p, 1 / (1 - p)
        ctx.save_for_backward(x, A, mask if op.linear else None)
        return op.down(x * mask, A * ctx.scale)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        x, A, mask = ctx.saved_tensors
        cast, scaled, need = x.to(g.dtype), (A * ctx.scale).to(g.dtype), ctx.needs_input_grad[0]
        if ctx.op.linear:  # under autocast g is in half precision
            dx = torch.zeros_like(cast) if need else None
            rows = [t if t is None else t.reshape(-1, t.shape[-1]) for t in (cast, mask, dx)]
            dA, _ = masked_gradients(*rows[:2], scaled, g.reshape(-1, g.shape[-1]).T, rows[2], 1.0)
        else:
            mask = keep_mask(x, ctx.p, ctx.seed)
            dx, dA = ctx.op.down_gradients(cast * mask, scaled, g, need)
            dx = None if dx is None else dx.mul_(mask)
        return (None if dx is None else dx.to(x.dtype)), dA.to(A.dtype) * ctx.scale, None, None
