"""Run directories with the shape of real ones, made of seeded random numbers: no training, no network."""

import json
import math
from pathlib import Path

import numpy as np

from core.bench import result, stats
from core.bench.result import MetricRecord, Record

# preset: (quality, trainable, saved MiB, s/step, lr)
METHODS = {
    "none": (0.00, 0, 6.1, 0.031, 3e-3),
    "full": (0.085, 814_386, 222.0, 0.101, 3e-4),
    "scratch": (-0.05, 814_386, 222.0, 0.101, 1e-3),
    "bitfit": (0.03, 5_120, 149.0, 0.074, 3e-3),
    "lora": (0.08, 16_384, 118.0, 0.062, 3e-3),
    "dora": (0.082, 17_408, 166.0, 0.083, 1e-3),
    "ia3": (0.025, 2_048, 151.0, 0.066, 1e-2),
    "pfeiffer": (0.07, 21_120, 131.0, 0.068, 1e-3),
}
ITEMS = 178


def rows(method: str, seed: int, items: int = ITEMS) -> list[dict]:
    """Items differ more than methods do, seeds differ least: what makes pairing worth while."""
    item = np.random.default_rng(7).beta(6, 5, items)
    own = np.random.default_rng(abs(hash_of(method)) + seed)
    score = np.clip(item + METHODS.get(method, (-0.09,))[0] + own.normal(0, 0.05, items), 0, 1)
    return [
        {
            "id": f"protein_{i}",
            "group": f"cluster_{i // 2}",
            "truth": "HHEC",
            "prediction": "HHEE",
            "score": round(s, 4),
        }
        for i, s in enumerate(score.tolist())
    ]


def hash_of(text: str) -> int:
    return sum(ord(letter) * 31**place for place, letter in enumerate(text)) % 10_000


def metric(found: list[dict], n: int | None = None) -> MetricRecord:
    values, groups = [row["score"] for row in found], [row["group"] for row in found]
    ends = stats.bootstrap(values, groups)
    return MetricRecord(value=float(np.mean(values)), n=n or len(found), ci95=ends)


