"""The field's own pictures, as small SVG: what was asked over what was answered, the worst case always shown.

Shapes say what colours say: a bar is a helix, an arrow a strand, a line everything else; a tick below marks an error.
Every function takes prediction rows and returns the names of the files that it wrote into `directory`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.bench import measures
from core.bench.confusions import confusion
from core.bench.plots import BLUE, GREY, INK, ORANGE, new_figure, save
from domains.protein import metrics

WRAP = 90  # residues per line of a strip
LINES = 2  # lines per protein
DENSE = 600  # from here on points are one small image, not thousands of shapes
HELIX, STRAND = "HGI", "EB"
SHAPES = set("HGIEBTSC")  # alphabets of secondary structure


def strips(rows: list[dict[str, Any]], classes: str, directory: Path, *, name: str) -> list[str]:
    """Truth over prediction along the chain, for the best, the median and the worst protein."""
    rows = sorted((row for row in rows if row.get("score") is not None), key=lambda row: row["score"])
    if not rows:
        return []
    chosen = {"worst": rows[0], "median": rows[len(rows) // 2], "best": rows[-1]}
    blocks = [(label, row, start) for label, row in chosen.items() for start in _starts(row["truth"])]
    longest = max(min(WRAP, len(row["truth"])) for row in chosen.values())
    figure, axes = new_figure(7.4, 0.25 + 0.78 * len(blocks), rows=len(blocks))
    for axis, (label, row, start) in zip(axes, blocks, strict=True):
        _strip(axis, row, start, classes)
        axis.set_xlim(0.2, longest + 1)
        if start == 0:
            cut = f", first {WRAP * LINES} of {len(row['truth'])} residues" if len(row["truth"]) > WRAP * LINES else ""
            axis.set_title(f"{label}: {row['id']}, {name} {row['score']:.2f}{cut}", fontsize=9, loc="left", pad=3)
    save(figure, Path(directory) / "strips.svg")
    return ["strips.svg"]


def _starts(text: str) -> list[int]:
    return [line * WRAP for line in range(min(LINES, -(-len(text) // WRAP)))]


def _strip(axis, row: dict[str, Any], start: int, classes: str) -> None:
    truth, guess = (row[key][start : start + WRAP] for key in ("truth", "prediction"))
    structure = set(classes) <= SHAPES
    for text, y in ((truth, 1.55), (guess, 0.45)):
        for label, first, stop in runs(text):
            if label == metrics.UNSCORED:
                axis.plot([first + 0.5, stop + 0.5], [y, y], ":", color=GREY, lw=1)
            elif structure:
                _glyph(axis, label, first, stop, y)
            else:
                _cell(axis, label, first, stop, y, classes)
    wrong = [i + 1 for i, (t, p) in enumerate(zip(truth, guess, strict=True)) if t not in (p, metrics.UNSCORED)]
    axis.vlines(wrong, -0.45, -0.2, color=INK, lw=1.3)
    axis.set_ylim(-1.35, 2.1)
    axis.set_yticks([1.55, 0.45], ["truth", "model"], fontsize=8)
    for at in range(20, len(truth) + 1, 20):  # not ticks: those are shared by all lines
        axis.text(at, -1.05, str(start + at), ha="center", va="center", fontsize=8, color="#4a5563")
    axis.set_xticks([])
    axis.tick_params(length=0, pad=1)
    axis.spines[["left", "bottom"]].set_visible(False)
    axis.grid(False)


def runs(text: str) -> Iterator[tuple[str, int, int]]:
    """(label, first, stop) of equal neighbours: "HHC" -> ("H", 0, 2), ("C", 2, 3)."""
    first = 0
    for i in range(1, len(text) + 1):
        if i == len(text) or text[i] != text[first]:
            yield text[first], first, i
            first = i


def _glyph(axis, label: str, first: int, stop: int, y: float) -> None:
    from matplotlib.patches import Polygon, Rectangle

    left, right = first + 0.5, stop + 0.5
    if label in HELIX:
        axis.add_patch(Rectangle((left, y - 0.36), right - left, 0.72, facecolor=BLUE, edgecolor="white", lw=0.6))
    elif label in STRAND:
        neck = max(left, right - 1.6)
        lower = [(left, y - 0.2), (neck, y - 0.2), (neck, y - 0.42)]
        shape = [*lower, (right, y), *((x, 2 * y - below) for x, below in reversed(lower))]
        axis.add_patch(Polygon(shape, facecolor=ORANGE, edgecolor="white", lw=0.6))
    else:
        axis.plot([left, right], [y, y], "-", color=GREY, lw=1.6, solid_capstyle="butt")


def _cell(axis, label: str, first: int, stop: int, y: float, classes: str) -> None:
    """A shaded box with its label in it; shades follow the order of the classes."""
    from matplotlib.patches import Rectangle

    share = classes.index(label) / max(1, len(classes) - 1) if label in classes else 0.0
    pale = np.array([0.93, 0.95, 0.97])
    dark = np.array([int(BLUE[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    colour = tuple(pale + share * (dark - pale))
    axis.add_patch(Rectangle((first + 0.5, y - 0.38), stop - first, 0.76, facecolor=colour, lw=0))
    ink = "white" if share > 0.6 else INK
    axis.text((first + stop) / 2 + 0.5, y, label, ha="center", va="center", fontsize=5.5, color=ink)


def scatter(rows: list[dict[str, Any]], directory: Path, *, unit: str) -> list[str]:
    """Prediction against truth with Spearman's correlation; the items that are furthest out of rank are named."""
    if not rows:
        return []
    truth, guess = (np.array([row[key] for row in rows], float) for key in ("truth", "prediction"))
    value, constant = metrics.spearman(truth, guess)
    figure, (axis,) = new_figure(4.6, 3.9)
    dense = len(rows) > DENSE
    style = {"ms": 2.6, "alpha": 0.35} if dense else {"ms": 4.5, "alpha": 0.6}
    axis.plot(truth, guess, "o", color=BLUE, mec="none", rasterized=dense, **style)
    ranks = [np.argsort(np.argsort(x)) for x in (truth, guess)]
    for at in np.argsort(-np.abs(ranks[0] - ranks[1]), kind="stable")[:2]:
        axis.plot(truth[at], guess[at], "o", mfc="none", mec=ORANGE, ms=8, mew=1.4)
        right = truth[at] > (truth.min() + truth.max()) / 2
        axis.annotate(
            str(rows[at]["id"])[:18],
            (truth[at], guess[at]),
            xytext=(-7 if right else 7, 5),
            textcoords="offset points",
            ha="right" if right else "left",
            fontsize=8,
            color=ORANGE,
        )
    text = "constant prediction: no rank correlation" if constant else f"Spearman {value:.3f}"
    axis.set_title(f"{text}, {len(rows):,} proteins", fontsize=10, loc="left")
    axis.set_xlabel(f"truth, {unit}" if unit else "truth")
    axis.set_ylabel(f"prediction, {unit}" if unit else "prediction")
    axis.margins(0.08)
    save(figure, Path(directory) / "scatter.svg")
    return ["scatter.svg"]


