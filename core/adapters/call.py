"""The call path: host and adapters in one autograd function that saves only what its own backward needs.

torch keeps the input, the low-rank product and, with a materialised W', the weight as well; a hook that comes after
the host pays a second product. Which order a site takes: core/adapters/orders.py. Of N rows of input, (out, in) =
(o, i), rank r, `LowRank` keeps

    A is trained           x (N i), shared with every other layer on the same input; with dropout a byte per element
    B alone is trained     h = A x (N r) instead: LoRA-FA, arXiv 2308.03303; and no gradient of A is computed

and `InWeightSpace` x alone. Counts and timings: docs/design.md.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from core.adapters.dropout import keep_mask, masked_gradients, masked_input_gradient, masked_product
from core.adapters.op import Op
from core.adapters.orders import order_of


def compute_dtype(x: Tensor, W: Tensor) -> torch.dtype:
    """The dtype the host itself would compute in: autocast's where it is on (lookups excepted), else the weight's."""
    if x.is_floating_point() and torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return W.dtype


def without_autocast(x: Tensor):
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def spread(vectors: list[tuple[Op, Tensor]], out: int) -> Tensor:
    """(out,) of the whole host: each vector on the rows of its op, which no other has; 1 elsewhere."""
    total = None
    for op, vector in vectors:
        total = op.spread(vector, out, total)
    return total


def rescaled(y: Tensor, b: Tensor | None, ops, methods) -> Tensor:
    """Each output times the factor of its method, the bias left as it is."""
    own = [(op, m.rescale()) for op, m in zip(ops, methods, strict=True) if m.rescale is not None]
    if not own:
        return y
    factor = spread(own, y.shape[-1])
    kept = None if b is None else (b * (1 - factor)).to(y.dtype)
    factor = factor.to(y.dtype)
    return y * factor if kept is None else torch.addcmul(kept, y, factor)


class LowRank(torch.autograd.Function):
    """y = x (W + sum_j s_j B_j A_j)^T + b, each change on its own rows.  x (..., in)   W as the host stores it
    With dropout p_j the change sees x * mask_j / (1 - p_j). downs[j], where given, is x -> x A_j^T of a frozen A_j.
    again, where given, is () -> W: a computed weight is computed again in backward, and not kept.

    Thin products keep (rank, .) first: on CPU `x.T @ h` costs up to six times what `h.T @ x` costs."""

    @staticmethod
    def forward(ctx, x, W, b, again, ops, scales, drops, downs, dtype, *factors):
        x2 = x.reshape(-1, x.shape[-1]).to(dtype)
        M = ops[0].full(W)
        ctx.order = "factored" if any(drops) else order_of(len(x2), *M.shape)
        scales = [scale / (1 - p) for scale, p in zip(scales, drops, strict=True)]
        masks = [keep_mask(x2, p) if p else None for p in drops]
        ctx.ops, ctx.scales, ctx.dtype, ctx.shape = ops, scales, dtype, x.shape
        ctx.has_bias, ctx.x_dtype = b is not None, x.dtype
        need_x, (need_A, need_B) = ctx.needs_input_grad[0], _needed(ctx)
        # Without a gradient of any A the products h are enough, as long as they are the smaller ones.
        ctx.lean = not any(need_A) and sum(len(A) for A in factors[::2]) < x2.shape[1]
        merged = ctx.order == "merged"
        y = product(x.to(dtype), (_merged(M, ops, scales, factors) if merged else M).to(dtype), b)
        y2, kept, made = y.view(-1, y.shape[-1]), [], {}  # made: parts of one host may share a frozen A
        parts = zip(_parts(ops, scales, factors), masks, downs, need_B, strict=True)
        for (op, scale, A, B), mask, down, wanted in parts:
            keep = ctx.lean and wanted
            if not merged or keep:
                A_ = A.to(dtype)
                if mask is not None:
                    h = masked_product(x2, mask, A_)
                else:
                    h = made[id(A)] if id(A) in made else F.linear(x2, A_) if down is None else down(x2)
                    made[id(A)] = h
                if not merged:
                    _add(y2, op, h, B.to(dtype).T, scale)
            kept.append(h if keep else None)
        if ctx.lean and not need_x:
            masks = [None] * len(masks)
        ctx.again = again
        ctx.save_for_backward(None if ctx.lean else x, W if again is None else None, *factors, *masks, *kept)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        x, W, *rest = ctx.saved_tensors
        count, dtype, need = len(ctx.ops), ctx.dtype, ctx.needs_input_grad
        factors, masks, kept = rest[: 2 * count], rest[2 * count : 3 * count], rest[3 * count :]
        g2 = g.reshape(-1, g.shape[-1])
        x2 = None if x is None else x.reshape(-1, x.shape[-1]).to(dtype)
        dx = None
        if need[0]:
            M = ctx.ops[0].full(W if ctx.again is None else ctx.again())
            dx = g2 @ (_merged(M, ctx.ops, ctx.scales, factors) if ctx.order == "merged" else M).to(dtype)
        grads = []
        parts = zip(_parts(ctx.ops, ctx.scales, factors), masks, kept, *_needed(ctx), strict=True)
        for (op, scale, A, B), mask, h, need_A, need_B in parts:
            part = op.take(g2)
            A_, B_ = A.to(dtype), B.to(dtype)
            branch = dx if ctx.order == "factored" else None  # merged: the change is in W' already
            gB = B_.T @ part.T if need_A or branch is not None else None  # (rank, tokens)
            dA = None
            if ctx.lean:
                h = None if h is None else h.T
                if branch is not None:
                    if mask is None:
                        branch.addmm_(gB.T, A_, alpha=scale)
                    else:
                        masked_input_gradient(branch, mask, A_, gB, scale)
            elif mask is not None:
                dA, h = masked_gradients(x2, mask, A_, gB if gB is not None else B_.T @ part.T, branch, scale)
            else:
                dA = gB @ x2 if need_A else None
                h = A_ @ x2.T if need_B else None  # (rank, tokens)
                if branch is not None:
                    branch.addmm_(gB.T, A_, alpha=scale)
            grads.append(dA.to(A.dtype).mul_(scale) if need_A else None)
            grads.append((h @ part).to(B.dtype).mul_(scale).T if need_B else None)
        db = g2.sum(0) if ctx.has_bias and need[2] else None
        dx = None if dx is None else dx.view(ctx.shape).to(ctx.x_dtype)
        return (dx, None, db, None, None, None, None, None, None, *grads)


def product(x: Tensor, M: Tensor, b: Tensor | None) -> Tensor:
    """x M^T + b, written into a tensor of the final shape: a view could not be changed in place by the network
    (fair-esm does)."""
    x2, y = x.reshape(-1, x.shape[-1]), x.new_empty(*x.shape[:-1], len(M))
    y2 = y.view(-1, len(M))
    if b is None:
        torch.mm(x2, M.T, out=y2)
    else:
        torch.addmm(b.to(x.dtype), x2, M.T, out=y2)
    return y


def _needed(ctx) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
    """(which A, which B) want a gradient."""
    return ctx.needs_input_grad[9::2], ctx.needs_input_grad[10::2]


def _parts(ops, scales, factors):
    return zip(ops, scales, factors[::2], factors[1::2], strict=True)


def _merged(M: Tensor, ops, scales, factors) -> Tensor:
    """W' in fp32 (the adapters' dtype), so that it is rounded once."""
    total = M.to(factors[0].dtype, copy=True)
    for op, scale, A, B in _parts(ops, scales, factors):
        if op.rows is None:
            total.addmm_(B, A, alpha=scale)
        else:
            total.index_add_(0, op.rows.index(total.device), B @ A, alpha=scale)
    return total


def _add(y: Tensor, op, h: Tensor, Bt: Tensor, scale: float) -> None:
    """y[:, rows] += scale * h @ Bt, in place."""
    if op.rows is None:
        y.addmm_(h, Bt, alpha=scale)
    elif op.rows.groups == 1:
        y.narrow(1, op.rows.start, op.rows.size).addmm_(h, Bt, alpha=scale)
    else:
        y.index_add_(1, op.rows.index(y.device), h @ Bt, alpha=scale)


class Frozen(torch.autograd.Function):
    """y = x W^T + b that keeps nothing: a computed W (out, in), `make()`, is computed again for the gradient of x."""

    @staticmethod
    def forward(ctx, x, b, make):
        W = make()
        ctx.make, ctx.dtype, ctx.x_dtype = make, compute_dtype(x, W), x.dtype
        return product(x.to(ctx.dtype), W.to(ctx.dtype), b)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        dx = (g @ ctx.make().to(ctx.dtype)).to(ctx.x_dtype) if ctx.needs_input_grad[0] else None
        return dx, g.reshape(-1, g.shape[-1]).sum(0) if ctx.needs_input_grad[1] else None, None


class InWeightSpace(torch.autograd.Function):
    """y = host(x, W') + b with W' = change(W); saves x and W alone and rebuilds W' in backward.

    change   () -> W' as the host's full matrix, differentiable in `parameters`; called again in backward"""

    @staticmethod
    def forward(ctx, x, b, change, op, dtype, *parameters):
        ctx.change, ctx.op, ctx.dtype, ctx.has_bias = change, op, dtype, b is not None
        ctx.save_for_backward(x, *parameters)
        floating = x.is_floating_point()
        with torch.no_grad():
            M = change().to(dtype)
            return product(x.to(dtype), M, b) if op.linear else op.apply(x.to(dtype) if floating else x, M, b)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        x, *parameters = ctx.saved_tensors
        need = ctx.needs_input_grad
        wanted = [p for p, needed in zip(parameters, need[5:], strict=True) if needed]
        with torch.enable_grad():
            M = ctx.change()
        cast = x.to(ctx.dtype) if x.is_floating_point() else x
        dx, dM = ctx.op.gradients(cast, M.detach().to(ctx.dtype), g, need[0])
        found = iter(torch.autograd.grad(M, wanted, dM.to(M.dtype)))
        grads = [next(found) if needed else None for needed in need[5:]]
        db = None
        if ctx.has_bias and need[1]:
            axis = ctx.op.axis % g.ndim
            db = g.sum([d for d in range(g.ndim) if d != axis])
        return (None if dx is None else dx.to(x.dtype), db, None, None, None, *grads)
