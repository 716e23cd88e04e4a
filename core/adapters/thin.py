"""Frozen convolutions and frozen eval-mode batch norms that keep nothing but their own weight for the backward pass.

torch keeps the whole input of both, though the gradient of the input needs neither: a frozen convolution's is the
transposed convolution of the output's gradient, a frozen batch norm's is the gradient times a constant per channel. So
an adapted convolutional network keeps less for the backward pass than full fine-tuning, not as much. Forward and input
gradient are torch's own, to the bit. The bias may be trained (its gradient is a sum of the output's); a trained or
computed weight is left to torch, or to the call path.

Left as torch has it: under torch.compile (the compiler decides what is saved), where no gradient is asked for, and
every class whose forward is not torch's own; timm's BatchNormAct2d alone is recognised by the shape of its class.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.modules.batchnorm import _BatchNorm

from core.adapters.conv_op import CONV, CONV_TRANSPOSE, layout_of, stand_in
from core.adapters.seam import ADAPTERS, original, stored, switch, unswitch

PLAIN = (Tensor, nn.Parameter)  # no DTensor, no quantised or batched subclass
OPTIONAL = (*PLAIN, type(None))


class FrozenConvolution(Function):
    """torch.convolution that saves W alone. W and b arrive in their own dtype and are cast to x's, as autocast does."""

    @staticmethod
    def forward(x, W, b, transposed, geometry):
        b = None if b is None else b.to(x.dtype)
        return _convolution(x, W.to(x.dtype), b, transposed, geometry)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, W, b, ctx.transposed, ctx.geometry = inputs
        ctx.save_for_backward(W)
        ctx.shape, ctx.layout, ctx.bias = x.shape, layout_of(x), None if b is None else (b.shape, b.dtype)

    @staticmethod
    def backward(ctx, g):
        (W,) = ctx.saved_tensors
        needs_x, needs_b = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
        x = stand_in(g, ctx.shape, ctx.layout)
        stride, padding, dilation, output_padding, groups = ctx.geometry
        dx, _, db = torch.ops.aten.convolution_backward(
            g,
            x,
            W.to(g.dtype),
            list(ctx.bias[0]) if needs_b else None,
            stride,
            padding,
            dilation,
            ctx.transposed,
            output_padding,
            groups,
            [needs_x, False, needs_b],
        )
        return dx, None, db.to(ctx.bias[1]) if needs_b else None, None, None


class FrozenBatchNorm(Function):
    """Eval-mode batch norm that saves one number per channel beside its weight."""

    @staticmethod
    def forward(x, W, b, mean, var, eps):
        return F.batch_norm(x, mean, var, W, b, False, 0.0, eps)

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, W, b, _, var, eps = inputs
        # 1 / std is rounded once, and comes before W: the order of torch's kernels.
        exact = var if var.device.type == "mps" else var.double()
        spread = (1 / (exact + eps).sqrt()).to(torch.promote_types(var.dtype, torch.float32))
        ctx.save_for_backward(spread, W)
        ctx.bias = None if b is None else b.dtype

    @staticmethod
    def backward(ctx, g):
        spread, W = ctx.saved_tensors
        dx = db = None
        if ctx.needs_input_grad[0]:
            channels = (-1, *[1] * (g.ndim - 2))
            dx = g * spread.view(channels)
            dx = (dx if W is None else dx.mul_(W.detach().view(channels))).to(g.dtype)
        if ctx.needs_input_grad[2]:
            db = g.sum([axis for axis in range(g.ndim) if axis != 1], dtype=ctx.bias)
        return dx, None, db, None, None, None


def _convolution(x, W, b, transposed, geometry):
    stride, padding, dilation, output_padding, groups = geometry
    return torch.convolution(x, W, b, stride, padding, dilation, transposed, output_padding, groups)


