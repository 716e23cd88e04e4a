"""Pictures of records as SVG: 10-20 KB, text as text, the same bytes for the same numbers (no date, no random ids).

Blue is the run or the methods, grey the anchors, orange what to look at; a shape or a word always says it too.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from core.bench import numerals
from core.bench.result import write_whole
from core.errors import DataError

BLUE, ORANGE, GREY, INK = "#1f5fa8", "#c2510a", "#8a919b", "#1c2733"
_ROUND = re.compile(r"(-?\d+\.\d{2})\d+")
_HALO = ".label text{paint-order:stroke;stroke:#fff;stroke-width:2.5px;stroke-linejoin:round}"
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', Arial, sans-serif"


class Point(NamedTuple):
    """One method in the plane of score against cost. `ends` is its interval, `link` what a click opens."""

    label: str
    cost: float
    score: float
    ends: tuple[float, float] | None = None
    anchor: bool = False
    link: str = ""


def read_metrics(path: Path) -> dict[tuple[str, str], list[tuple[int, float]]]:
    """(split, name) -> [(step, value)] of a metrics.csv, in order of steps. DataError names file and row."""
    series: dict[tuple[str, str], list[tuple[int, float]]] = {}
    with open(path, newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.DictReader(file), 2):
            try:
                point = int(float(row["step"])), float(row["value"])
                series.setdefault((row["split"], row["name"]), []).append(point)
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(f"{path}:{number}", str(row)[:120], "step, split, name, value") from error
    return {key: sorted(points) for key, points in series.items()}


def training_curve(metrics: Path, picture: Path, *, score: str | None = None, mode: str = "max") -> Path | None:
    """Loss above, validation score below with its best step marked; None where metrics.csv holds neither.

    score   name of the validation metric        mode   `max` or `min`: which step is best
    """
    series = read_metrics(metrics)
    losses = [(split, series[split, "loss"]) for split in ("train", "val") if (split, "loss") in series]
    scores = series.get(("val", score), []) if score else []
    scores = [(step, value) for step, value in scores if math.isfinite(value)]
    panels = [name for name, there in (("loss", losses), (score, scores)) if there]
    if not panels:
        return None
    figure, axes = new_figure(5.6, 1.1 + 1.5 * len(panels), rows=len(panels), margins=(0.75, 0.15, 0.5, 0.1))
    if losses:
        axis = axes[0]
        for split, points in losses:
            colour, style = (BLUE, "-") if split == "train" else (ORANGE, "--")
            steps, values = zip(*_thin(points), strict=True)
            axis.plot(steps, values, style, color=colour, lw=1.4, label=f"{split} loss")
        axis.set_ylabel("loss")
        if len(losses) > 1:
            axis.legend(frameon=False, loc="upper right", ncols=2, fontsize=9)
    if scores:
        axis = axes[-1]
        steps, values = zip(*_thin(scores), strict=True)
        axis.plot(steps, values, "-", color=INK, lw=1.4)
        best = (max if mode == "max" else min)(scores, key=lambda point: point[1])
        axis.plot(*best, "o", color=ORANGE, ms=7, zorder=5)
        late = best[0] > (scores[0][0] + scores[-1][0]) / 2
        axis.annotate(
            f"best {numerals.score(best[1])} at step {best[0]:,}",
            best,
            xytext=(4 if late else -4, 9 if mode == "max" else -9),
            textcoords="offset points",
            ha="right" if late else "left",
            va="bottom" if mode == "max" else "top",
            color=ORANGE,
            fontsize=9,
        )
        axis.set_ylabel(f"val {score}")
        axis.margins(y=0.3)
    axes[-1].set_xlabel("step")
    return save(figure, picture)


def score_against_cost(
    points: Sequence[Point], picture: Path | None, *, metric: str, cost: str, unit: str, higher_is_better: bool = True
) -> Path | str | None:
    """Scatter, cost on a log axis, probe and full as dashed lines. `picture` None returns the SVG's text.

    Dominated methods (another is at least as good and as cheap) are hollow. None without a point.
    """
    points = [p for p in points if p.cost and p.cost > 0 and p.score is not None]
    if not points:
        return None
    figure, (axis,) = new_figure(7.6, 4.0, margins=(0.75, 0.1, 0.5, 0.08))
    for p in points:
        if p.label in ("probe", "full"):
            axis.axhline(p.score, ls=(0, (5, 4)), lw=1, color=GREY, zorder=0)
    for p in points:
        colour = GREY if p.anchor else BLUE
        hollow = any(_dominates(q, p, higher_is_better) for q in points)
        if p.ends:
            axis.plot([p.cost, p.cost], p.ends, "-", color=colour, lw=1, alpha=0.75, zorder=1)
        style = {"facecolors": "white" if hollow else colour, "edgecolors": colour, "linewidths": 1.5, "zorder": 3}
        drawn = axis.scatter([p.cost], [p.score], s=46, marker="s" if p.anchor else "o", **style)
        drawn.set_urls([p.link] if p.link else None)
    spread = max(p.cost for p in points) / min(p.cost for p in points)
    if spread > 4:
        axis.set_xscale("log")
        axis.set_xlim(min(p.cost for p in points) / spread**0.08, max(p.cost for p in points) * spread**0.22)
    else:
        axis.margins(x=0.18)
    if not higher_is_better:
        axis.invert_yaxis()
    _number_ticks(axis.xaxis, log=spread > 4)
    axis.set_xlabel(f"{cost}, {unit}" if unit else cost)
    axis.set_ylabel(metric + ("" if higher_is_better else " (lower is better)"))
    _label(figure, axis, points)
    return save(figure, picture)


def beside(
    names: Sequence[str], scores: Sequence[float], ends: Sequence, ours: int, picture: Path, *, metric: str
) -> Path:
    """One row per name: its score as a dot, with its interval. Row `ours` is the run, its interval shaded."""
    figure, (axis,) = new_figure(5.6, 0.85 + 0.36 * len(names), margins=(_room(names), 0.1, 0.5, 0.08))
    if ends[ours]:
        axis.axvspan(*ends[ours], color=BLUE, alpha=0.1, lw=0)
    for row, (score, pair) in enumerate(zip(scores, ends, strict=True)):
        colour = BLUE if row == ours else GREY
        if pair:
            axis.plot(pair, [row, row], "-", color=colour, lw=2.4 if row == ours else 1.6, solid_capstyle="round")
        axis.plot(score, row, "o" if row == ours else "s", color=colour, ms=7 if row == ours else 6)
        at = max(score, pair[1]) if pair else score
        axis.annotate(
            numerals.score(score), (at, row), xytext=(7, 0), textcoords="offset points", va="center", fontsize=9
        )
    axis.set_yticks(range(len(names)), names)
    axis.tick_params(axis="y", length=0, labelcolor=INK)
    axis.grid(False, axis="y")
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.margins(x=0.12)
    low, high = axis.get_xlim()
    axis.set_xlim(low, high + 0.06 * (high - low))
    axis.set_xlabel(metric)
    return save(figure, picture)


def cost_bars(
    labels: Sequence[str], costs: dict[str, Sequence[float | None]], picture: Path | None
) -> Path | str | None:
    """One panel of bars per cost, a row per method, each bar with its number; None where nothing is known.

    costs   title with unit -> one number per label, None where unknown
    """
    costs = {name: values for name, values in costs.items() if any(value is not None for value in values)}
    if not costs or not labels:
        return None
    figure, axes = new_figure(
        _room(labels) + 1.75 * len(costs),
        0.4 + 0.27 * len(labels),
        columns=len(costs),
        margins=(_room(labels), 0.05, 0.05, 0.3),
    )
    rows = range(len(labels))
    for axis, (name, values) in zip(axes, costs.items(), strict=True):
        largest = max(value for value in values if value is not None) or 1.0
        axis.barh(rows, [value or 0 for value in values], color=BLUE, height=0.62)
        for row, value in zip(rows, values, strict=True):
            axis.text((value or 0) + largest * 0.03, row, numerals.short(value), va="center", fontsize=9)
        axis.set_title(name, fontsize=10, loc="left")
        axis.set_xlim(0, largest * 1.42)
        axis.set_xticks([])
        axis.set_yticks(rows, labels)
        axis.tick_params(axis="y", length=0, labelleft=axis is axes[0])
        axis.spines["bottom"].set_visible(False)
        axis.grid(False)
    axes[0].invert_yaxis()
    return save(figure, picture)


def _dominates(q: Point, p: Point, higher_is_better: bool) -> bool:
    gain = (q.score - p.score) * (1 if higher_is_better else -1)
    return gain >= 0 and q.cost <= p.cost and (gain > 0 or q.cost < p.cost)


def _thin(points: list[tuple[int, float]], limit: int = 240) -> list[tuple[int, float]]:
    """At most `limit` points: means of equal runs of steps, so that a long training stays a small picture."""
    if len(points) <= limit:
        return points
    size = math.ceil(len(points) / limit)
    parts = [points[first : first + size] for first in range(0, len(points), size)]
    return [(part[-1][0], sum(value for _, value in part) / len(part)) for part in parts]


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1, margins: tuple | None = None):
    """(figure, list of axes) without pyplot: nothing global, nothing to close.

    margins   (left, right, bottom, top) in inch; None finds them, which takes two more drawings
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout=None if margins else "constrained")
        FigureCanvasAgg(figure)
        if margins:
            left, right, bottom, top = margins
            room = {
                "left": left / width,
                "right": 1 - right / width,
                "bottom": bottom / height,
                "top": 1 - top / height,
            }
            figure.subplots_adjust(**room, hspace=0.12, wspace=0.08)
        axes = figure.subplots(rows, columns, sharex=rows > 1, sharey=columns > 1, squeeze=False).ravel()
        for axis in axes:
            axis.spines[["top", "right"]].set_visible(False)
            axis.spines[["left", "bottom"]].set_color("#c3c9d1")
            axis.tick_params(colors="#4a5563", labelsize=9)
            axis.grid(True, color="#e8ebef", lw=0.8)
            axis.set_axisbelow(True)
    return figure, list(axes)


