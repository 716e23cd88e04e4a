"""The matrix view of a host parameter: how an (out, in) matrix is read, written and applied there.

    Linear             W (out, in)
    HF Conv1D          W (in, out) transposed           recognised by shape of the class, not by import
    Embedding          W (num, dim) transposed          `down` is a lookup
    ConvNd             W (out, in/g, *k) flattened to (out, in/g * k)
    ConvTransposeNd    W (in, out/g, *k) as (out/g, in * k)
    any other tensor   (first axis, the rest)           weight path only

Row ranges select part of the output rows (fused query, key and value); `Rows` may be a contiguous range or, for
interleaved layouts, an index.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONV = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}
CONV_TRANSPOSE = {
    nn.ConvTranspose1d: F.conv_transpose1d,
    nn.ConvTranspose2d: F.conv_transpose2d,
    nn.ConvTranspose3d: F.conv_transpose3d,
}


@dataclass(frozen=True)
class Rows:
    """Which output rows of a host belong to a site. Interleaved rows are `groups` blocks of `size` rows, one block
    every `stride` rows from `start`; a contiguous range has groups = 1."""

    start: int
    size: int
    groups: int = 1
    stride: int = 0

    def __len__(self) -> int:
        return self.size * self.groups

    def index(self, device=None) -> Tensor:
        """(rows,) int64"""
        block = torch.arange(self.size, device=device)
        offset = self.start + torch.arange(self.groups, device=device) * self.stride
        return (offset[:, None] + block).reshape(-1)

    def take(self, tensor: Tensor, axis: int) -> Tensor:
        if self.groups == 1:
            return tensor.narrow(axis, self.start, self.size)
        return tensor.index_select(axis, self.index(tensor.device))

    def give(self, tensor: Tensor, part: Tensor, axis: int) -> Tensor:
        """A copy of `tensor` whose rows are replaced by `part`."""
        return tensor.index_copy(axis, self.index(tensor.device), part.to(tensor.dtype))


class Op:
    """One host tensor's matrix view. `axis` is the channel axis of the host's output."""

    axis = -1
    kind = "tensor"
    linear = False  # y = x @ W.T with x (..., in): has thin gradients

    def __init__(self, host: nn.Module, rows: Rows | None = None):
        self.rows = rows
        self.read(host)

    def read(self, host: nn.Module) -> None:
        """Copy the host's geometry (stride, groups, ...): an op never holds a module."""

    def full(self, W: Tensor) -> Tensor:
        return W

    def unfull(self, M: Tensor, W: Tensor) -> Tensor:
        return M

    def matrix(self, W: Tensor) -> Tensor:
        """Host tensor -> (out, in), rows of this site only."""
        M = self.full(W)
        return M if self.rows is None else self.rows.take(M, 0)

    def put(self, W: Tensor, M: Tensor) -> Tensor:
        """The inverse; other rows untouched."""
        if self.rows is not None:
            M = self.rows.give(self.full(W), M, 0)
        return self.unfull(M, W)

    def take(self, y: Tensor) -> Tensor:
        """The site's channels of the host's output."""
        return y if self.rows is None else self.rows.take(y, self.axis)

    def give(self, y: Tensor, part: Tensor) -> Tensor:
        return part if self.rows is None else self.rows.give(y, part, self.axis)

    def spread(self, v: Tensor, out: int) -> Tensor:
        """(out,) of the whole host from the site's own rows, 1 elsewhere."""
        return v if self.rows is None else self.rows.give(v.new_ones(out), v, 0)

    def bias(self, b: Tensor | None, y_ndim: int) -> Tensor | None:
        """The bias of the site's rows, shaped to broadcast along `axis`."""
        if b is None:
            return None
        b = b if self.rows is None else self.rows.take(b, 0)
        return b if self.axis == -1 else b.view(-1, *[1] * (y_ndim - 2))

    def down(self, x: Tensor, A: Tensor) -> Tensor:
        """A (r, in) as the host's own operation, no bias."""
        return F.linear(x, A)

    def up(self, h: Tensor, B: Tensor) -> Tensor:
        """B (out, r), pointwise."""
        return F.linear(h, B)

    def apply(self, x: Tensor, M: Tensor) -> Tensor:
        """M (out, in) as the host's operation, no bias."""
        return self.down(x, M)

    def scale(self, y: Tensor, v: Tensor) -> Tensor:
        """v (out,) along the channel axis."""
        return y * v if self.axis == -1 else y * v.view(-1, *[1] * (y.ndim - 2))

    def gradients(self, x: Tensor, M: Tensor, g: Tensor, need_x: bool) -> tuple[Tensor | None, Tensor]:
        """(dx, dM) of `apply(x, M)` for the output gradient g; dx is None where it is not needed."""
        with torch.enable_grad():
            x = x.detach().requires_grad_(need_x)
            M = M.detach().requires_grad_(True)
            found = torch.autograd.grad(self.apply(x, M), ([x] if need_x else []) + [M], g)
        return (found[0] if need_x else None), found[-1]


