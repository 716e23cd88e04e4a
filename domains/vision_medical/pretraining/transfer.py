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
    name: str, directory: Path, folder: Path, *, options: tuple[str, ...] = (), seeds: tuple[int, ...] = SEEDS
) -> Path:
    """Runs what is not finished in `directory` and stores <name>.transfer.json in `folder`; returns its path.

    options   further overrides of the runs
    """
    from core.bench import compare as sweep
    from core.compose import compose

    overrides = [f"backbone={name}", *options]
    own = [f"sweep.{key}={json.dumps(list(value))}" for key, value in (("lr", RATES), ("seeds", seeds))]
    own.append(f"sweep.methods=[{','.join(METHODS)}]")
    cfg = compose("vision_medical", [*overrides, "sweep=compare", *own])
    sweep.run(cfg, directory, overrides=overrides)
    stored = folder / f"{name}.transfer.json"
    put(stored, (json.dumps(summary(directory, cfg), indent=1) + "\n").encode())
    return stored


def summary(directory: Path, cfg: Any) -> dict[str, Any]:
    """{"rows": one per method with interval, "differences": LoRA minus each other row, paired by patient, ...}."""
    from core.bench import cells, scores, stats

    rates: dict[str, float] = {}
    found: dict[str, dict[int, list[dict[str, Any]]]] = {}
    for run in cells.find(directory)[0]:
        record = run.record
        if record.primary is None or record.primary.split != "test":
            continue
        method = str(record.config["choices"]["adapter"])
        found.setdefault(method, {})[record.seed] = run.rows
        rates[method] = record.config["optim"]["lr"]
    kept = {name: scores.scores("dice", [rows[s] for s in sorted(rows)]) for name, rows in found.items()}
    rows = [
        {
            "name": name,
            "dice": one.value,
            "ci95": stats.interval(one.drawn),
            "seeds": [_mean(found[name][s]) for s in sorted(found[name])],
            "lr": rates[name],
        }
        for name, one in ((m, kept[m]) for m in METHODS if m in kept)
    ]
    others = [name for name in METHODS if name in kept and name != "lora"]
    return {
        "title": f"Dice (organ a and lesion) on {cfg.data.test} test patients of the target site, {cfg.data.train} "
        f"labelled patients, 3 slices each; {cfg.trainer.max_steps} steps of {cfg.loader.batch_size} slices.",
        "rows": rows,
        "differences": [{"name": o, **scores.compare(kept["lora"], kept[o])._asdict()} for o in others],
    }


def _mean(rows: list[dict[str, Any]]) -> float:
    values = [row["score"] for row in rows if row.get("score") is not None]
    return sum(values) / len(values)


def table(result: dict[str, Any]) -> list[str]:
    """Markdown lines of a stored comparison."""
    lines = [result["title"], "", "| row | Dice [95 %] | LoRA minus it [95 %] | by seed | lr |", "| --- " * 5 + "|"]
    differences = {d["name"]: d for d in result["differences"]}
    for row in result["rows"]:
        d = differences.get(row["name"])
        shown = "" if d is None else f"{d['difference']:+.3f} [{d['low']:.3f}, {d['high']:.3f}]"
        seeds = " ".join(f"{s:.3f}" for s in row["seeds"])
        low, high = row["ci95"]
        name = {"none": "probe"}.get(row["name"], row["name"])
        lines.append(f"| {name} | {row['dice']:.3f} [{low:.3f}, {high:.3f}] | {shown} | {seeds} | {row['lr']:g} |")
    return lines
