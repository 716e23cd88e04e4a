"""From a file's numbers to what a network gets: channels, grey values, size. The same for training and prediction.

Raw      image (channels, *spatial) as stored, mask (*spatial) as stored or None
Ready    image (channels, *spatial) float32; mask (*spatial) int64, class indices, 0 the background
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from core.errors import ConfigError, Problem


@dataclass(frozen=True)
class Prepare:
    """channels     1 or 3; null: as the file has them (colour to grey is the mean, grey to colour is repeated)
    size         pixels [height, width] that pictures are resized to, null: as they are
    intensity    unit: 0 to 1 of the file's number type; zscore: mean 0, deviation 1 per channel; foreground: the same
                 over what is not 0 (magnetic resonance); asis: untouched
    window       [low, high]: grey values clipped to it and brought to 0..1 before that (CT: [-160, 240])
    spacing      mm that volumes are resampled to, null: as they are      orientation   such as RAS, null: as stored
    """

    channels: int | None = None
    size: list[int] | None = None
    intensity: Literal["unit", "zscore", "foreground", "asis"] = "unit"
    window: list[float] | None = None
    spacing: list[float] | None = None
    orientation: str | None = None

    def __post_init__(self) -> None:
        for name in ("size", "window", "spacing"):  # tuples: a reader that holds this is a key of the cache
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(value))
        problems = []
        if self.channels not in (None, 1, 3):
            problems.append(Problem("data.prepare.channels", str(self.channels), "1, 3 or null"))
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 8):
            problems.append(Problem("data.prepare.size", str(list(self.size)), "[height, width], at least 8 pixels"))
        if self.window is not None and (len(self.window) != 2 or self.window[0] >= self.window[1]):
            problems.append(Problem("data.prepare.window", str(list(self.window)), "[low, high], low below high"))
        if self.spacing is not None and min(self.spacing, default=0) <= 0:
            problems.append(Problem("data.prepare.spacing", str(list(self.spacing)), "mm, above 0"))
        if self.orientation is not None and sorted(_axis(c) for c in self.orientation) != [0, 1, 2]:
            allowed = "three letters, one of each pair L R, P A, I S"
            problems.append(Problem("data.prepare.orientation", self.orientation, allowed))
        if problems:
            raise ConfigError(problems=problems)

    def image(self, raw: np.ndarray) -> np.ndarray:
        """(channels, *spatial) float32 from the stored image."""
        full = float(np.iinfo(raw.dtype).max) if raw.dtype.kind == "u" else 1.0
        out = raw.astype(np.float32)
        if self.channels is not None and len(out) != self.channels:
            out = out.mean(0, keepdims=True)
            out = np.repeat(out, self.channels, 0)
        if self.size is not None and out.ndim == 3 and out.shape[1:] != self.size:
            out = resized(out, self.size)
        if self.window is not None:
            low, high = self.window
            out = (np.clip(out, low, high) - low) / (high - low)
        elif self.intensity == "unit":
            out = out / full
        if self.intensity in ("zscore", "foreground"):
            out = standardised(out, foreground=self.intensity == "foreground")
        return np.ascontiguousarray(out, np.float32)

    def mask(self, raw: np.ndarray) -> np.ndarray:
        """(*spatial) int64 from class indices on the stored grid."""
        if self.size is not None and raw.ndim == 2 and raw.shape != self.size:
            raw = resized(raw[None].astype(np.float32), self.size, nearest=True)[0]
        return np.ascontiguousarray(raw, np.int64)

    def pixel(self, spacing: Sequence[float], shape: Sequence[int]) -> tuple[float, ...]:
        """Spacing after resizing, of a picture stored with `spacing` and `shape`."""
        if self.size is None or len(shape) != 2:
            return tuple(map(float, spacing))
        return tuple(float(s * n / m) for s, n, m in zip(spacing, shape, self.size, strict=True))


def _axis(letter: str) -> int:
    return next((axis for axis, pair in enumerate(("LR", "PA", "IS")) if letter in pair), -1)


def resized(array: np.ndarray, size: Sequence[int], *, nearest: bool = False) -> np.ndarray:
    """(channels, *size): linear with anti-aliasing, or nearest for labels. Three dimensions: linear or nearest."""
    import torch
    import torch.nn.functional as F

    tensor = torch.from_numpy(np.ascontiguousarray(array))[None]
    if nearest:
        return F.interpolate(tensor, tuple(size), mode="nearest-exact")[0].numpy()
    mode: dict[str, Any] = {"mode": "bilinear", "antialias": True} if array.ndim == 3 else {"mode": "trilinear"}
    return F.interpolate(tensor, tuple(size), align_corners=False, **mode)[0].numpy()


def standardised(image: np.ndarray, *, foreground: bool) -> np.ndarray:
    """Per channel (x - mean) / deviation, over voxels that are not 0 where `foreground` (the others stay 0)."""
    out = np.empty_like(image)
    for channel, values in enumerate(image):
        at = values != 0 if foreground else np.ones_like(values, bool)
        if not at.any():
            at = np.ones_like(values, bool)
        mean, deviation = values[at].mean(), values[at].std()
        out[channel] = np.where(at, (values - mean) / max(float(deviation), 1e-6), 0)
    return out
