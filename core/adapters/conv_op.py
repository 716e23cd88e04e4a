"""The matrix view of convolutions, and their gradients through torch's own backward."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.adapters.op import Op

CONV = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}
CONV_TRANSPOSE = {
    nn.ConvTranspose1d: F.conv_transpose1d,
    nn.ConvTranspose2d: F.conv_transpose2d,
    nn.ConvTranspose3d: F.conv_transpose3d,
}


class ConvOp(Op):
    axis = 1

    def read(self, host):
        self.kind = next(k.__name__ for k in CONV if isinstance(host, k))
        self.conv = next(f for k, f in CONV.items() if isinstance(host, k))
        self.turned_conv = list(CONV_TRANSPOSE.values())[list(CONV.values()).index(self.conv)]
        self.kernel, self.groups = tuple(host.kernel_size), host.groups
        self.geometry = {"stride": host.stride, "padding": host.padding, "dilation": host.dilation}
        self.pad_mode, self.pad = host.padding_mode, tuple(host._reversed_padding_repeated_twice)
        reach = [d * (k - 1) for d, k in zip(host.dilation, host.kernel_size, strict=True)]
        if host.padding == "valid" or (host.padding == "same" and not any(r % 2 for r in reach)):
            self.geometry["padding"] = tuple(r // 2 if host.padding == "same" else 0 for r in reach)
        # torch's own backward takes this geometry; else padding is a step of its own
        self.plain = self.pad_mode == "zeros" and not isinstance(self.geometry["padding"], str)
        unit = self.plain and self.groups == 1 and set(host.stride) == {1} and max(host.kernel_size) > 1
        margin = [r - p for r, p in zip(reach, self.geometry["padding"], strict=True)] if unit else [-1]
        # The padding of the transposed convolution that computes the same, see `turns`; None where there is none.
        self.margin = tuple(margin) if min(margin) >= 0 else None

    def full(self, W):
        return W.flatten(1)

    def unfull(self, M, W):
        return M.reshape(W.shape)

    def _run(self, x, weight, b=None):
        if self.pad_mode == "zeros":
            return self.conv(x, weight, b, groups=self.groups, **self.geometry)
        x = F.pad(x, self.pad, mode=self.pad_mode)
        return self.conv(x, weight, b, groups=self.groups, **{**self.geometry, "padding": 0})

    def turns(self, x: Tensor, A: Tensor) -> bool:
        """Whether `down` runs as the transposed convolution with the kernel turned round, which is the same sum: where
        A has fewer rows than x has channels, torch's unfolding on the CPU then moves fewer numbers."""
        return self.margin is not None and x.device.type == "cpu" and len(A) < x.shape[1]

    def _turned(self, A: Tensor) -> Tensor:
        """The weight of a convolution as that of a transposed one."""
        weight = A.reshape(A.shape[0], -1, *self.kernel)
        return weight.flip(list(range(2, weight.ndim))).transpose(0, 1)

    def down(self, x, A):
        if self.turns(x, A):
            h = self.turned_conv(x, self._turned(A), padding=self.margin, dilation=self.geometry["dilation"])
            return h.clone()  # torch gives it a storage as large as x, which would be kept
        weight = A.reshape(A.shape[0], -1, *self.kernel)
        return self._run(x, weight.repeat(self.groups, *[1] * (weight.ndim - 1)))

    def down_gradients(self, x, A, g, need_x, need_A=True):
        if not self.plain:
            return super().down_gradients(x, A, g, need_x)
        if self.turns(x, A):
            turned = {**self.geometry, "padding": self.margin}
            needed = need_x, need_A
            dx, dweight = _convolution_gradients(x, self._turned(A).contiguous(), g, needed, turned, True, 1)
            return dx, None if dweight is None else dweight.transpose(0, 1).flip(list(range(2, dweight.ndim))).reshape(
                A.shape
            )
        weight = A.reshape(A.shape[0], -1, *self.kernel)
        weight = weight.repeat(self.groups, *[1] * (weight.ndim - 1))
        dx, dweight = _convolution_gradients(x, weight, g, (need_x, need_A), self.geometry, False, self.groups)
        return dx, None if dweight is None else dweight.reshape(self.groups, *A.shape).sum(0)

    def up(self, h, B):
        return self.conv(h, B.reshape(*B.shape, *[1] * len(self.kernel)), groups=self.groups)

    def apply(self, x, M, b=None):
        return self._run(x, M.reshape(M.shape[0], -1, *self.kernel), None if b is None else b.to(x.dtype))

    def gradients(self, x, M, g, need_x):
        if not self.plain:
            return super().gradients(x, M, g, need_x)
        weight = M.reshape(M.shape[0], -1, *self.kernel)
        dx, dweight = _convolution_gradients(x, weight, g, (need_x, True), self.geometry, False, self.groups)
        return dx, dweight.reshape(M.shape)

    def input_gradient(self, x: Tensor, M: Tensor, g: Tensor) -> Tensor:
        """dx of `apply(x, M)` alone, of a plain geometry. The values of x are not read, its layout is."""
        weight = M.reshape(M.shape[0], -1, *self.kernel)
        return _convolution_gradients(x, weight, g, (True, False), self.geometry, False, self.groups)[0]


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
        dx, dweight = _convolution_gradients(x, weight, g, (need_x, True), self.geometry, True, self.groups)
        return dx, dweight.transpose(0, 1).reshape(M.shape)

    def down_gradients(self, x, A, g, need_x):  # `down` is the host's own operation with fewer rows
        return self.gradients(x, A, g, need_x)

    def scale(self, y, v):
        return y * v.repeat(self.groups).view(-1, *[1] * (y.ndim - 2))


CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def layout_of(x: Tensor) -> torch.memory_format | None:
    """The channels-last format of x, which chooses torch's kernel; None where x is plainly contiguous."""
    layout = CHANNELS_LAST.get(x.ndim)
    return layout if layout and x.is_contiguous(memory_format=layout) and not x.is_contiguous() else None


def stand_in(g: Tensor, shape: torch.Size, layout: torch.memory_format | None, dtype=None) -> Tensor:
    """For an input whose values are not read, where the weight gets no gradient: one number stands for them all."""
    if layout is None:
        return torch.empty(1, dtype=dtype or g.dtype, device=g.device).expand(shape)
    return torch.empty(shape, dtype=dtype or g.dtype, device=g.device, memory_format=layout)


def _convolution_gradients(x, weight, g, needed: tuple[bool, bool], geometry, transposed, groups):
    """(dx, dweight), each None where it is not needed"""
    return torch.ops.aten.convolution_backward(
        g, x, weight, None, geometry["stride"], geometry["padding"], geometry["dilation"], transposed,
        geometry.get("output_padding", [0] * (weight.ndim - 2)), groups, [*needed, False],
    )[:2]  # fmt: skip