def thin_convolution(host, inner, x, *args, **kwargs):
    """Forward wrapper of ConvNd and ConvTransposeNd."""
    ready = _frozen(host, x)
    if ready is None or args or kwargs or x.ndim != len(host.kernel_size) + 2:
        return inner(x, *args, **kwargs)
    W, bias = ready
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype(kind))
    elif W.dtype != x.dtype:
        return inner(x)  # torch's own error message
    pad, none = host.padding, (0,) * len(host.kernel_size)
    if host.padding_mode != "zeros":
        x, pad = F.pad(x, host._reversed_padding_repeated_twice, mode=host.padding_mode), none
    elif pad == "same":
        x, pad = _same(x, host.kernel_size, host.dilation)
    elif pad == "valid":
        pad = none
    geometry = (host.stride, pad, host.dilation, host.output_padding, host.groups)
    return FrozenConvolution.apply(x, W, bias, host.transposed, geometry)


def thin_batch_norm(host, inner, x, *args, **kwargs):
    """Forward wrapper of BatchNormNd in eval mode, and of timm's BatchNormAct2d: dropout and activation follow."""
    statistics = host.running_mean, host.running_var
    ready = None if host.training or any(s is None for s in statistics) else _frozen(host, x)
    if ready is None or args or kwargs or x.ndim < 2:
        return inner(x, *args, **kwargs)
    y = FrozenBatchNorm.apply(x, *ready, *statistics, host.eps)
    return host.act(host.drop(y)) if _is_norm_act(original(host)) else y


def _frozen(host: nn.Module, x) -> tuple[Tensor | None, Tensor | None] | None:
    """(weight, bias) where a gradient is asked for that needs no input: the weight is absent, or frozen, stored and
    plain. The bias may be trained, and computed. None where torch must serve."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or type(x) not in PLAIN:
        return None
    if torch._C._functorch.peek_interpreter_stack() is not None:  # inside vmap, grad, jacrev
        return None
    if "weight" in host.__dict__.get(ADAPTERS, {}):
        return None
    W = stored(host, "weight")
    if type(W) not in OPTIONAL or (W is not None and W.requires_grad):
        return None
    bias = host.bias
    if type(bias) not in OPTIONAL:
        return None
    return (W, bias) if x.requires_grad or (bias is not None and bias.requires_grad) else None


def _same(x: Tensor, kernel: tuple, dilation: tuple) -> tuple[Tensor, list[int]]:
    """padding="same" as torch resolves it: symmetric where it can be, else one more on the right."""
    total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    if any(t % 2 for t in total):
        x = F.pad(x, [side for t in reversed(total) for side in (0, t % 2)])
    return x, [t // 2 for t in total]


def _is_norm_act(cls: type) -> bool:
    """timm's BatchNormAct2d: torch's batch norm, then `drop` and `act`."""
    own = next(k for k in cls.__mro__ if "forward" in k.__dict__)
    return own.__name__ == "BatchNormAct2d" and issubclass(own, nn.BatchNorm2d)


def _wrapper(host: nn.Module) -> Callable | None:
    """The thin forward of this host; None where its class computes anything else than torch's own."""
    cls = original(host)
    if "forward" in host.__dict__:  # replaced on the instance
        return None
    for known in (*CONV, *CONV_TRANSPOSE):
        if issubclass(cls, known):
            own = [getattr(cls, name, None) is getattr(known, name, None) for name in ("forward", "_conv_forward")]
            return thin_convolution if all(own) else None
    if issubclass(cls, _BatchNorm) and (cls.forward is _BatchNorm.forward or _is_norm_act(cls)):
        return thin_batch_norm
    return None


def thin(net: nn.Module) -> list[str]:
    """Make every host it knows keep less for the backward pass; the paths of all that are thin now. Idempotent."""
    paths = []
    for path, module in net.named_modules():
        wrapper = None if path.startswith("_peft") else _wrapper(module)
        if wrapper is not None:
            switch(module, forward=wrapper)
            paths.append(path)
    return paths


def unthin(net: nn.Module) -> None:
    """The inverse: classes are what they were."""
    for module in net.modules():
        for wrapper in (thin_convolution, thin_batch_norm):
            if wrapper in getattr(type(module), "_switch", (None, (), ()))[2]:
                unswitch(module, forward=wrapper)
