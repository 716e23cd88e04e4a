"""What the weights are worth at the twin's target site, by the same runs that a user starts: probe, LoRA, everything,
and everything from a random start, each at its own learning rate, three seeds.

Intervals   95 % bootstrap over test patients of the Dice averaged over seeds; differences are paired by patient
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from core.pretraining import put

METHODS = ("none", "lora", "full", "scratch")
RATES = (3e-3, 1e-2, 3e-2)
SEEDS = (0, 1, 2)


def compare(
    name: str,
    directory: Path,
    folder: Path,
    *,
    options: tuple[str, ...] = (),
    methods: tuple[str, ...] = METHODS,
    rates: tuple[float, ...] = RATES,
    seeds: tuple[int, ...] = SEEDS,
) -> Path:
    """Runs what is not finished in `directory` and stores <name>.transfer.json in `folder`; returns its path.

    options   further overrides of the runs
    """
    from core.bench import compare as sweep
    from core.compose import compose

    overrides = [f"backbone={name}", *options]
    own = [f"sweep.{key}={json.dumps(list(value))}" for key, value in (("lr", rates), ("seeds", seeds))]
    own.append(f"sweep.methods=[{','.join(methods)}]")
    cfg = compose("vision_medical", [*overrides, "sweep=compare", *own])
    sweep.run(cfg, directory, overrides=overrides)
    stored = folder / f"{name}.transfer.json"
    put(stored, (json.dumps(summary(directory, cfg), indent=1) + "\n").encode())
    return stored


def summary(directory: Path, cfg: Any) -> dict[str, Any]:
    """{"title", "rows": one per method with its interval and, paired by patient, what LoRA has more}."""
    from core.bench import cells, scores

    found, *_ = next(iter(cells.gather(cells.find(directory)[0]).values()))
    found = [*found, *cells.baselines(found[0].runs[0])]
    lora = next(cell for cell in found if cell.method == "lora")
    rows = []
    for cell in found:
        row = {"name": cell.method, "dice": cell.value, "ci95": cell.ci95, "seeds": cell.seed_values}
        row["lr"] = cell.runs[0].record.lr if cell.runs else None
        row["less"] = None if cell is lora else scores.compare(lora.scores, cell.scores)._asdict()
        rows.append(row)
    title = (
        f"Dice (organ a and lesion) on {cfg.data.test} test patients of the target site, {cfg.data.train} labelled "
        f"patients with 3 slices each; {cfg.trainer.max_steps} steps of {cfg.loader.batch_size} slices."
    )
    return {"title": title, "rows": sorted(rows, key=lambda row: row["dice"])}


def table(result: dict[str, Any]) -> list[str]:
    """Markdown lines of a stored comparison."""
    lines = [result["title"], "", "| row | Dice [95 %] | LoRA minus it [95 %] | by seed | lr |", "| --- " * 5 + "|"]
    for row in result["rows"]:
        more = row["less"]
        shown = "" if more is None else f"{more['difference']:+.3f} [{more['low']:.3f}, {more['high']:.3f}]"
        seeds = " ".join(f"{s:.3f}" for s in row["seeds"]) if row["lr"] else ""
        low, high = row["ci95"]
        name = {"none": "probe"}.get(row["name"], row["name"].replace("_", " "))
        rate = f"{row['lr']:g}" if row["lr"] else ""
        lines.append(f"| {name} | {row['dice']:.3f} [{low:.3f}, {high:.3f}] | {shown} | {seeds} | {rate} |")
    return lines
