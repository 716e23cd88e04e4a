"""The run card: did it work, what did it cost? One offline page from the files of a run directory.

Reads result.json, and where they exist metrics.csv, baselines.json, audit.json, sites.json, config.yaml, plots/*; the
anchors are finished runs beside this one that answer the same question on the same rows.

audit.json   {"facts": {...}, "warnings": [...], "errors": [...]} (core.contracts.Audit)
sites.json   [{"role", "path", "why", "shape": [out, in], "parameters", "sites": 1}, ...] one row per site or per role
"""

from __future__ import annotations

import base64
import os
import re
from pathlib import Path
from typing import Any

from core.bench import answers, cells, numerals, pages, plots, result, sections
from core.bench.cells import ANCHORS, FULL, MEANING, Cell, Run, called
from core.bench.result import Record, write_whole
from core.errors import DataError

FILE = "card.html"
_MEDIA = {".svg": "image/svg+xml", ".png": "image/png", ".jpg": "image/jpeg",
          ".ogg": "audio/ogg", ".flac": "audio/flac", ".wav": "audio/wav"}  # fmt: skip
_BUDGET = {"image": 300_000, "audio": 220_000}  # bytes in the page, as base64
_TEST_NOTE = (
    "Paired by test item; whole groups are drawn for the interval and exchanged for the test, Holm over the rows. "
    "`tied` means that the test sees no difference, not that there is none."
)


def write_card(directory: str | Path) -> Path:
    """The path of `card.html`. DataError names a broken file of the run directory."""
    directory = Path(directory)
    record = result.read(directory)
    run = Run(directory, record)
    us, others = _compared(run)
    pictures, left_out = _pictures(run, us, others)
    full = next((cell.runs[0].record for cell in others if cell.method == FULL and cell.runs), None)
    view = {
        "record": record,
        "title": _title(record),
        "place": [record.domain, record.task, record.backbone, _data(record)],
        "headline": _headline(record, us, others),
        "under": _under(record, others),
        "key": sections.key(record),
        "error": sections.error_block(record),
        "pictures": pictures,
        "left_out": left_out,
        "full": full if record.method != FULL else None,
        "costs": sections.costs(record, full),
        "cost_note": sections.cost_note(record),
        "metric": record.primary.name if record.primary else "score",
        "table": _table(us, others, directory),
        "test_note": _TEST_NOTE,
        "absent": _absent(record, others),
        "scores": sections.all_scores(record),
        **sections.sites(directory),
        "audit": sections.audit(directory),
        "certificate": sections.certificate(record),
        "repeat": sections.repeat(record),
        "config": sections.text_of(directory / "config.yaml"),
        "files": [name for name in ("result.json", "metrics.csv", "predictions.jsonl", "run.log", "config.yaml")
                  if (directory / name).is_file()],
    }  # fmt: skip
    return write_whole(directory / FILE, pages.render(FILE, **view))


def refresh(directory: str | Path) -> None:
    """Write the cards of all finished runs right below a folder again, now that more anchors may lie there."""
    for path in sorted(Path(directory).glob(f"*/{result.FILE}")):
        try:
            if result.read(path).status == "done":
                write_card(path.parent)
        except DataError as error:  # one broken run must not cost the others their cards
            print(f"note: no card: {error.problems[0].where}: {error.problems[0].got}")


def _compared(run: Run) -> tuple[Cell | None, list[Cell]]:
    """(this run as a cell, baselines and anchors with this run's verdict against each)."""
    if not run.tested:
        return None, []
    record = run.record
    others = cells.baselines(run)
    for path in sorted(run.directory.resolve().parent.glob(f"*/{result.FILE}")):
        if path.parent == run.directory.resolve():
            continue
        try:
            beside = Run(path.parent, result.read(path))
        except DataError:  # a neighbour's broken file is the report's business, not this card's
            continue
        if beside.tested and beside.group == run.group and beside.record.method in ANCHORS.keys() - {record.method}:
            if beside.record.primary.name == record.primary.name:
                _nearest(others, beside, record.seed)
    us = Cell(record.method or "?", called(record.method or "?", [run]), [run], record.primary.name)
    cells.judge([(us, other) for other in others], [other.label for other in others])
    order = [*[cell.method for cell in others if not cell.runs], "none", "full", "scratch"]
    return us, sorted(others, key=lambda cell: order.index(cell.method))


def _nearest(others: list[Cell], beside: Run, seed: int | None) -> None:
    """One run per anchor: the one of this run's seed, else the lowest seed."""
    method = beside.record.method
    known = next((cell for cell in others if cell.method == method and cell.runs), None)
    if known is None:
        others.append(Cell(method, called(method, [beside]), [beside], beside.record.primary.name))
        return

    def distance(run: Run) -> tuple:
        return run.record.seed != seed, run.record.seed or 0

    if distance(beside) < distance(known.runs[0]):
        known.runs = [beside]


def _data(record: Record) -> str:
    return f"data {record.data or '-'}" + (" (synthetic)" if record.data_kind == "twin" else "")


def _title(record: Record) -> str:
    data = f"synthetic data {record.data}" if record.data_kind == "twin" else record.data
    return f"{ANCHORS.get(record.method, record.method)} on {record.backbone}: {record.task}, {data}"


