"""What orthogonal methods share: a rotation of a layer's input, y = W R^T x, or of its output. As rows, x R W^T.

input    x R is a product with small blocks before the frozen layer, which then keeps nothing for backward.
turned   W' = W R^T once. Its gradient would be dense, and R's is a few blocks: with dx = g W' it is x^T (g W), and
         g W = dx R where R is orthogonal. So dR_p = (x_p^T dx_p) R_p: one pass over the rows, not three.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from core.adapters.call import compute_dtype, product, without_autocast
from core.adapters.orders import pieces

NEUMANN = 5  # terms of the series (I + Q)^-1 = I - Q + Q^2 - ..., and the product with I - Q


def skew(v: Tensor, block: int) -> Tensor:
    """(..., b (b - 1) / 2) -> (..., b, b) with Q = -Q^T; v is the upper triangle, row by row."""
    rows, columns = torch.triu_indices(block, block, 1, device=v.device)
    Q = v.new_zeros(*v.shape[:-1], block, block)
    Q[..., rows, columns] = v
    return Q - Q.mT


def cayley(v: Tensor, block: int, how: Literal["exact", "neumann"] = "exact") -> Tensor:
    """R = (I + Q)^-1 (I - Q), Q = skew(v): orthogonal. `neumann` cuts the inverse's series: no longer orthogonal when
    Q is large (|R R^T - I| = 0.4 where Q's entries are 0.2), but made of products alone."""
    if how == "exact" and not torch.compiler.is_compiling():  # our own function would break the graph
        return _Cayley.apply(v, block)
    Q = skew(v, block)
    eye = torch.eye(block, dtype=Q.dtype, device=Q.device)
    if how == "exact":
        return torch.linalg.solve(eye + Q, eye - Q)
    inverse = eye - Q
    for _ in range(NEUMANN - 3):
        inverse = eye - Q @ inverse
    return inverse - inverse @ Q


class _Cayley(torch.autograd.Function):
    """R = 2 V - I with V = (I + Q)^-1, which always exists; so dQ = -2 V^T dR V^T, two products instead of a solve."""

    @staticmethod
    def forward(ctx, v, block):
        Q = skew(v, block)
        Q.diagonal(dim1=-2, dim2=-1).fill_(1)
        V, _ = torch.linalg.inv_ex(Q)
        ctx.save_for_backward(V)
        R = 2 * V
        R.diagonal(dim1=-2, dim2=-1).sub_(1)
        return R

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        (V,) = ctx.saved_tensors
        dQ = V.mT @ g @ V.mT
        rows, columns = torch.triu_indices(V.shape[-1], V.shape[-1], 1, device=V.device)
        return 2 * (dQ.mT - dQ)[..., rows, columns], None


def divisors(width: int) -> str:
    """Blocks that fit, in words."""
    found = [d for d in range(2, min(width, 256) + 1) if width % d == 0]
    return f"block={' '.join(map(str, found))}" if found else "no block fits"


def in_blocks(x: Tensor, R: Tensor) -> Tensor:
    """x (..., n b) times blockdiag(R), R (n, b, b); in the dtype that the host computes in."""
    dtype = compute_dtype(x, x)
    with without_autocast(x):
        x, R = x.to(dtype), R.to(dtype)
        if torch.compiler.is_compiling():  # our own function would break the graph
            return torch.einsum("...nb,nbc->...nc", x.unflatten(-1, R.shape[:2]), R).flatten(-2)
        return _InBlocks.apply(x, R)


class _InBlocks(torch.autograd.Function):
    """One product per block, written where it belongs: einsum copies x first, and its own output after."""

    @staticmethod
    def forward(ctx, x, R):
        ctx.save_for_backward(x, R)
        return _product(x, R)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        x, R = ctx.saved_tensors
        dx = _product(g, R.mT) if ctx.needs_input_grad[0] else None
        dR = torch.bmm(_blocks(x, R).mT, _blocks(g, R)) if ctx.needs_input_grad[1] else None
        return dx, dR


def _blocks(x: Tensor, R: Tensor) -> Tensor:
    """(n, tokens, b), a view where x has one."""
    return x.reshape(-1, *R.shape[:2]).transpose(0, 1)


def _product(x: Tensor, R: Tensor) -> Tensor:
    y = x.new_empty(x.shape)
    torch.bmm(_blocks(x, R), R, out=y.view(-1, *R.shape[:2]).transpose(0, 1))
    return y


class Turned(torch.autograd.Function):
    """y = x W'^T + b, W' = W blockdiag(R)^T on each change's own rows.  x (..., in)  W (out, in)  R (n, b, b) each

    Saves x, W and R; instead of W `again`, () -> W, where it is given."""

    @staticmethod
    def forward(ctx, x, W, b, again, rows, dtype, *turns):
        ctx.rows, ctx.dtype, ctx.bias = rows, dtype, None if b is None else b.dtype
        ctx.again = again
        ctx.save_for_backward(x, W if again is None else None, *turns)
        return product(x.to(dtype), _turned(W, rows, turns).to(dtype), b)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        x, W, *turns = ctx.saved_tensors
        g2, x2 = g.reshape(-1, g.shape[-1]), x.reshape(-1, x.shape[-1]).to(ctx.dtype)
        M = _turned(W if ctx.again is None else ctx.again(), ctx.rows, turns).to(ctx.dtype)
        dx, grads, need_x = None, [None] * len(turns), ctx.needs_input_grad[0]
        for start, size, which in pieces(ctx.rows, len(M)):
            wanted = which is not None and ctx.needs_input_grad[6 + which]
            if not need_x and not wanted:
                continue
            own = g2.narrow(1, start, size) @ M.narrow(0, start, size)
            if wanted:
                R = turns[which]
                grads[which] = torch.bmm(_blocks(x2, R).mT, _blocks(own, R)).to(R.dtype) @ R
            if need_x:
                dx = own if dx is None else dx.add_(own)
        db = g2.sum(0, dtype=ctx.bias) if ctx.bias is not None and ctx.needs_input_grad[2] else None
        return (None if dx is None else dx.view(x.shape).to(x.dtype), None, db, None, None, None, *grads)


def _turned(W: Tensor, rows, turns) -> Tensor:
    """W' (out, in) in R's dtype, to be rounded once."""
    W = W.to(turns[0].dtype)
    if rows == (None,):
        return _product(W, turns[0].mT)
    made = W.clone()
    for own, R in zip(rows, turns, strict=True):
        part = made.narrow(0, own.start, own.size)
        part.copy_(_product(W.narrow(0, own.start, own.size), R.mT))
    return made


def reflected(x: Tensor, U: Tensor, V: Tensor) -> Tensor:
    """x - (x U) V^T with thin U, V (in, r); in the dtype that the host computes in."""
    dtype = compute_dtype(x, x)
    with without_autocast(x):
        x, U, V = x.to(dtype), U.to(dtype), V.to(dtype)
        return x - (x @ U) @ V.mT if torch.compiler.is_compiling() else _Reflected.apply(x, U, V)


class _Reflected(torch.autograd.Function):
    """Saves x, U, V. Thin products keep (r, .) first, as on the call path."""

    @staticmethod
    def forward(ctx, x, U, V):
        ctx.save_for_backward(x, U, V)
        return _minus(x, U, V)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        x, U, V = ctx.saved_tensors
        dx = _minus(g, V, U) if ctx.needs_input_grad[0] else None
        x2, g2 = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
        dU = -((V.mT @ g2.mT) @ x2).mT
        dV = -((U.mT @ x2.mT) @ g2).mT
        return dx, dU, dV


def _minus(x: Tensor, U: Tensor, V: Tensor) -> Tensor:
    x2 = x.reshape(-1, x.shape[-1])
    return torch.addmm(x2, x2 @ U, V.mT, alpha=-1).view(x.shape)
