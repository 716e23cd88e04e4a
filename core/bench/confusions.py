"""The table of confusions as a picture: rows are truths, columns what was predicted, shades shares of a row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.bench.plots import BLUE, INK, new_figure, save


def confusion(rows: Sequence[dict[str, Any]], classes: Sequence[str], directory: Path) -> list[str]:
    """["confusion.svg"], written into `directory`; rows have the names `truth` and `prediction`."""
    from matplotlib.colors import LinearSegmentedColormap

    table = np.zeros((len(classes), len(classes)), int)
    for row in rows:
        table[classes.index(row["truth"]), classes.index(row["prediction"])] += 1
    share = table / np.maximum(table.sum(1, keepdims=True), 1)
    size = 1.9 + 0.42 * len(classes)
    figure, (axis,) = new_figure(size + 0.6, size)
    axis.imshow(share, cmap=LinearSegmentedColormap.from_list("share", ["#ffffff", BLUE]), vmin=0, vmax=1)
    for i, j in np.ndindex(*table.shape):
        ink = "white" if share[i, j] > 0.55 else INK
        axis.text(j, i, f"{table[i, j]:,}", ha="center", va="center", fontsize=8, color=ink)
    axis.set_xticks(range(len(classes)), classes, fontsize=8, rotation=45 if max(map(len, classes)) > 4 else 0)
    axis.set_yticks(range(len(classes)), classes, fontsize=8)
    axis.set_xlabel("prediction")
    axis.set_ylabel("truth")
    axis.grid(False)
    save(figure, Path(directory) / "confusion.svg")
    return ["confusion.svg"]