class _Product(Op):
    """y = x @ M.T over the last axis."""

    linear = True

    def gradients(self, x, M, g, need_x):
        rows = g.reshape(-1, g.shape[-1])
        return (g @ M if need_x else None), rows.T @ x.reshape(-1, x.shape[-1])


class LinearOp(_Product):
    kind = "Linear"


class TransposedLinearOp(_Product):
    """GPT-2's Conv1D: y = x @ W + b with W (in, out)."""

    kind = "Conv1D"

    def full(self, W):
        return W.T

    def unfull(self, M, W):
        return M.T


class EmbeddingOp(Op):
    kind = "Embedding"

    def read(self, host):
        self.padding_idx = host.padding_idx

    def full(self, W):
        return W.T

    def unfull(self, M, W):
        return M.T

    def down(self, x, A):
        return F.embedding(x, A.T, self.padding_idx)


class ConvOp(Op):
    axis = 1

    def read(self, host):
        self.kind = next(k.__name__ for k in CONV if isinstance(host, k))
        self.conv = next(f for k, f in CONV.items() if isinstance(host, k))
        self.kernel, self.groups = tuple(host.kernel_size), host.groups
        self.geometry = {"stride": host.stride, "padding": host.padding, "dilation": host.dilation}
        self.pad_mode, self.pad = host.padding_mode, tuple(host._reversed_padding_repeated_twice)

    def full(self, W):
        return W.flatten(1)

    def unfull(self, M, W):
        return M.reshape(W.shape)

    def _run(self, x, weight):
        if self.pad_mode == "zeros":
            return self.conv(x, weight, groups=self.groups, **self.geometry)
        x = F.pad(x, self.pad, mode=self.pad_mode)
        return self.conv(x, weight, groups=self.groups, **{**self.geometry, "padding": 0})

    def down(self, x, A):
        weight = A.reshape(A.shape[0], -1, *self.kernel)
        return self._run(x, weight.repeat(self.groups, *[1] * (weight.ndim - 1)))

    def up(self, h, B):
        return self.conv(h, B.reshape(*B.shape, *[1] * len(self.kernel)), groups=self.groups)

    def apply(self, x, M):
        return self._run(x, M.reshape(M.shape[0], -1, *self.kernel))

    def gradients(self, x, M, g, need_x):
        if self.pad_mode != "zeros" or isinstance(self.geometry["padding"], str):
            return super().gradients(x, M, g, need_x)
        weight = M.reshape(M.shape[0], -1, *self.kernel)
        return _convolution_gradients(x, weight, g, need_x, self.geometry, False, self.groups, M)


