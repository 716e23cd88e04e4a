"""What the weights are worth: adapted to what pretraining has not seen, against random weights of the same shape.

Every row is an ordinary run (`python -m domains.speech.train` with the overrides of `QUESTIONS`). On the first seed the
learning rate is the one with the best validation; further seeds draw other training items and other random weights.
Intervals are 95 % bootstraps over groups of test items, of the score averaged over seeds; differences are paired.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

RATES = {"none": (3e-2, 1e-1), "lora": (3e-3, 1e-2), "full": (1e-3, 3e-3), "scratch": (1e-3, 3e-3)}
QUESTIONS = {  # which -> title, overrides, name of the score, its unit, factor that it is shown with
    "mini": (
        "A new speaker of the twin's world, ten sentences: mel-cepstral distortion of free synthesis on 12 others "
        "(lower is better). The zero-shot row is the base, speaking with the mean of its voices.",
        ["backbone=acoustic_mini", "data=twin", "data.test=12", "task=tts", "task.rounds=4", "task.forgetting=0"],
        "mcd",
        "dB",
        1,
    ),
    "flite": (
        "LJ Speech, five minutes: mel-cepstral distortion of free synthesis on 12 test utterances (lower is better). "
        "The zero-shot row is the base, speaking with the mean of its voices.",
        [
            "backbone=acoustic_flite",
            "data=lj",
            "data.minutes=5",
            "+data.limit={val: 8, test: 12}",
            "task=tts",
            "task.rounds=4",
            "task.forgetting=0",
        ],
        "mcd",
        "dB",
        1,
    ),
    "listener": (
        "Which of ten digits five real speakers say (FSDD), 100 labelled recordings, 250 test recordings of the same "
        "speakers: unweighted average recall, %.",
        [
            "backbone=listener",
            "data=fsdd_digits",
            "+data.limit={train: 100, val: 50, test: 250}",
            "task=classification",
            "loader.batch_size=32",
        ],
        "uar",
        "%",
        100,
    ),
}


def compare(which: str, out: Path, *, seeds: int = 2, steps: int = 60) -> dict[str, Any]:
    """{"title", "metric", "unit", "rows", "differences"}; the runs lie in `out`, finished ones are not run again."""
    from core.bench.stats import bootstrap, paired

    title, overrides, metric, unit, factor = QUESTIONS[which]
    scores: dict[str, list[np.ndarray]] = {}
    chosen: dict[str, float] = {}
    groups: list[str] = []
    for method, rates in RATES.items():
        tried = {rate: _run(overrides, method, rate, 0, steps, out) for rate in rates}
        best = min(tried, key=lambda rate: tried[rate]["selected"])
        chosen[method] = best
        for seed in range(seeds):
            done = tried[best] if seed == 0 else _run(overrides, method, best, seed, steps, out)
            scores.setdefault(method, []).append(done["scores"])
            groups = done["groups"]
            for name, other in done["rivals"].items():
                if seed == 0 and method == "none":
                    scores[name] = [other]
    mean = {name: factor * np.mean(values, 0) for name, values in scores.items()}
    rows = [
        {
            "name": name,
            "score": float(mean[name].mean()),
            "ci95": bootstrap(mean[name], groups),
            "seeds": [float(factor * values.mean()) for values in scores[name]],
            "lr": chosen.get(name),
        }
        for name in mean
    ]
    others = [name for name in mean if name != "lora"]
    differences = [{"name": name, **paired(mean["lora"], mean[name], groups)._asdict()} for name in others]
    return {"title": title, "metric": metric, "unit": unit, "steps": steps, "rows": rows, "differences": differences}


def _run(overrides: list[str], method: str, rate: float, seed: int, steps: int, out: Path) -> dict[str, Any]:
    """{"selected" on validation, less is better; "scores" and "groups" of the test items; "rivals": name -> scores}."""
    from core.bench import result
    from core.compose import compose as composed
    from core.training.run import run

    directory = out / f"{method}_{rate:g}_s{seed}"
    if not (directory / "result.json").exists() or result.read(directory).status != "done":
        own = [f"adapter={method}", f"optim.lr={rate}", f"seed={seed}", f"trainer.max_steps={steps}"]
        run(composed("speech", [*overrides, *own]), directory)
    record = result.read(directory)
    watched = record.metrics["val"][(record.selected or record.primary).name]
    rows = [json.loads(line) for line in (directory / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    rivals = json.loads((directory / "baselines.json").read_text(encoding="utf-8"))
    print(f"  {directory.name:24} {record.primary.name} {record.primary.value:.3f}", flush=True)
    return {
        "selected": -watched.value if watched.higher_is_better else watched.value,
        "scores": np.array([row["score"] for row in rows]),
        "groups": [row["group"] for row in rows],
        "rivals": {name: np.array([row["score"] for row in one["rows"]]) for name, one in rivals.items()},
    }


def table(result: dict[str, Any]) -> list[str]:
    """Markdown lines of a stored comparison."""
    unit = result["unit"]
    lines = [
        result["title"],
        "",
        f"| row | {result['metric']}, {unit} [95 %] | LoRA minus it [95 %] | by seed | lr |",
        "| --- " * 5 + "|",
    ]
    differences = {d["name"]: d for d in result["differences"]}
    for row in result["rows"]:
        d = differences.get(row["name"])
        shown = "" if d is None else f"{d['difference']:+.2f} [{d['low']:.2f}, {d['high']:.2f}]"
        low, high = row["ci95"]
        seeds = " ".join(f"{s:.2f}" for s in row["seeds"])
        rate = "" if row["lr"] is None else f"{row['lr']:g}"
        lines.append(f"| {row['name']} | {row['score']:.2f} [{low:.2f}, {high:.2f}] | {shown} | {seeds} | {rate} |")
    return lines
