"""From a batch's images to what pretrained weights expect: three channels, their size, their mean and deviation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def prepared(image: Tensor, mean: Tensor, std: Tensor, size: int | None = None) -> Tensor:
    """(batch, channels, height, width): grey images repeated for every channel of the network, which then responds as
    to the same picture in colour; resized; (x - mean) / std.

    image   (batch, 1 or channels, height, width), 0 to 1      mean, std   (channels,)
    """
    if image.shape[1] == 1 < len(mean):
        image = image.expand(-1, len(mean), -1, -1)
    if size is not None and image.shape[2:] != (size, size):
        image = F.interpolate(image, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return (image - mean[:, None, None]) / std[:, None, None]
