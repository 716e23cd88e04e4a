"""Conv-Adapter.  h' = h + a * (U f(D * x))        D a grouped convolution beside the host's, U 1 x 1, a per channel
Chen et al. 2022, arXiv 2208.07463
form conv      x the convolution's input; D has its kernel, stride, padding and dilation (the paper's best form)
form residual  x = h, the module's output, D with `kernel` and stride 1: after a convolution or a block
Parameters  in k + width dim + dim per site, k the kernel's taps, width the largest divisor of in that is at most
            in / reduction (form residual: in = dim).   Start  U = 0 and a = 1, so h' = h to the bit.
Differs     the paper's width is in / reduction, which must divide.
Hosts       form conv: convolutions and transposed ones, 1, 2, 3 axes; form residual: any features with channels on
            axis 1.   Not mergeable.
Shapes      h (N, dim, *)   x (N, in, *)   D (width, in/width, *kernel)   U (dim, width)   a (dim)
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from core.adapters.base import ActivationMethod
from core.adapters.conv_op import CONV, CONV_TRANSPOSE

PLAIN = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


class Geometry(NamedTuple):
    """How a convolution moves over its input."""

    kind: type[nn.Module]
    kernel: tuple[int, ...]
    more: dict[str, Any]

    def make(self, channels: int, width: int) -> nn.Module:
        return self.kind(channels, width, self.kernel, groups=width, bias=False, **self.more)


class ConvAdapter(ActivationMethod):
    targets = ("conv",)
    size = "reduction"
    divides = True
    reads_input = True

    def __init__(
        self,
        dim: int,
        input_dim: int,
        geometry: Geometry,
        *,
        axis: int = 1,
        form: Literal["conv", "residual"] = "conv",
        reduction: float = 4.0,
        kernel: int = 3,
        activation: Literal["gelu", "relu", "silu"] = "relu",
    ):
        super().__init__(dim, axis=axis)
        channels = input_dim if form == "conv" else dim
        width = max(w for w in range(1, channels + 1) if channels % w == 0 and w <= max(1, channels / reduction))
        self.down = geometry.make(channels, width)
        self.up = nn.Parameter(torch.zeros(dim, width))
        self.scale = nn.Parameter(torch.ones(dim))
        self.form, self.activation = form, activation

    def forward(self, h, x):
        z = getattr(F, self.activation)(self.down(x if self.form == "conv" else h))
        z = torch.einsum("dw,nw...->nd...", self.scale[:, None] * self.up, z)
        return h + z

    @classmethod
    def options_for(cls, host, x, h, options):
        return {**options, "geometry": geometry(host, h, options)}

    @classmethod
    def refuses(cls, host, x, h, options):
        if not 3 <= len(h) <= 5 or options["axis"] != 1:
            return "features with channels on axis 1 and 1 to 3 axes of positions: use houlsby or parallel for tokens"
        if options["reduction"] < 1:
            return f"reduction {options['reduction']}: 1 or more"
        if options["form"] == "residual":
            return "" if options["kernel"] % 2 else f"kernel {options['kernel']}: odd, so that shapes stay"
        if not isinstance(host, (*CONV, *CONV_TRANSPOSE)):
            return "form conv stands beside a convolution: use form=residual, or role conv"
        made = geometry(host, h, options).make(1, 1).to("meta")
        if made(torch.empty(x[0], 1, *x[2:], device="meta")).shape[2:] != h[2:]:
            return "this convolution pads in a forward of its own: use form=residual"
        return ""


def geometry(host: nn.Module, h: torch.Size, options: dict) -> Geometry:
    places = len(h) - 2
    if options["form"] == "residual":
        kernel = options["kernel"]
        return Geometry(PLAIN[places], (kernel,) * places, {"padding": kernel // 2})
    more = {name: getattr(host, name) for name in ("stride", "padding", "dilation", "padding_mode")}
    if isinstance(host, tuple(CONV_TRANSPOSE)):
        return Geometry(TRANSPOSED[places], host.kernel_size, {**more, "output_padding": host.output_padding})
    return Geometry(PLAIN[places], host.kernel_size, more)
