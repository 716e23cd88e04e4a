"""The matrix view of a host parameter: how an (out, in) matrix is read, written and applied there.

    Linear             W (out, in)
    HF Conv1D          W (in, out) transposed
    Embedding          W (num, dim) transposed          `down` is a lookup
    ConvNd             W (out, in/g, *k) flattened to (out, in/g * k)               conv_op.py
    ConvTransposeNd    W (in, out/g, *k) as (out/g, in * k)                         conv_op.py
    experts            W (experts, out, in) as (experts * out, in): A is shared       weight path only
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


def precise(M: Tensor) -> Tensor:
    """At least fp32: what a method's `weight` gets."""
    return M if M.dtype == torch.float64 else M.float()


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

    def spread(self, v: Tensor, out: int, onto: Tensor | None = None) -> Tensor:
        """(out,) of the whole host from the site's own rows; elsewhere `onto`, or 1."""
        if self.rows is None:
            return v
        return self.rows.give(v.new_ones(out) if onto is None else onto, v, 0)

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

    def apply(self, x: Tensor, M: Tensor, b: Tensor | None = None) -> Tensor:
        """M (out, in) as the host's operation, and the whole host's bias."""
        y = self.down(x, M)
        return y if b is None else y + self.bias(b, y.ndim).to(y.dtype)

    def scale(self, y: Tensor, v: Tensor) -> Tensor:
        """v (out,) along the channel axis."""
        return y * v if self.axis == -1 else y * v.view(-1, *[1] * (y.ndim - 2))

    def gradients(self, x: Tensor, M: Tensor, g: Tensor, need_x: bool) -> tuple[Tensor | None, Tensor]:
        """(dx, dM) of `apply(x, M)` for the output gradient g; dx is None where it is not needed."""
        return _pulled_back(self.apply, x, M, g, need_x)

    def down_gradients(self, x: Tensor, A: Tensor, g: Tensor, need_x: bool) -> tuple[Tensor | None, Tensor]:
        """(dx, dA) of `down(x, A)`."""
        return _pulled_back(self.down, x, A, g, need_x)


def _pulled_back(product: Callable, x: Tensor, M: Tensor, g: Tensor, need_x: bool) -> tuple[Tensor | None, Tensor]:
    """(dx, dM) of `product(x, M)` by autograd."""
    with torch.enable_grad():
        x, M = x.detach().requires_grad_(need_x), M.detach().requires_grad_(True)
        found = torch.autograd.grad(product(x, M), ([x] if need_x else []) + [M], g)
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


class TensorOp(Op):
    """Any parameter: attention's in_proj, recurrent weights, experts, biases, norms. Weight path only.

    Three axes are a stack of matrices, unless the host says by its `kernel_size` that they are a convolution's."""

    def read(self, host):
        self.stacked = not hasattr(host, "kernel_size")

    def full(self, W):
        if W.ndim == 3 and self.stacked:
            return W.flatten(0, 1)
        return W.reshape(W.shape[0], -1) if W.ndim else W.reshape(1, 1)

    def unfull(self, M, W):
        return M.reshape(W.shape)
