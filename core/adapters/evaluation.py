"""Host and changes in one product: a function per evaluation order of core/adapters/orders.py that needs more than one
call. `acting` is a list of (state.Part, weight)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from core.adapters.base import WeightMethod
from core.adapters.call import Frozen, LowRank, compute_dtype, spread, without_autocast
from core.adapters.conv_call import LowRankConvolution, thin_pays
from core.adapters.conv_op import ConvOp
from core.adapters.op import Op, precise
from core.adapters.orders import factors_of, pieces, places, turns
from core.adapters.rotation import Turned
from core.adapters.sparse import Sparse


def turned(x: Tensor, W: Tensor, b: Tensor | None, again, ops: list[Op], methods, exact: bool, dtype) -> Tensor | None:
    """The host with the turned W', R in the adapters' precision; None where another order serves."""
    full, made = ops[0].full(W), None if again is None else lambda: ops[0].full(again())
    with without_autocast(x):
        found = turns(ops, methods, x, len(full), exact)
        return None if found is None else Turned.apply(x, full, b, made, tuple(op.rows for op in ops), dtype, *found)


def sparse(x: Tensor, b: Tensor | None, change, shape, ops: list[Op], methods, exact: bool, dtype) -> Tensor | None:
    """The host with sparse changes; None where another order serves. change   () -> W' of `shape` (out, in)

    torch samples products in fp32 and fp64 alone; measured on CPU alone."""
    if dtype not in (torch.float32, torch.float64) or x.device.type != "cpu":
        return None
    found = places(ops, methods, shape, exact)
    if found is None:
        return None
    where, values = zip(*found, strict=True)
    return Sparse.apply(x, b, change, ops, where, dtype, *values)


def factors_in_full(methods, x: Tensor) -> list:
    """`factors_of`, in the adapters' precision: a factor may be a product (LoRA-XS), which autocast would round."""
    with without_autocast(x):
        return factors_of(methods)


def low_rank(
    x: Tensor, W: Tensor, b: Tensor | None, again, ops: list[Op], methods, factors, weights: list[float], dtype
) -> Tensor:
    """The product with every low-rank change in place, then each output times its gain. again   () -> W, or None"""
    low = [(op, f, w) for op, f, w in zip(ops, factors, weights, strict=True) if f is not None]
    gains = [(op, m.gain(precise(op.matrix(W)))) for op, m in zip(ops, methods, strict=True) if m.gain is not None]
    inner_bias = None if gains else b
    if low:
        scales, drops = [f.scale * w for _, f, w in low], [f.dropout for _, f, _ in low]
        own, downs = [op for op, _, _ in low], [f.down for _, f, _ in low]
        tensors = [t for _, f, _ in low for t in (f.A, f.B)]
        y = LowRank.apply(x, W, inner_bias, again, own, scales, drops, downs, dtype, *tensors)
    elif again is not None:
        y = Frozen.apply(x.to(dtype), None, lambda: ops[0].full(again()).to(dtype))
    else:
        y = F.linear(x.to(dtype), ops[0].full(W).to(dtype))
    if not gains:
        return y
    gain = spread(gains, y.shape[-1]).to(dtype)
    return y * gain if b is None else torch.addcmul(b.to(dtype), y, gain)


def piecewise(x: Tensor, W: Tensor, b: Tensor | None, ops: list[Op], moved: list[Tensor]) -> Tensor:
    """A fused host's output, each range of rows from its own input; as many products as the host's own."""
    M, made = ops[0].full(W), []
    for start, size, which in pieces(tuple(op.rows for op in ops), len(M)):
        bias = None if b is None else b.narrow(0, start, size)
        made.append(F.linear(x if which is None else moved[which], M.narrow(0, start, size), bias))
    return torch.cat(made, -1)


def convolved(x: Tensor, W: Tensor, b: Tensor | None, acting, methods) -> Tensor | None:
    """One low-rank change on a convolution, with thin gradients; None where they are dearer, or not to be had."""
    (part, weight), method = acting[0], methods[0]
    op = part.op
    if len(acting) > 1 or not isinstance(op, ConvOp) or not op.plain or op.rows is not None:
        return None
    if method.factors is None or method.gain is not None or x.ndim != len(op.kernel) + 2:
        return None
    if torch.compiler.is_compiling():
        return None
    (f,) = factors_in_full(methods, x)
    if not f.dropout and not thin_pays(op, x, f.A, len(f.B)):
        return None
    with without_autocast(x):
        return LowRankConvolution.apply(x, W, b, op, f.scale * weight, f.dropout, compute_dtype(x, W), f.A, f.B)


def whole(op: Op) -> Op:
    """The same host without a row range."""
    if op.rows is None:
        return op
    whole = type(op).__new__(type(op))
    whole.__dict__.update(op.__dict__, rows=None)
    return whole


def output(method: WeightMethod, op: Op, x: Tensor, y: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
    """A method's output form; through its weight form where it has none."""
    M = op.matrix(W)
    bias = op.bias(b, y.ndim)
    if method.output is None:
        new = op.apply(x, method.weight(M.float()).to(x.dtype if x.is_floating_point() else M.dtype))
        return new if bias is None else new + bias
    if not torch.is_autocast_enabled(y.device.type) and y.dtype in (torch.bfloat16, torch.float16):
        x = x.float() if x.is_floating_point() else x
        y, M, bias = y.float(), M.float(), None if bias is None else bias.float()
    return method.output(x, y, op, M, bias)