def write_run(directory: Path, method: str = "lora", seed: int = 0, *, items: int = ITEMS, **changes) -> Record:
    """A finished run of `method` under `directory`; `changes` replace fields of its record."""
    directory.mkdir(parents=True, exist_ok=True)
    _quality, trainable, saved, step, lr = METHODS[method]
    found = rows(method, seed, items)
    score = metric(found)
    active = method not in ("none", "full", "scratch")
    fields = {
        "run_id": directory.name, "status": "done", "started": "2026-11-24T14:03:12Z", "ended": "2026-11-24T14:04:02Z",
        "wall_s": 200 * step * 3.9, "domain": "protein", "task": "secondary_structure",
        "data": "flip_secondary_structure",
        "data_kind": "real", "split_hash": "9c1185a5c5e9fc54612808977ee8f548b2258d31", "backbone": "esm2_small",
        "base_fingerprint": "sha256:51c0ffee51c0ffee", "base_parameters": 814_386, "method": method,
        "options": {"rank": 8, "alpha": 16.0} if method in ("lora", "dora") else {},
        "targets": ["attn.q", "attn.v"] if active else [], "paths": {"call": 8} if active else {},
        "trainable": trainable, "head_trainable": 387, "fraction": trainable / 814_386,
        "adapter_bytes": 4 * trainable + 4200,
        "saved_activation_bytes": int(saved * 2**20), "peak_memory_bytes": int((saved + 640) * 2**20),
        "memory_kind": "process RSS", "flops_forward": 3.1e8, "flops_backward": 4.4e8, "step_time_s": step,
        "examples_per_s": 16 / step,
        "plan": {"peak_memory_bytes": int((saved + 612) * 2**20), "wall_s": 200 * step * 3.5},
        "steps": 200, "epochs": 1.4, "examples_seen": 3200, "batch_size": 16, "precision": "32-true",
        "devices": {"kind": "cpu", "count": 1}, "lr": lr, "seed": seed, "tuning_group": "e61a", "tuning_budget": 4,
        "metrics": {"val": {"q3": MetricRecord(value=score.value + 0.02, n=90)},
                    "test": {"q3": score, "q3_per_residue": MetricRecord(value=score.value + 0.01, n=41_204)}},
        "primary": {"name": "q3", "split": "test", "value": score.value},
        "merge_error": 3.1e-7 if active else None,
        "certificate": {"live": (8, 8) if active else None, "base_bit_equal": method != "full" or None,
                        "splits_disjoint": True, "reload_equal": True},
        "command": f"python -m domains.protein.train adapter={method} data=flip_secondary_structure seed={seed}",
        "versions": {"python": "3.11.7", "peft-atlas": "0.1.0", "torch": "2.13.0", "lightning": "2.6.6"},
        "git": {"commit": "0fa8bfc0c0a1d2e3f405162738495a6b7c8d9e0f", "dirty": False},
        "hardware": "AMD EPYC 7B13, 2 cores", "config_hash": f"{hash_of(method + str(seed)):064x}",
    }  # fmt: skip
    record = Record(**{**fields, **changes})
    result.write(directory, record)
    (directory / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    return record


def add_files(directory: Path, seed: int = 0) -> None:
    """The other files that a card reads: curve, picture, baselines, sites, audit, config."""
    random = np.random.default_rng(seed)
    lines = ["step,split,name,value"]
    for step in range(1, 201):
        lines.append(f"{step},train,loss,{1.1 * math.exp(-step / 60) + 0.6 + random.normal(0, 0.04):.5f}")
        if step % 20 == 0:
            lines.append(f"{step},val,loss,{1.1 * math.exp(-step / 60) + 0.68 + random.normal(0, 0.01):.5f}")
            lines.append(f"{step},val,q3,{0.64 - 0.3 * math.exp(-step / 50) + random.normal(0, 0.006):.5f}")
    (directory / "metrics.csv").write_text("\n".join(lines) + "\n")
    plots = directory / "plots"
    plots.mkdir(exist_ok=True)
    (plots / "strip_worst_protein.svg").write_text(strip(random))
    baseline = {}
    for name in ("majority", "one_hot_window"):
        found = rows(name, 0)
        baseline[name] = {"metrics": {"q3": metric(found).model_dump(mode="json")}, "rows": found}
    (directory / "baselines.json").write_text(json.dumps(baseline))
    sites = [
        {"site": f"layers.{i}.self_attn.{p}_proj:weight|attn.{p}", "role": f"attn.{p}", "path": "call",
         "why": "read in its own forward", "shape": [128, 128], "parameters": 2048}
        for i in range(4) for p in "qv"
    ]  # fmt: skip
    (directory / "sites.json").write_text(json.dumps(sites))
    counts = (1200 * np.exp(-(((np.arange(24) - 7) / 5) ** 2))).astype(int).tolist()
    audit = {
        "facts": {"items": {"train": 9712, "val": 1080, "test": 178}, "longest sequence": 1632,
                  "length": {"bins": [25 * i for i in range(25)], "counts": counts},
                  "classes": {"bins": ["H", "E", "C"], "counts": [912_034, 511_220, 1_020_331]},
                  "residues without label": 0.0213, "cropped to 512": 611},
        "warnings": ["14 test proteins are more than 40 % identical to a training protein (most: 62 %, protein_17)",
                     "611 of 10,970 sequences are longer than 512 residues and are cropped"],
        "errors": [],
    }  # fmt: skip
    (directory / "audit.json").write_text(json.dumps(audit))
    (directory / "config.yaml").write_text(
        "seed: 0\nadapter:\n  _target_: core.adapters.methods.lora.LoRA\n  rank: 8\n"
    )
    (directory / "run.log").write_text("log\n")


def strip(random) -> str:
    """A secondary-structure strip like the field's own: truth over prediction."""
    colours = {"H": "#c2510a", "E": "#1f5fa8", "C": "#d5dae0"}
    parts = []
    for y, name in ((22, "truth"), (50, "lora")):
        parts.append(f'<text x="0" y="{y + 14}" font-size="12" font-family="system-ui">{name}</text>')
        x, letter = 60, "C"
        while x < 890:
            width = int(random.integers(12, 60))
            parts.append(f'<rect x="{x}" y="{y}" width="{width}" height="20" fill="{colours[letter]}"/>')
            x, letter = x + width, "HEC"[int(random.integers(0, 3))]
    title = (
        '<text x="60" y="12" font-size="12" font-family="system-ui">protein_17, 214 residues, Q3 0.41 (worst)</text>'
    )
    box = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 950 80" width="950" height="80">'
    return box + title + "".join(parts) + "</svg>"


def sweep(folder: Path, *, seeds=(0, 1, 2), methods=tuple(METHODS), **changes) -> list[Path]:
    """A finished comparison: every method at every seed, one failed cell, the trials that chose each learning rate."""
    made = []
    for method in methods:
        for seed in seeds:
            path = folder / f"{method}_s{seed}"
            if (method, seed) == ("ia3", 2):
                got, fix = "loss nan, batch protein_8, protein_90", "lower optim.lr"
                error = {"class": "TrainingError", "code": 5, "where": "step 41", "got": got, "fix": fix}
                write_run(
                    path, method, seed, status="failed", error=error, metrics={}, primary=None, steps=41, **changes
                )
            else:
                write_run(path, method, seed, **changes)
            made.append(path)
        best = METHODS[method][4]
        for lr in (3e-4, 1e-3, 3e-3, 1e-2):
            value = 0.6 + METHODS[method][0] - 0.02 * abs(math.log(lr / best))
            score = MetricRecord(value=value, n=90)
            primary = {"name": "q3", "split": "val", "value": value}
            write_run(folder / "trials" / f"{method}_lr{lr:g}_s0", method, 0, lr=lr, metrics={"val": {"q3": score}},
                      primary=primary, **changes)  # fmt: skip
    return made
