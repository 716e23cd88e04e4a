"""The call path of a low-rank change on a convolution: thin gradients, without the dense gradient of W'.

The change is a convolution with `rank` output channels (A), then B at every position. For P output positions, (out, in)
the matrix view of the weight (in: channels of a group times taps), G groups:

    dense   dW' = g * x                     P out in products                    then B^T dW' and dW' A^T
    thin    dA = (B^T g) * x, dB = g (A*x)  2 P rank (out + G in) products

`thin_pays` is that rule; a product in a thin convolution takes longer. A single volume on the CPU is another case:
torch unfolds it, which costs more than the products, and a turned convolution (conv_op.py) unfolds `rank` channels
instead. With dropout the change is a second, thin convolution in any case.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from core.adapters.conv_op import layout_of, stand_in
from core.adapters.dropout import draw_seed, keep_mask
from core.adapters.orders import order_of

# Time of a product in a thin convolution over that in a square one: the forms cross between 3 and 4 (CPU, torch 2.13,
# rank 8, 16 to 2048 channels, 1x1 to 7x7 and 3x3x3 taps).
PRICE = 3.5


def thin_pays(op, x: Tensor, A: Tensor, out: int) -> bool:
    rank, columns = A.shape
    unfolded = x.ndim == 5 and len(x) == 1 and op.turns(x, A)
    return unfolded or out * columns > PRICE * 2 * rank * (out + op.groups * columns)


class LowRankConvolution(torch.autograd.Function):
    """y = conv(x, W + s B A) + b.  x (batch, channels, *positions)   W as the host stores it
    Kept: x where A is trained, A * x where B alone is. With dropout p the change sees x * mask / (1 - p), and A * x is
    kept too; the mask is drawn again from its seed, which is cheap beside a convolution."""

    @staticmethod
    def forward(ctx, x, W, b, op, scale, p, dtype, A, B):
        seen, M, h = x.to(dtype), op.full(W), None
        positions = seen[:, 0].numel()
        need_A, need_B = ctx.needs_input_grad[7:]
        ctx.factored = p > 0 or order_of(positions, *M.shape) == "factored"
        y = op.apply(seen, M.to(dtype) if ctx.factored else _merged(M, A, B, scale).to(dtype), b)
        keep_h = need_B and (p > 0 or not need_A)
        if p:
            ctx.seed, scale = draw_seed(), scale / (1 - p)
            seen = seen * keep_mask(x, p, ctx.seed)
        if ctx.factored or keep_h:
            h = op.down(seen, A.to(dtype))
        if ctx.factored:
            _up(op, y, h, B.to(dtype), scale)
        ctx.op, ctx.scale, ctx.p, ctx.dtype, ctx.has_bias, ctx.x_dtype = op, scale, p, dtype, b is not None, x.dtype
        ctx.shape, ctx.layout = x.shape, layout_of(x)
        ctx.save_for_backward(x if need_A else None, W, A, B, h if keep_h else None)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        x, W, A, B, h = ctx.saved_tensors
        op, scale = ctx.op, ctx.scale
        need_x, need_A, need_B = (ctx.needs_input_grad[i] for i in (0, 7, 8))
        A_, B_ = A.to(ctx.dtype), B.to(ctx.dtype)
        seen = stand_in(g, ctx.shape, ctx.layout, ctx.dtype) if x is None else x.to(ctx.dtype)
        dx = dA = dB = None
        if need_x:
            M = op.full(W)
            dx = op.input_gradient(seen, (M if ctx.factored else _merged(M, A, B, scale)).to(ctx.dtype), g)
        mask = keep_mask(seen, ctx.p, ctx.seed) if ctx.p and (need_A or need_x) else None
        if mask is not None and need_A:
            seen = seen * mask
        if h is None and need_B:
            h = op.down(seen, A_)
        parts = g.reshape(len(g), op.groups, -1, g[0, 0].numel())  # (batch, groups, out / groups, positions)
        rows = B_.view(op.groups, -1, len(A))  # (groups, out / groups, rank)
        if need_B:
            hs = h.reshape(len(g), op.groups, len(A), -1)
            dB = (hs @ parts.transpose(2, 3)).sum(0).transpose(1, 2).reshape(B.shape).to(B.dtype).mul_(scale)
        branch = need_x and ctx.factored
        if need_A or branch:
            gh = (rows.transpose(1, 2) @ parts).reshape(len(g), op.groups * len(A), *g.shape[2:])
            change, dA = op.down_gradients(seen, A_, gh, branch, need_A)
            dA = None if dA is None else dA.to(A.dtype).mul_(scale)
            if branch:
                dx.add_(change if mask is None else change.mul_(mask), alpha=scale)
        db = g.sum([axis for axis in range(g.ndim) if axis != 1]) if ctx.has_bias and ctx.needs_input_grad[2] else None
        return (None if dx is None else dx.to(ctx.x_dtype), None, db, None, None, None, None, dA, dB)


def _merged(M: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
    return torch.addmm(M.to(A.dtype), B, A, alpha=scale)


def _up(op, y: Tensor, h: Tensor, B: Tensor, scale: float) -> None:
    """y += scale * B h at every position, in place."""
    if op.groups > 1:
        y.add_(op.up(h, B), alpha=scale)
    else:  # a view: a convolution's output is dense, channels first or last
        y.flatten(2).baddbmm_(B.expand(len(y), *B.shape), h.flatten(2), alpha=scale)
