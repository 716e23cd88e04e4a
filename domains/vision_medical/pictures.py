"""The field's own pictures: image, truth, prediction and error side by side, the worst case always among them; and
whether probabilities can be believed. SVG with the pixels inside as small PNG.

Colours never speak alone: outlines are drawn over the image, and the words above a panel say what is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.bench.plots import BLUE, GREY, INK, ORANGE, new_figure, save
from domains.vision_medical import masks, metrics

Load = Callable[[str], dict[str, Any]]
CLASS_COLOURS = ("#1f9fd8", "#f2c14e", "#57c785", "#d678c8", "#ef6f4d", "#9aa7ff", "#c8e05a", "#ffffff")
LARGEST = 192  # pixels of a panel's longer side


def segmentation(rows: list[dict[str, Any]], classes: Sequence[str], directory: Path, load: Load | None) -> list[str]:
    """The worst, the median and the best image by score: image, truth, prediction, and where they differ.

    rows      `prediction` and `truth` as run lengths (masks.py)      classes   names from the background on
    load      id -> the test image's arrays; None writes nothing
    Volumes are shown by the slice with most error.
    """
    rows = sorted((row for row in rows if row.get("score") is not None), key=lambda row: row["score"])
    if not rows or load is None:
        return []
    chosen = {"worst": rows[0], "median": rows[len(rows) // 2], "best": rows[-1]}
    figure, axes = new_figure(7.6, 0.55 + 1.95 * len(chosen), rows=len(chosen), columns=4)
    for line, (label, row) in enumerate(chosen.items()):
        image, truth, guess = shown(
            load(row["id"])["image"], masks.decode(row["truth"]), masks.decode(row["prediction"])
        )
        panels = axes[4 * line : 4 * line + 4]
        for axis in panels:
            _bare(axis)
            axis.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="none")
        _outlines(panels[1], truth, len(classes))
        _outlines(panels[2], guess, len(classes))
        panels[3].imshow(_errors(truth, guess), interpolation="none")
        panels[0].set_title(f"{label}: {str(row['id'])[:14]}", fontsize=8, loc="left", pad=3)
        panels[1].set_title("truth", fontsize=8, loc="left", pad=3)
        panels[2].set_title(f"prediction, {row['score']:.2f}", fontsize=8, loc="left", pad=3)
        panels[3].set_title("missed / extra / other", fontsize=8, loc="left", pad=3)
    _legend(figure, classes)
    save(figure, Path(directory) / "cases.svg")
    return ["cases.svg"]


def shown(image: np.ndarray, truth: np.ndarray, guess: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(image (h, w[, 3]) in 0..1, truth (h, w), prediction (h, w)): a slice of a volume, few pixels of a large one."""
    if truth.ndim == 3:
        wrong = (truth != guess).sum((0, 1))
        at = int(wrong.argmax()) if wrong.any() else int((truth > 0).sum((0, 1)).argmax())
        image, truth, guess = (np.rot90(part[..., at], axes=(-2, -1)) for part in (image, truth, guess))
    step = max(1, -(-max(truth.shape) // LARGEST))
    image = image[..., ::step, ::step]
    low, high = np.percentile(image, [1, 99])
    image = np.clip((image - low) / max(float(high - low), 1e-6), 0, 1)
    image = np.moveaxis(image[:3], 0, -1) if len(image) >= 3 else image[0]
    return image, truth[::step, ::step], guess[::step, ::step]


def _errors(truth: np.ndarray, guess: np.ndarray) -> np.ndarray:
    """(h, w, 4): missed orange, extra blue, one foreground class for another white; nothing where both agree."""
    out = np.zeros((*truth.shape, 4))
    for at, colour in (
        ((truth > 0) & (guess == 0), ORANGE),
        ((truth == 0) & (guess > 0), "#3f8fe0"),
        ((truth > 0) & (guess > 0) & (truth != guess), "#ffffff"),
    ):
        out[at] = (*_rgb(colour), 0.9)
    return out


def _outlines(axis, mask: np.ndarray, classes: int) -> None:
    for k in range(1, classes):
        if (mask == k).any() and not (mask == k).all():
            axis.contour(mask == k, levels=[0.5], colors=[CLASS_COLOURS[(k - 1) % len(CLASS_COLOURS)]], linewidths=1.2)


def _legend(figure, classes: Sequence[str]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    colours = {name: CLASS_COLOURS[k % len(CLASS_COLOURS)] for k, name in enumerate(classes[1:])}
    handles = [Line2D([], [], color=colour, lw=2, label=name) for name, colour in colours.items()]
    marks = {"missed": ORANGE, "extra": "#3f8fe0", "other class": "#ffffff"}
    handles += [Patch(facecolor=colour, edgecolor=GREY, label=name) for name, colour in marks.items()]
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=min(8, len(handles)), fontsize=8)
    legend.get_frame().set(facecolor="#5b6470", edgecolor="none")
    for text in legend.get_texts():
        text.set_color("#ffffff")


def classification(rows: list[dict[str, Any]], classes: Sequence[str], directory: Path, load: Load | None) -> list[str]:
    """A reliability diagram, and the surest mistakes beside the surest right answers."""
    if not rows:
        return []
    return reliability(rows, classes, directory) + examples(rows, classes, directory, load)


def reliability(rows: list[dict[str, Any]], classes: Sequence[str], directory: Path, bins: int = 15) -> list[str]:
    """Share of right answers against confidence in bins of equal size; under it, how often each confidence occurs."""
    correct, sure = confidence(rows, classes)
    order = np.argsort(sure, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    figure, (axis,) = new_figure(4.4, 3.8)
    axis.plot([0, 1], [0, 1], "--", color=GREY, lw=1)
    x, y = [sure[p].mean() for p in parts], [correct[p].mean() for p in parts]
    for a, b in zip(x, y, strict=True):
        axis.plot([a, a], [a, b], "-", color=ORANGE, lw=1.4, alpha=0.8)
    axis.plot(x, y, "o-", color=BLUE, lw=1.2, ms=5)
    axis.plot(sure, np.full(len(sure), -0.045), "|", color=INK, ms=6, mew=0.5, alpha=0.25, rasterized=len(sure) > 300)
    binary = len(classes) == 2
    axis.set_xlabel(f"predicted probability of {classes[1]}" if binary else "confidence")
    axis.set_ylabel(f"share of {classes[1]}" if binary else "share right")
    axis.set_title(f"calibration error {metrics.calibration(correct, sure, bins):.3f}", fontsize=10, loc="left")
    axis.set_xlim(-0.02, 1.02)
    axis.set_ylim(-0.09, 1.04)
    save(figure, Path(directory) / "reliability.svg")
    return ["reliability.svg"]


def confidence(rows: list[dict[str, Any]], classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(right, probability) per row: of two classes for the second, else for the chosen one."""
    p = np.array([row["probabilities"] for row in rows], float)
    if len(classes) == 2:
        return np.array([float(row["truth"]) for row in rows]), p[:, 1]
    return np.array([float(row["prediction"] == row["truth"]) for row in rows]), p.max(1)


def examples(
    rows: list[dict[str, Any]], classes: Sequence[str], directory: Path, load: Load | None, count: int = 5
) -> list[str]:
    """The surest mistakes above, the surest right answers below, with what each is and what was said."""
    if load is None:
        return []
    p = np.array([row["probabilities"] for row in rows], float)
    truth = np.array([row["truth"] if len(classes) == 2 else classes.index(row["truth"]) for row in rows], int)
    right, sure = p.argmax(1) == truth, p.max(1)
    picked = [sorted(np.flatnonzero(right == side), key=lambda i: -sure[i])[:count] for side in (False, True)]
    lines = [(word, at) for word, at in zip(("mistake", "right"), picked, strict=True) if at]
    figure, axes = new_figure(7.4, 0.2 + 1.85 * len(lines), rows=len(lines), columns=count)
    for line, (word, at) in enumerate(lines):
        for column in range(count):
            axis = axes[line * count + column]
            _bare(axis)
            if column >= len(at):
                continue
            row, i = rows[at[column]], at[column]
            image = load(row["id"])["image"]
            blank = np.zeros(image.shape[1:], np.uint8)
            axis.imshow(shown(image, blank, blank)[0], cmap="gray", vmin=0, vmax=1, interpolation="none")
            said, colour = classes[int(p[i].argmax())], ORANGE if word == "mistake" else INK
            axis.set_title(
                f"{said} {sure[i]:.2f}\nis {classes[truth[i]]}", fontsize=7.5, loc="left", pad=3, color=colour
            )
    save(figure, Path(directory) / "examples.svg")
    return ["examples.svg"]


def _bare(axis) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    axis.grid(False)
    for side in axis.spines.values():
        side.set_visible(False)


def _rgb(colour: str) -> tuple[float, ...]:
    return tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