class ConvTransposeOp(Op):
    """Matrix rows are out/g: with groups the same B serves every group."""

    axis = 1

    def read(self, host):
        self.kind = next(k.__name__ for k in CONV_TRANSPOSE if isinstance(host, k))
        self.conv = next(f for k, f in CONV_TRANSPOSE.items() if isinstance(host, k))
        self.pointwise = [F.conv1d, F.conv2d, F.conv3d][len(host.kernel_size) - 1]
        self.kernel, self.groups = tuple(host.kernel_size), host.groups
        self.geometry = {
            "stride": host.stride,
            "padding": host.padding,
            "dilation": host.dilation,
            "output_padding": host.output_padding,
        }

    def full(self, W):
        return W.transpose(0, 1).flatten(1)

    def unfull(self, M, W):
        return M.reshape(W.shape[1], W.shape[0], *W.shape[2:]).transpose(0, 1)

    def down(self, x, A):
        weight = A.reshape(A.shape[0], -1, *self.kernel).transpose(0, 1)
        return self.conv(x, weight, groups=self.groups, **self.geometry)

    def up(self, h, B):
        weight = B.repeat(self.groups, 1).reshape(-1, B.shape[1], *[1] * len(self.kernel))
        return self.pointwise(h, weight, groups=self.groups)

    def gradients(self, x, M, g, need_x):
        weight = M.reshape(M.shape[0], -1, *self.kernel).transpose(0, 1)
        dx, dweight = _convolution_gradients(x, weight, g, need_x, self.geometry, True, self.groups, weight)
        return dx, dweight.transpose(0, 1).reshape(M.shape)

    def scale(self, y, v):
        return y * v.repeat(self.groups).view(-1, *[1] * (y.ndim - 2))


class TensorOp(Op):
    """Any parameter: attention's in_proj, recurrent weights, biases, norms. Weight path only."""

    def full(self, W):
        return W.reshape(W.shape[0], -1) if W.ndim else W.reshape(1, 1)

    def unfull(self, M, W):
        return M.reshape(W.shape)


def _convolution_gradients(x, weight, g, need_x, geometry, transposed, groups, M):
    dx, dweight, _ = torch.ops.aten.convolution_backward(
        g, x, weight, None, geometry["stride"], geometry["padding"], geometry["dilation"], transposed,
        geometry.get("output_padding", [0] * (weight.ndim - 2)), groups, [need_x, True, False],
    )  # fmt: skip
    return dx, dweight.reshape(M.shape)


STOCK: dict[type, type[Op]] = {
    nn.Linear: LinearOp,
    nn.Embedding: EmbeddingOp,
    **dict.fromkeys(CONV, ConvOp),
    **dict.fromkeys(CONV_TRANSPOSE, ConvTransposeOp),
}
_registered: list[tuple[Callable[[nn.Module], bool], type[Op]]] = []


def register_host(predicate: Callable[[nn.Module], bool], op: type[Op]) -> None:
    """Teach a host class of a library: where `predicate(module)` holds, its `weight` is read and applied by `op`."""
    _registered.append((predicate, op))


def is_transposed_linear(host: nn.Module) -> bool:
    """HF Conv1D, by the shape of the class: y = x @ weight + bias with nf output features."""
    return type(host).__name__ == "Conv1D" and hasattr(host, "nf")


def stock_forward(host: nn.Module) -> bool:
    """True where the class runs its known base's own forward, so that `op.apply` is what it computes."""
    original = getattr(type(host), "_original", type(host))  # seen through our own class switch
    if is_transposed_linear(host) or any(predicate(host) for predicate, _ in _registered):
        return True
    known = next((k for k in STOCK if isinstance(host, k)), None)
    if known is None or original.forward is not known.forward or "forward" in host.__dict__:
        return False
    # These change what a lookup returns, or the table itself.
    return not (known is nn.Embedding and (host.max_norm is not None or host.sparse or host.scale_grad_by_freq))


def op_for(host: nn.Module, parameter: str, rows: Rows | None = None) -> Op:
    """The matrix view of `host.<parameter>`."""
    if parameter == "weight":
        for predicate, op in _registered:
            if predicate(host):
                return op(host, rows)
        if is_transposed_linear(host):
            return TransposedLinearOp(host, rows)
        for known, op in STOCK.items():
            if isinstance(host, known):
                return op(host, rows)
    return TensorOp(host, rows)
