"""Heads on frozen or adapted features."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from core.contracts import Backbone


class ImageHead(nn.Module):
    """hidden (batch, channels), or (batch, channels, *spatial) averaged over space -> scores (batch, classes).

    Features are layer-normed first: one learning rate then fits every backbone."""

    def __init__(self, width: int, classes: int, hidden: int = 0, dropout: float = 0.0):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        first = [nn.Linear(width, hidden), nn.GELU()] if hidden else []
        self.layers = nn.Sequential(*first, nn.Linear(hidden or width, classes))

    def forward(self, hidden: Tensor) -> Tensor:
        pooled = hidden.float().flatten(2).mean(2) if hidden.ndim > 2 else hidden.float()
        return self.layers(self.dropout(F.layer_norm(pooled, pooled.shape[-1:])))


class PixelHead(nn.Module):
    """hidden (batch, channels, *spatial) -> scores (batch, classes, *spatial), by a convolution of one voxel."""

    def __init__(self, width: int, classes: int, spatial: int):
        super().__init__()
        self.conv = (nn.Conv2d if spatial == 2 else nn.Conv3d)(width, classes, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.conv(hidden.float())


def started(head: PixelHead, backbone: Backbone, classes: list[str]) -> bool:
    """Gives the head the last layer that the base was trained with, where it answered for the same classes."""
    start = getattr(backbone, "start", None)
    if start is None or list(getattr(backbone, "classes", None) or []) != list(classes):
        return False
    head.conv.load_state_dict(start)
    return True
