"""What the weights are worth: 50 records in a new house style, against rows that were not pretrained.

Rows        nearest (copies the most similar training record), zero_shot (the base as it is), scratch (same shape, same
            initialiser, random numbers), bitfit, lora, full
Runs        those of `python -m domains.text.train`; each seed draws other records, the rate is chosen by the validation
            likelihood of the first seed
Intervals   95 % bootstrap over test records, of the score averaged over seeds; differences are paired by record
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

METHODS = {
    "none": (1e-3,),
    "bitfit": (1e-2, 3e-2),
    "lora": (3e-3, 1e-2),
    "full": (1e-3, 3e-3),
    "scratch": (3e-3, 1e-2),
}
SHOWN = {"none": "zero_shot"}
SCORES = ("exact", "slot_recall", "rouge_l", "nll")
TITLE = "60 test records in the target style, written greedily; values spelled anew. Percent; NLL in nat per token."


def compare(source: str, folder: Path | None = None, *, records: int = 50, seeds: int = 3, steps: int = 120) -> dict:
    """Scores and paired differences to LoRA, ready for JSON. Finished runs in `folder` are not run again."""
    folder = folder or Path("outputs", "pretrain", source, "transfer")
    found: dict[str, list[dict[str, np.ndarray]]] = {}
    rates: dict[str, float] = {}
    groups: list[str] = []
    for seed in range(seeds):
        for method, offered in METHODS.items():
            tried = {}
            for rate in offered if seed == 0 else (rates[method],):
                place = folder / f"{method}_lr{rate:g}_s{seed}"
                options = [f"adapter={method}", f"optim.lr={rate}", f"seed={seed}", f"data.train={records}"]
                tried[rate] = run(place, [*options, f"backbone.source={source}", f"trainer.max_steps={steps}"])
            rates[method] = min(tried, key=lambda rate: tried[rate]["val"])
            best = tried[rates[method]]
            found.setdefault(SHOWN.get(method, method), []).append(best["scores"])
            if method == "none":
                found.setdefault("nearest", []).append(best["nearest"])
            groups = best["groups"]
    chosen = {SHOWN.get(method, method): rate for method, rate in rates.items() if method not in SHOWN}
    return {"title": TITLE, "records": records, "steps": steps, **summary(found, chosen, groups)}


def run(folder: Path, overrides: list[str]) -> dict[str, Any]:
    """{"val": validation NLL, "scores": {name: (items,)}, "nearest": scores of that baseline, "groups"} of one run."""
    from core.bench import result
    from core.compose import compose
    from core.errors import PeftError
    from core.training.run import run as train

    try:
        record = result.read(folder)
    except PeftError:
        record = None
    if record is None or record.status != "done":
        record = train(compose("text", overrides), folder)
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    nearest = json.loads((folder / "baselines.json").read_text(encoding="utf-8"))["nearest"]["rows"]
    val = record.metrics.get("val", {}).get("nll")
    return {"val": val.value if val else math.nan, "scores": scores(rows), "nearest": scores(nearest),
            "groups": [row["group"] for row in rows]}  # fmt: skip


def scores(rows: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Name -> (items,) each row's own score; NLL is weighted by tokens, so that its mean is that of all tokens."""
    from domains.text import metrics

    tokens = np.array([row.get("tokens", 1) for row in rows], float)
    return {
        "exact": np.array([metrics.exact(row["prediction"], row["truth"]) for row in rows], float),
        "slot_recall": np.array([metrics.slot_recall(row["prediction"], row["slots"]) for row in rows]),
        "rouge_l": np.array([metrics.rouge_l(row["prediction"], row["truth"]) for row in rows]),
        "nll": np.array([row.get("nll", math.nan) for row in rows]) * tokens / tokens.mean(),
    }


def summary(
    found: dict[str, list[dict[str, np.ndarray]]], rates: dict[str, float], groups: list[str]
) -> dict[str, Any]:
    """{"rows": one per method, with intervals, and its difference to LoRA in exact match and slot recall}."""
    from core.bench.stats import bootstrap, paired

    mean = {name: {score: np.mean([s[score] for s in seeds], 0) for score in SCORES} for name, seeds in found.items()}
    rows = []
    for name, values in mean.items():
        row: dict[str, Any] = {"name": name, "lr": rates.get(name)}
        for score in SCORES:
            if np.isfinite(values[score]).all():
                row[score] = {"value": float(values[score].mean()), "ci95": bootstrap(values[score], groups)}
                row[score]["seeds"] = [float(s[score].mean()) for s in found[name]]
        if name != "lora" and "lora" in mean:
            for score in ("exact", "slot_recall"):
                row[f"lora - {score}"] = paired(mean["lora"][score], values[score], groups)._asdict()
        rows.append(row)
    return {"test": len(groups), "rows": rows}


def table(result: dict[str, Any]) -> list[str]:
    """Markdown lines of a stored comparison."""
    lines = [
        f"{result['records']} records, {result['steps']} steps of 16. {result['title']}",
        "",
        "| row | exact [95 %] | slot recall [95 %] | ROUGE-L | NLL | LoRA minus it, exact | by seed, exact | lr |",
        "| --- " * 8 + "|",
    ]
    for row in result["rows"]:
        cells = [row["name"]]
        for score in ("exact", "slot_recall"):
            low, high = (100 * end for end in row[score]["ci95"])
            cells.append(f"{100 * row[score]['value']:.1f} [{low:.1f}, {high:.1f}]")
        cells.append(f"{100 * row['rouge_l']['value']:.1f}")
        cells.append(f"{row['nll']['value']:.3f}" if "nll" in row else "")
        d = row.get("lora - exact")
        cells.append("" if d is None else f"{100 * d['difference']:+.1f} [{100 * d['low']:.1f}, {100 * d['high']:.1f}]")
        cells.append(" ".join(f"{100 * value:.1f}" for value in row["exact"]["seeds"]))
        cells.append("" if row["lr"] is None else f"{row['lr']:g}")
        lines.append("| " + " | ".join(cells) + " |")
    return lines
