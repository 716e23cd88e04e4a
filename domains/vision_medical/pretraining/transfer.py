"""What the weights are worth at the twin's target site, by the same runs that a user starts: probe, LoRA, everything,
and everything from a random start.

Seeds       each labels other patients for training; validation and test patients stay
Rates       the best of two or three on the validation patients of seed 0
Intervals   95 % bootstrap over test patients of the Dice averaged over seeds; differences are paired by patient
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from core.pretraining import put

METHODS = {"none": 3e-2, "lora": 1e-2, "full": 1e-2, "scratch": 1e-2}
SEEDS = (0, 1, 2)


def compare(
    name: str,
    directory: Path,
    folder: Path,
    *,
    options: tuple[str, ...] = (),
    methods: tuple[str, ...] = tuple(METHODS),
    seeds: tuple[int, ...] = SEEDS,
) -> Path:
    """Runs what is not finished in `directory` and stores <name>.transfer.json in `folder`; returns its path.

    options   further overrides of the runs
    """
    from core.bench import result
    from core.compose import compose
    from core.training.run import run

    records: dict[str, list[Path]] = {}
    for seed in seeds:
        for method in methods:
            given = [f"adapter={method}", f"optim.lr={METHODS[method]}", f"seed={seed}", f"backbone={name}", *options]
            cfg, place = compose("vision_medical", given), directory / f"{method}_s{seed}"
            if not (place / "result.json").is_file() or result.read(place).status != "done":
                run(cfg, place)
            records.setdefault(method, []).append(place)
    stored = folder / f"{name}.transfer.json"
    put(stored, (json.dumps(summary(records, cfg), indent=1) + "\n").encode())
    return stored


def summary(runs: dict[str, list[Path]], cfg: Any) -> dict[str, Any]:
    """{"title", "rows": one per method and baseline with its interval and, paired by patient, what LoRA has more}.

    runs   method -> directories of its runs, one per seed      cfg   what they share
    """
    from core.bench import cells, result, scores, stats

    found = {m: scores.scores("dice", [scores.read_rows(place) for place in places]) for m, places in runs.items()}
    first = cells.Run(runs["lora"][0], result.read(runs["lora"][0]))
    found |= {cell.method: cell.scores for cell in cells.baselines(first)}
    rows = []
    for name, one in found.items():
        each = [result.read(place).headline().value for place in runs.get(name, [])]
        more = None if name == "lora" else scores.compare(found["lora"], one)._asdict()
        row = {"name": name, "dice": one.value, "ci95": stats.interval(one.drawn), "seeds": each}
        rows.append(row | {"lr": METHODS.get(name), "less": more})
    title = (
        f"Dice (organ a and lesion) on {cfg.data.test} test patients of the target site, {cfg.data.train} labelled "
        f"patients with 3 slices each, others for every seed; {cfg.trainer.max_steps} steps of {cfg.loader.batch_size} "
        "slices."
    )
    return {"title": title, "rows": sorted(rows, key=lambda row: row["dice"])}


def table(result: dict[str, Any]) -> list[str]:
    """Markdown lines of a stored comparison."""
    lines = [result["title"], "", "| row | Dice [95 %] | LoRA minus it [95 %] | by seed | lr |", "| --- " * 5 + "|"]
    for row in result["rows"]:
        more = row["less"]
        shown = "" if more is None else f"{more['difference']:+.3f} [{more['low']:.3f}, {more['high']:.3f}]"
        seeds = " ".join(f"{s:.3f}" for s in row["seeds"])
        low, high = row["ci95"]
        name = {"none": "probe"}.get(row["name"], row["name"].replace("_", " "))
        rate = f"{row['lr']:g}" if row["lr"] else ""
        lines.append(f"| {name} | {row['dice']:.3f} [{low:.3f}, {high:.3f}] | {shown} | {seeds} | {rate} |")
    return lines
