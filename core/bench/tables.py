"""Cells in the order of a report, with their verdicts, and the same table as Markdown and CSV."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import Any

from core.bench import cells
from core.bench.cells import ANCHORS, FULL, PROBE, Cell
from core.errors import DataError


def judged(found: list[Cell]) -> list[Cell]:
    """Baselines, anchors, then methods by score, each tested against probe and full; Holm over the methods."""
    trained = list(found)
    beside = _baselines(trained)
    order = {method: place for place, method in enumerate(ANCHORS)}
    anchors = sorted((cell for cell in trained if cell.anchor), key=lambda cell: order[cell.method])
    methods = [cell for cell in trained if not cell.anchor]
    if methods:
        better = -1 if methods[0].headlines[0].higher_is_better else 1
        methods.sort(key=lambda cell: better * cell.value if cell.value is not None else float("inf"))
    for key in (PROBE, FULL):
        against = next((cell for cell in anchors if cell.method == key), None)
        if against is not None:
            for family in (
                methods,
                [*beside, *anchors],
            ):  # the question is about the methods: anchors cost them nothing
                cells.judge([(cell, against) for cell in family], [key] * len(family))
    return [*beside, *anchors, *methods]


def _baselines(trained: list[Cell]) -> list[Cell]:
    """Baselines of the first run that has them in order; a broken file is that run's business (its card names it)."""
    for run in (run for cell in trained for run in cell.runs):
        try:
            found = cells.baselines(run)
        except DataError:
            continue
        if found:
            return found
    return []


def last_anchor(rows: list[Cell]) -> Cell | None:
    """The last row above the methods, None where nothing is below it."""
    anchors = [cell for cell in rows if cell.anchor]
    return anchors[-1] if anchors and len(anchors) < len(rows) else None


_GROUP = ("domain", "task", "data", "backbone", "split_hash")
_COSTS = ("trainable", "head_trainable", "fraction", "adapter_bytes", "saved_activation_bytes", "peak_memory_bytes",
          "flops_forward", "flops_backward", "step_time_s", "examples_per_s", "wall_s", "forgotten")  # fmt: skip
_TEST = ("verdict", "difference", "low", "high", "p", "groups")


_VERSUS = [f"vs_{ANCHORS[key]}_{part}" for key in (PROBE, FULL) for part in _TEST]
_HEADS = [*_GROUP, "label", "method", "status", "metric", "value", "low", "high", "unit", "higher_is_better", "n",
          "seeds", "seed_values", "gap_closed", *_VERSUS, *_COSTS, "lr", "tuning_budget", "tuning_group", "runs",
          "reason"]  # fmt: skip


def as_csv(groups: list, failed: list, directory: Path) -> str:
    """One row per cell (all numbers, full precision), then one per failed or missing run; '' is unknown. `runs` are
    directories below `directory`."""
    file = io.StringIO()
    writer = csv.DictWriter(file, _HEADS, restval="", lineterminator="\n")
    writer.writeheader()
    for group, rows, _ in groups:
        anchors = {cell.method: cell for cell in rows if cell.runs}
        for cell in rows:
            runs = " ".join(_below(run.directory, directory) for run in cell.runs)
            writer.writerow({**dict(zip(_GROUP, group, strict=True)), **_numbers(cell, anchors), "runs": runs})
    for group, missing in failed:
        row = dict(zip(_GROUP, group, strict=True)) if group else {}
        row |= {"label": ANCHORS.get(missing.method, missing.method), "method": missing.method}
        row |= {"status": "failed or missing", "seeds": missing.seed, "reason": missing.reason}
        writer.writerow({**row, "runs": _below(missing.directory, directory) if missing.directory else ""})
    return file.getvalue()


def _below(run: Path, directory: Path) -> str:
    return Path(os.path.relpath(run, directory)).as_posix()


def _numbers(cell: Cell, anchors: dict[str, Cell]) -> dict[str, Any]:
    line, ends = cell.headlines[0], cell.ci95 or ("", "")
    row = {
        "label": cell.label, "method": cell.method, "status": "done", "metric": cell.metric, "value": cell.value,
        "low": ends[0], "high": ends[1], "unit": line.unit, "higher_is_better": line.higher_is_better, "n": line.n,
        "seeds": " ".join(str(run.record.seed) for run in cell.runs),
        "seed_values": " ".join(f"{value:.6g}" for value in cell.seed_values),
        "gap_closed": gap_closed(cell, anchors),
    }  # fmt: skip
    for key in (PROBE, FULL):
        test = cell.tests.get(key)
        numbers = (test.difference, test.low, test.high, test.p, test.groups) if test else ()
        row |= zip(
            [f"vs_{ANCHORS[key]}_{part}" for part in _TEST], [cell.verdicts.get(key, ""), *numbers], strict=False
        )
    if cell.runs:
        row |= {name: cell.mean(name) for name in _COSTS}
        row |= {name: getattr(cell.runs[0].record, name) for name in ("lr", "tuning_budget", "tuning_group")}
    return row


def gap_closed(cell: Cell, anchors: dict[str, Cell]) -> float | None:
    """(method - probe) / (full - probe); None where full is not better than the probe, or only within the noise."""
    probe, full = (anchors[key].value if key in anchors else None for key in (PROBE, FULL))
    if probe is None or full is None or cell.value is None or anchors[FULL].verdicts.get(PROBE) in ("tied", "worse"):
        return None
    sign = 1 if cell.headlines[0].higher_is_better else -1
    return (cell.value - probe) / (full - probe) if sign * (full - probe) > 0 else None


def as_markdown(view: dict[str, Any]) -> str:
    """The report for a README or an issue: answers, one table per group, failures."""
    lines = [f"# {view['title']}", "", view["counts"], ""]
    for group in view["groups"]:
        lines += [f"## {group['name']}", "", group["answer"], ""]
        lines += [f"- {note}" for note in group["notes"]] + ([""] if group["notes"] else [])
        heads = [
            "method",
            group["metric"],
            "95 %",
            "seeds",
            *(f"than {name}" for name in group["anchors"]),
            *group["heads"],
        ]
        lines += [_line(heads), _line(["---", *["---:"] * 3, "---", "---", *["---:"] * len(group["heads"])])]
        for row in group["rows"]:
            words = [verdict for verdict, _ in row["verdicts"]]
            lines.append(_line([row["label"], row["value"], row["ci"], row["seeds"], *words, *row["costs"]]))
        lines += ["", *([group["legend"], ""] if group["legend"] else [])]
    if view["failed"]:
        lines += ["## Failed and missing", "", _line(["method", "seed", "question", "reason"]), _line(["---"] * 4)]
        lines += [_line([row["method"], row["seed"], row["group"], row["reason"]]) for row in view["failed"]]
        lines.append("")
    return "\n".join(lines)


def _line(parts: list) -> str:
    return "| " + " | ".join(str(part).replace("|", "\\|").replace("\n", " ") for part in parts) + " |"