def _room(labels: Sequence[str]) -> float:
    """Inches that the longest of these names needs beside an axis."""
    return 0.25 + 0.085 * max(map(len, labels))


_STYLE = {
    "font.family": "DejaVu Sans",
    "axes.unicode_minus": False,
    "font.size": 10,
    "axes.labelcolor": INK,
    "text.color": INK,
}


def _number_ticks(axis, *, log: bool) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    if log:
        low, high = axis.get_view_interval()
        wide = math.log10(high / low) > 1.7
        axis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0), numticks=12))
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: numerals.short(value)))


def _label(figure, axis, points: Sequence[Point]) -> None:
    """A name beside each point, moved up or down until no two names overlap."""
    axis.get_xlim(), axis.get_ylim()  # settles the limits
    taken: list[tuple[float, float, float, float]] = []
    spots = [axis.transData.transform((p.cost, p.score)) for p in points]
    for p, (x, y) in sorted(zip(points, spots, strict=True), key=lambda pair: -pair[1][1]):
        width, height = 1.15 * len(p.label) * figure.dpi / 14, 12 * figure.dpi / 72
        for shift in sorted(range(-5, 6), key=abs):
            low = y + shift * height * 0.55
            box = (x + 7, low - height / 2, x + 7 + width, low + height / 2)
            if not any(_overlap(box, other) for other in taken) and not any(
                _overlap(box, (a - 5, b - 5, a + 5, b + 5)) for a, b in spots if (a, b) != (x, y)
            ):
                break
        else:
            low, box = y, (x + 7, y - height / 2, x + 7 + width, y + height / 2)
        taken.append(box)
        axis.annotate(
            p.label,
            (p.cost, p.score),
            gid=f"label_{len(taken)}",
            xytext=(8, (low - y) * 72 / figure.dpi),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color="#5d6672" if p.anchor else INK,
        )


def _overlap(a, b) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def save(figure, picture: Path | None) -> Path | str:
    """Write the SVG: no date, ids from the content alone, the page's own font. None gives the text, fit to stand inside
    a page with others: ids of its own, and only where something refers to them."""
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.fonttype": "none", "svg.hashsalt": "atlas"}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = re.sub(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = text.replace(' target="_blank"', "")
    text = re.sub(r'<g id="label_\d+">', '<g class="label">', text)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    if picture is None:
        own = "i" + hashlib.sha256(text.encode()).hexdigest()[:8]
        text = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{own}", text)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", _FONT, text)
    text = re.sub(r' (?:d|x|y|transform|points)="[^"]*"', lambda found: _ROUND.sub(r"\1", found[0]), text)
    text = text.replace("</style>", _HALO + "</style>", 1).strip() + "\n"
    return text if picture is None else write_whole(picture, text)
