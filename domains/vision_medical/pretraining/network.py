"""The embedded network: MONAI's SegResNet for single-channel slices (Myronenko 2018, without the variational branch).

Image   (batch, 1, height, width) float32, mean 0 and standard deviation 1       Logits  (batch, classes, height, width)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = ("background", "organ a", "organ b", "organ c", "organ d", "organ e")
OPTIONS = {
    "spatial_dims": 2,
    "init_filters": 8,
    "in_channels": 1,
    "out_channels": len(CLASSES),
    "blocks_down": [1, 1, 1, 1, 1],
    "blocks_up": [1, 1, 1, 1],
}


def build(seed: int = 0) -> nn.Module:
    """SegResNet with MONAI's own start, drawn from `seed`; the global generator is put back."""
    from monai.networks.nets import SegResNet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SegResNet(**OPTIONS)


def dice_and_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """() mean cross entropy plus 1 - soft Dice, the mean over foreground classes of the whole batch.

    mask   (batch, *spatial) int64
    """
    p = logits.softmax(1)[:, 1:]
    truth = F.one_hot(mask, logits.shape[1]).movedim(-1, 1)[:, 1:].to(p.dtype)
    axes = [0, *range(2, p.ndim)]
    dice = (2 * (p * truth).sum(axes) + 1) / (p.sum(axes) + truth.sum(axes) + 1)
    return F.cross_entropy(logits, mask) + 1 - dice.mean()


def dice(prediction: Tensor, truth: Tensor, classes: int) -> Tensor:
    """(batch, classes - 1) Dice per foreground class; NaN where truth and prediction are both empty.

    prediction, truth   (batch, *spatial) int64
    """
    scores = []
    for k in range(1, classes):
        a, b = (prediction == k).flatten(1), (truth == k).flatten(1)
        total = a.sum(1) + b.sum(1)
        scores.append(torch.where(total > 0, 2 * (a & b).sum(1) / total.clamp(min=1), torch.nan))
    return torch.stack(scores, 1)