def _headline(record: Record, us: Cell | None, others: list[Cell]) -> str:
    name = ANCHORS.get(record.method, record.method or "the run")
    if record.status != "done":
        seen = {"failed": "failed", "interrupted": "was interrupted", "running": "is still running, or was killed"}
        step = f" after {record.steps:,} steps" if record.steps else ""
        return f"{name} on {record.backbone or 'its backbone'} {seen[record.status]}{step}"
    if us is None or us.value is None:
        line = record.headline()
        if line is None or line.value is None:
            return f"{name} on {record.backbone}: finished, not scored"
        return f"{name} reaches {record.primary.name} {_value(line)} on {record.primary.split}"
    line = record.headline()
    told: dict[str, list[str]] = {}
    for cell in others:
        verdict = us.verdicts[cell.label]
        if verdict in ("worse", "tied") or (
            verdict == "better" and cell.runs
        ):  # beating a baseline goes without saying
            told.setdefault(verdict, []).append(cell.label.replace("_", " "))
    words = [answers.told(verdict, answers.listed(names)) for verdict, names in told.items()]
    sentence = f"{name} reaches {record.primary.name} {_value(line)}"
    return sentence + (": " + ", ".join(words) if words else "")


def _value(line) -> str:
    return " ".join(text for text in (numerals.score(line.value, line.unit), numerals.interval(line.ci95)) if text)


def _under(record: Record, others: list[Cell]) -> list[str]:
    """What the sentence rests on, and the first thing to know about it."""
    lines = []
    line = record.headline()
    if record.status == "done" and line is not None and line.value is not None:
        items = f"{line.n:,} {record.primary.split} items" if line.n else record.primary.split
        better = "" if line.higher_is_better else " Lower is better."
        interval = "brackets are the 95 % cluster bootstrap interval" if line.ci95 else "no interval"
        lines.append(f"Measured on {items}, seed {record.seed}; {interval}.{better}")
    if (lost := record.forgetting) and record.forgotten is not None:
        values = f"{numerals.score(lost.before, lost.unit)} before, {numerals.score(lost.after, lost.unit)} after"
        lines.append(f"What the base could do, {lost.metric.replace('_', ' ')}: {values} training.")
    if record.data_kind == "twin":
        lines.append(
            "Synthetic data, made at run time from the seed: it shows that the path works, not what nature does."
        )
    return lines


def _pictures(run: Run, us: Cell | None, others: list[Cell]) -> tuple[list[dict], list[str]]:
    """(pictures to show, names of those left out for their size): the field's own first, then training and anchors."""
    record, folder = run.record, run.directory / "plots"
    metrics, line = run.directory / "metrics.csv", record.headline()
    ours: dict[Path, str] = {}
    if metrics.is_file():
        chosen, line = record.selected or record.primary, record.validation() or line
        score, less = chosen and chosen.name, line is not None and not line.higher_is_better
        if plots.training_curve(metrics, folder / "curve.svg", score=score, mode="min" if less else "max"):
            ours[folder / "curve.svg"] = "training"
    known = [cell for cell in [*others, *([us] if us else [])] if cell.value is not None]
    if len(known) > 1:
        names, ends = [cell.label for cell in known], [cell.ci95 for cell in known]
        values, metric = [cell.value for cell in known], record.primary.name
        ours[plots.beside(names, values, ends, len(known) - 1, folder / "anchors.svg", metric=metric)] = (
            "beside baselines and anchors"
        )
    found = [path for path in sorted(folder.glob("*")) if path.suffix in _MEDIA and path not in ours]
    shown, left_out, left = [], [], dict(_BUDGET)
    left["image"] -= sum(path.stat().st_size for path in ours) * 4 // 3
    for path in [*found, *ours]:
        content, kind = base64.b64encode(path.read_bytes()).decode(), _MEDIA[path.suffix].partition("/")[0]
        if path not in ours:
            if len(content) > left[kind]:
                left_out.append(path.name)
                continue
            left[kind] -= len(content)
        caption = ours.get(path) or path.stem.replace("_", " ")
        source, wide = f"data:{_MEDIA[path.suffix]};base64,{content}", path not in ours and _wide(path)
        shown.append({"kind": kind, "caption": caption, "source": source, "wide": wide})
    return shown, left_out


def _wide(path: Path) -> bool:
    """Pictures more than 1.9 times as wide as high get the whole line."""
    box = re.search(rb'viewBox="[\d.\-]+ [\d.\-]+ ([\d.]+) ([\d.]+)"', path.read_bytes()[:4000])
    return bool(box) and float(box[1]) > 1.9 * float(box[2])


def _table(us: Cell | None, others: list[Cell], directory: Path) -> list[dict[str, Any]]:
    if us is None or us.value is None:
        return []
    rows = []
    for cell in [*others, us]:
        test = us.tests.get(cell.label)
        link = cell.runs[0].directory / FILE if cell.runs and cell is not us else None
        rows.append({
            "us": cell is us,
            "name": cell.label,
            "what": "this run" if cell is us else MEANING.get(cell.method, "needs no network"),
            "score": numerals.score(cell.value),
            "ci": numerals.interval(cell.headlines[0].ci95),
            "difference": numerals.signed(test.difference) if test else "",
            "difference_ci": numerals.interval((test.low, test.high)) if test else "",
            "verdict": us.verdicts.get(cell.label, ""),
            "link": Path(os.path.relpath(link, directory.resolve())).as_posix() if link and link.is_file() else "",
        })  # fmt: skip
    return rows


def _absent(record: Record, others: list[Cell]) -> str:
    there = {cell.method for cell in others} | {record.method}
    missing = [name for name in ("none", "full") if name not in there]
    return (
        f"Not here yet: {', '.join(ANCHORS[m] for m in missing)}. Add -m adapter={','.join(missing)}."
        if missing
        else ""
    )
