"""The report: which method, for me? One page, one Markdown table and one CSV over every `result.json` under a folder.

Answers first, then the picture, then the table (anchors, then methods by score), then what failed and why.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from core.bench import answers, cells, numerals, pages, plots, tables, tuning
from core.bench.card import FILE as CARD
from core.bench.cells import Cell, Group, Missing
from core.bench.result import write_whole
from core.errors import DataError

COSTS = (  # head of the column, field of the record, how it is written
    ("trainable", "trainable", numerals.count),
    ("saved MiB", "saved_activation_bytes", numerals.mebibytes),
    ("peak MiB", "peak_memory_bytes", numerals.mebibytes),
    ("s/step", "step_time_s", numerals.number),
    ("forgetting", "forgotten", numerals.signed),
    ("adapter KiB", "adapter_bytes", lambda value: numerals.number(value and value / 1024)),
)
_SCATTERS = (
    ("bytes saved for backward", "saved_activation_bytes", 2**20, "MiB"),
    ("peak memory", "peak_memory_bytes", 2**20, "MiB"),
    ("time per step", "step_time_s", 1e-3, "ms"),
    ("trainable parameters", "trainable", 1, ""),
)


def report(directory: str | Path) -> Path:
    """The path of `report.html`, with report.md and report.csv beside it. DataError: no run lies under the folder."""
    directory = Path(directory)
    runs, broken = cells.find(directory)
    if not runs and not broken:
        raise DataError(str(directory), "no result.json below it", "a folder of runs", "train something first")
    groups, failed = [], [(None, missing) for missing in broken]
    gathered = cells.gather(runs)
    names = _names(gathered)
    for group, (found, missing, trials) in gathered.items():
        rows = tables.judged(found)
        groups.append((group, rows, trials))
        failed += [(group, one) for one in [*missing, *cells.absent(found, missing)]]
    view = {
        "title": _title(groups),
        "counts": _counts(runs, groups),
        "groups": [
            _group(group, names[group], rows, trials, failed, directory) for group, rows, trials in groups if rows
        ],
        "failed": [_failed(names.get(group, "-"), missing, directory) for group, missing in failed],
        "sources": f"Made from {len(runs)} result.json files.",
    }
    write_whole(directory / "report.csv", tables.as_csv(groups, failed, directory))
    write_whole(directory / "report.md", tables.as_markdown(view))
    return write_whole(directory / "report.html", pages.render("report.html", **view))


def _title(groups: list) -> str:
    domains = sorted({group.domain for group, *_ in groups if group.domain})
    twin = any(_twin(rows) for _, rows, _ in groups)
    return f"Which method? {', '.join(domains)}" + (" (synthetic data among it)" if twin and domains else "")


def _counts(runs: list, groups: list) -> str:
    tested = sum(run.tested for run in runs)
    return f"{len(groups)} question{'s' * (len(groups) != 1)}, {len(runs)} runs, {tested} scored on test"


def _twin(rows: list[Cell]) -> bool:
    return any(cell.runs and cell.runs[0].record.data_kind == "twin" for cell in rows)


def _names(groups: Iterable[Group]) -> dict[Group, str]:
    """What a group is called; its split is named where two groups would be called the same."""
    called = {}
    for group in groups:
        parts = [group.domain, group.task, group.backbone, f"data {group.data or '-'}"]
        called[group] = " / ".join(str(part or "-") for part in parts)
    double = {name for name in called.values() if list(called.values()).count(name) > 1}
    return {g: f"{name} / split {(g.split_hash or '-')[:8]}" if name in double else name for g, name in called.items()}


def _group(group: Group, name: str, rows: list[Cell], trials: list, failed: list, directory: Path) -> dict[str, Any]:
    """What the template shows of one group."""
    trained = [cell for cell in rows if cell.runs]
    chosen = tuning.table(rows, trials)
    lost = [missing for other, missing in failed if other == group]
    seeds = sorted({run.record.seed for cell in trained for run in cell.runs}, key=lambda seed: (seed is None, seed))
    columns = _columns(rows, chosen)
    higher = trained[0].headlines[0].higher_is_better
    return {
        "name": name + (" (synthetic)" if _twin(rows) else ""),
        "twin": _twin(rows),
        "metric": rows[0].metric,
        "anchors": [answers.anchor(rows, key) for key in (cells.PROBE, cells.FULL)],
        "watched": chosen.metric or rows[0].metric,
        "answer": answers.answer(rows),
        "notes": answers.notes(rows, lost, chosen),
        "heads": list(columns),
        "rows": [_row(cell, columns, directory, last_anchor=cell is tables.last_anchor(rows)) for cell in rows],
        "legend": _legend(rows, columns, higher),
        "scatters": _scatters(trained, higher, directory),
        "bars": _bars(trained),
        "seeds": seeds,
        "spread": [_seeds(cell, seeds, directory) for cell in trained] if len(seeds) > 1 or trials else [],
        "lrs": [numerals.short(lr) for lr in chosen.lrs],
        "trials": [{"label": label, "cells": chosen.row(label)} for label in chosen.labels],
    }


def _columns(rows: list[Cell], chosen) -> dict[str, Callable[[Cell], str]]:
    """Head -> text of a cell, for what is known of at least one; what is equal everywhere stands in the legend."""
    anchors = {cell.method: cell for cell in rows if cell.runs}

    def gap(cell: Cell) -> str:
        closed = tables.gap_closed(cell, anchors)
        return "" if closed is None or cell.method in (cells.PROBE, cells.FULL) else f"{100 * closed:.0f} %"

    def lr(cell: Cell) -> str:
        rate = cell.runs[0].record.lr
        return "" if rate is None else numerals.short(rate) + (" !" if chosen.edge(cell) else "")

    def cost(field: str, text: Callable) -> Callable[[Cell], str]:
        return lambda cell: text(cell.mean(field))

    trained = [cell for cell in rows if cell.runs]
    columns: dict[str, Callable[[Cell], str]] = {}
    if any(gap(cell) for cell in trained):
        columns["gap closed"] = gap
    columns |= {
        head: cost(field, text) for head, field, text in COSTS if any(c.mean(field) is not None for c in trained)
    }
    columns["lr"] = lr
    if len(_budgets(rows)) > 1:
        columns["trials"] = lambda cell: numerals.count(cell.runs[0].record.tuning_budget)
    if len(_items(rows)) > 1:
        columns["n"] = lambda cell: numerals.count(cell.headlines[0].n)
    return columns


def _budgets(rows: list[Cell]) -> set:
    return {cell.runs[0].record.tuning_budget for cell in rows if cell.runs}


def _items(rows: list[Cell]) -> set:
    return {cell.headlines[0].n for cell in rows}


def _row(cell: Cell, columns: dict, directory: Path, *, last_anchor: bool) -> dict[str, Any]:
    return {
        "kind": ("anchor" if cell.anchor else "method") + (" rule" if last_anchor else ""),
        "label": cell.label.replace("_", " "),
        "link": _card(cell.runs[0].directory, directory) if cell.runs else "",
        "value": numerals.score(cell.value, cell.headlines[0].unit),
        "ci": numerals.interval(cell.ci95),
        "seeds": len(cell.runs) or "",
        "seed_values": ", ".join(map(numerals.score, cell.seed_values)) if cell.runs else "",
        "verdicts": [(cell.verdicts.get(key, ""), _told(cell, key)) for key in (cells.PROBE, cells.FULL)],
        "costs": [text(cell) if cell.runs else "" for text in columns.values()],
    }


def _legend(rows: list[Cell], columns: dict, higher: bool) -> str:
    """What holds for the whole table: items, tuning, how memory was measured, on what machine."""
    records = [run.record for cell in rows for run in cell.runs]
    items, budgets = _items(rows), _budgets(rows)
    facts = ["" if higher else "lower is better"]
    facts.append(f"{numerals.count(next(iter(items)))} test items" if len(items) == 1 and None not in items else "")
    facts.append(f"{next(iter(budgets))} learning-rate trials per method" if len(budgets) == 1 and any(budgets) else "")
    facts.append("gap closed: 0 % is the probe, 100 % is full" if "gap closed" in columns else "")
    lost = sorted({(f.metric, f.higher_is_better) for r in records if (f := r.forgetting)})
    facts += [f"forgetting: change of {name}, {'higher' if up else 'lower'} is better" for name, up in lost]
    facts += [
        f"peak memory: {kind}" for kind in sorted({record.memory_kind for record in records if record.memory_kind})
    ]
    facts += sorted({record.hardware for record in records if record.hardware})
    return "; ".join(fact for fact in facts if fact)


def _told(cell: Cell, key: str) -> str:
    test = cell.tests.get(key)
    if test is None:
        return ""
    ends = numerals.interval((test.low, test.high))
    found = f"difference {numerals.signed(test.difference)} {ends}".rstrip()
    return f"{found}, p {numerals.number(test.p)} before Holm, {test.groups} groups"


def _scatters(trained: list[Cell], higher: bool, directory: Path) -> list[dict]:
    from markupsafe import Markup

    out = []
    for title, field, divisor, unit in _SCATTERS:
        points = [
            plots.Point(cell.label, cell.mean(field) / divisor, cell.value, cell.ci95, cell.anchor,
                        _card(cell.runs[0].directory, directory))
            for cell in trained if cell.mean(field) and cell.value is not None
        ]  # fmt: skip
        if len({point.cost for point in points}) > 1:
            metric = trained[0].metric
            svg = plots.score_against_cost(points, None, metric=metric, cost=title, unit=unit, higher_is_better=higher)
            out.append({"name": title, "svg": Markup(svg)})
    return out


def _bars(trained: list[Cell]):
    from markupsafe import Markup

    costs = {
        "trainable, thousands": [_over(cell.mean("trainable"), 1e3) for cell in trained],
        "saved, MiB": [_over(cell.mean("saved_activation_bytes"), 2**20) for cell in trained],
        "peak, MiB": [_over(cell.mean("peak_memory_bytes"), 2**20) for cell in trained],
        "step, ms": [_over(cell.mean("step_time_s"), 1e-3) for cell in trained],
    }
    svg = plots.cost_bars([cell.label for cell in trained], costs, None) if len(trained) > 1 else None
    return Markup(svg) if svg else ""


def _over(value: float | None, divisor: float) -> float | None:
    return None if value is None else value / divisor


def _seeds(cell: Cell, seeds: list, directory: Path) -> dict[str, Any]:
    runs = {run.record.seed: run for run in cell.runs}
    values = cell.seed_values
    shown = []
    for seed in seeds:
        run = runs.get(seed)
        line = run.record.headline() if run else None
        link = _card(run.directory, directory) if run else ""
        shown.append({"text": numerals.score(line.value) if line else "-", "link": link})
    spread = numerals.score(max(values) - min(values)) if len(values) > 1 else "-"
    return {"label": cell.label, "cells": shown, "range": spread}


def _failed(group: str, missing: Missing, directory: Path) -> dict[str, str]:
    return {
        "method": cells.ANCHORS.get(missing.method, missing.method),
        "seed": "-" if missing.seed is None else str(missing.seed),
        "group": group,
        "reason": missing.reason,
        "link": _card(missing.directory, directory) if missing.directory else "",
    }


def _card(run: Path, directory: Path) -> str:
    """Relative link to a run's card, '' where it has none."""
    card = run / CARD
    return Path(os.path.relpath(card, directory)).as_posix() if card.is_file() else ""
