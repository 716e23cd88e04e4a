"""Dropout on the input of a low-rank change, at one byte per element.

torch keeps the scaled mask and the dropped input for backward, each as large as x. Here x itself is kept, which the
network often keeps anyway, and one byte per element for the mask. Random bytes come from 8-byte words, so p is a
multiple of 1/256; drawing a float mask on CPU costs more than a small layer.
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


def keep_mask(like: Tensor, p: float) -> Tensor:
    """(shape of `like`) uint8, 0 with probability p, else 1. Bytes compare and multiply faster than bools."""
    words = torch.empty(-(-like.numel() // 8), dtype=torch.int64, device=like.device).random_(-(2**63), None)
    return words.view(torch.uint8)[: like.numel()].ge_(round(p * STEPS)).view(like.shape)


class _DroppedDown(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, A, op, p):
        mask = keep_mask(x, p)
        ctx.op, ctx.scale = op, 1 / (1 - p)
        ctx.save_for_backward(x, A, mask)
        return op.down(x * mask, A * ctx.scale)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        x, A, mask = ctx.saved_tensors
        dropped, scaled = (x * mask).to(g.dtype), (A * ctx.scale).to(g.dtype)  # under autocast g is in half precision
        if ctx.op.linear:
            dx = g @ scaled if ctx.needs_input_grad[0] else None
            dA = g.flatten(0, -2).T @ dropped.flatten(0, -2)
        else:
            with torch.enable_grad():
                leaves = dropped.requires_grad_(ctx.needs_input_grad[0]), scaled.requires_grad_()
                wanted = leaves if ctx.needs_input_grad[0] else leaves[1:]
                *dx, dA = torch.autograd.grad(ctx.op.down(*leaves), wanted, g)
                dx = dx[0] if dx else None
        dx = None if dx is None else (dx * mask).to(x.dtype)
        return dx, dA.to(A.dtype) * ctx.scale, None, None
