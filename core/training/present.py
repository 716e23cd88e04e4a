"""The lines that a run prints: what is trained, what was checked, how it went, what to look at and type next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core.bench.result import MetricRecord, Record

GIB = 2**30


def title(record: Record) -> str:
    """`lora (rank 8, alpha 16) on esm2_tiny, task contact, data twin (synthetic), seed 0`"""
    options = ", ".join(f"{key} {value}" for key, value in record.options.items() if value not in (None, 0, 0.0, False))
    kind = " (synthetic)" if record.data_kind == "twin" else ""
    place = f"on {record.backbone}, task {record.task}, data {record.data}{kind}, seed {record.seed}"
    return f"{record.method}{f' ({options})' if options else ''} {place}"


def indented(text: str) -> str:
    return "\n".join("  " + line for line in text.splitlines())


def checked(live: tuple[int, int], sites: int, peak: int, seconds: float, base_trains: bool) -> str:
    """`  checked  8 of 8 live in train, eval, no_grad      plan  0.9 GiB peak, about 50 s`"""
    if base_trains:
        facts = "all of the base trains"
    elif not sites:
        facts = "only the head trains, on frozen features"
    else:
        facts = f"{live[0]} of {live[1]} live on real batches: gradient in train, read in eval"
    return f"  checked  {facts}      plan  {size(peak)} peak, about {duration(seconds)}"


def results(record: Record, rivals: dict[str, dict[str, Any]]) -> list[str]:
    """The table of the test split: this run with its cost, then what needs no training."""
    primary = record.primary
    if primary is None:
        return []
    mine = record.headline()
    n = mine.n if mine is not None and mine.n else "-"
    head = (
        f"{primary.split}, {n} items",
        f"{primary.name} [95 %]",
        "trainable",
        "saved MiB",
        "s/step",
        "peak: plan / real",
    )
    planned = record.plan.peak_memory_bytes if record.plan else None
    peaks = f"{size(planned, unit=False)} / {size(record.peak_memory_bytes)}"
    saved = record.saved_activation_bytes
    rows = [head, (
        record.method or "-", score(mine), "-" if record.trainable is None else f"{record.trainable:,}",
        "-" if saved is None else f"{saved / 2**20:.3g}",
        "-" if record.step_time_s is None else f"{record.step_time_s:.3g}", peaks,
    )]  # fmt: skip
    for name, rival in rivals.items():
        metric = rival["metrics"].get(primary.name)
        rows.append((name, score(MetricRecord(**metric) if metric else None), "-", "-", "-", "-"))
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = []
    for row in rows:
        cells = [c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  " + "  ".join(cells).rstrip())
    return lines


def score(metric: MetricRecord | None) -> str:
    """`0.38 [0.34, 0.42]`, `-` where unknown."""
    if metric is None or metric.value is None:
        return "-"
    interval = f" [{metric.ci95[0]:.3g}, {metric.ci95[1]:.3g}]" if metric.ci95 else ""
    return f"{metric.value:.3g}{f' {metric.unit}' if metric.unit else ''}{interval}"


def closing(directory: Path, card: Path | None, pictures: list[str], domain: str) -> list[str]:
    """Where to look, and what to type next."""
    look = card if card is not None else directory / "result.json"
    shown = [f"look   {near(look)}"]
    if pictures:
        shown.append(f"       {near(directory / 'plots' / pictures[0])}")
    shown.append(
        f"next   -m adapter=none,lora,full   (anchors: is it good?)        atlas report {near(directory.parent)}"
    )
    return shown


def near(path: Path) -> Path:
    """The path as one would type it from here."""
    try:
        return path.resolve().relative_to(Path.cwd())
    except ValueError:
        return path


def size(count: int | None, unit: bool = True) -> str:
    if not count:
        return "-"
    return f"{count / GIB:.2g}{' GiB' if unit else ''}"


def duration(seconds: float) -> str:
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