def curves(rows: list[dict[str, Any]], classes: Sequence[str], directory: Path) -> list[str]:
    """Two classes: ROC and precision against recall, with the surest mistake named. More: the table of confusions."""
    if not rows:
        return []
    return _two(rows, classes, directory) if len(classes) == 2 else confusion(rows, classes, directory)


def _two(rows: list[dict[str, Any]], classes: Sequence[str], directory: Path) -> list[str]:
    truth = np.array([row["truth"] for row in rows])
    p = np.array([row["prediction"] for row in rows], float)
    if len(set(truth.tolist())) < 2:
        return []
    found = measures.classification(truth, [row["probabilities"] for row in rows], 2)
    order = np.argsort(-p, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(p[order])), len(p) - 1)  # equal scores move together
    hits, misses = np.cumsum(truth[order])[ends], np.cumsum(1 - truth[order])[ends]
    figure, (left, right) = new_figure(7.2, 3.5, columns=2)
    left.plot([0, 1], [0, 1], "--", color=GREY, lw=1)
    left.plot(np.append(0, misses / misses[-1]), np.append(0, hits / hits[-1]), color=BLUE, lw=1.8)
    left.set_title(f"AUROC {found['auroc']:.3f}", fontsize=10, loc="left")
    left.set_xlabel("false positive rate")
    left.set_ylabel("true positive rate")
    right.axhline(truth.mean(), ls="--", color=GREY, lw=1)
    right.plot(hits / hits[-1], hits / (hits + misses), color=BLUE, lw=1.8)
    title = f"AUPRC {found['auprc']:.3f}, always yes {truth.mean():.2f}"
    right.set_title(title, fontsize=10, loc="left")
    right.set_xlabel("recall")
    right.set_ylabel("precision")
    right.tick_params(labelleft=True)
    surest = int(np.argmax(np.where(truth == 1, 1 - p, p)))
    case = f"{str(rows[surest]['id'])[:24]}, p({classes[1]}) {p[surest]:.2f}, is {classes[truth[surest]]}"
    wrong = f"surest mistake: {case}"
    left.text(0.98, 0.03, wrong, transform=left.transAxes, ha="right", fontsize=7, color=ORANGE)
    for axis in (left, right):
        axis.set_xlim(-0.02, 1.02)
        axis.set_ylim(-0.02, 1.04)
    save(figure, Path(directory) / "roc.svg")
    return ["roc.svg"]


def maps(rows: list[dict[str, Any]], directory: Path, *, name: str) -> list[str]:
    """Contact maps of the best and the worst protein: truth above the diagonal, the L most probable pairs below it."""
    rows = sorted((row for row in rows if row.get("score") is not None), key=lambda row: row["score"])
    if not rows:
        return []
    figure, axes = new_figure(7.2, 3.9, columns=2)
    for axis, label, row in zip(axes, ("best", "worst"), (rows[-1], rows[0]), strict=True):
        true = {tuple(sorted(pair)) for pair in row["truth"]}
        if true:
            axis.plot(
                *zip(*((j, i) for i, j in true), strict=True), "s", color=GREY, ms=2.4, mec="none", rasterized=True
            )
        for right, colour, mark in ((True, BLUE, "s"), (False, ORANGE, "x")):
            pairs = [(i, j) for i, j, _ in row["prediction"] if ((i, j) in true) == right]
            if pairs:
                axis.plot(*zip(*pairs, strict=True), mark, color=colour, ms=2.8, label="right" if right else "wrong")
        axis.plot([0, row["length"]], [0, row["length"]], "-", color="#c3c9d1", lw=0.8)
        axis.set_title(f"{label}: {str(row['id'])[:20]}, {name} {row['score']:.2f}", fontsize=9, loc="left")
        axis.set_xlim(-0.5, row["length"])
        axis.set_ylim(row["length"], -0.5)
        axis.set_aspect("equal")
        axis.tick_params(labelleft=True)
        axis.legend(fontsize=8, loc="lower left", markerscale=1.6, framealpha=0.9, edgecolor="none")
    save(figure, Path(directory) / "contacts.svg")
    return ["contacts.svg"]
