"""What the weights are worth: few-label secondary structure (Q3), against rows that were not pretrained.

Rows        majority and one-hot window (no network), scratch (same shape, same initialiser), probe, LoRA, full
Seeds       each draws other labelled proteins; validation proteins choose the step, and on the first seed the rate
Intervals   95 % bootstrap over groups of test proteins, of the score averaged over seeds; differences are paired
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from core.contracts import Audit, Backbone, Data, Split
from domains.protein.pretraining.corpus import read, real_data, transfer_pool
from domains.protein.pretraining.initialiser import initialise
from domains.protein.pretraining.loop import one_gelu

LINEAR = ["attn.q", "attn.k", "attn.v", "attn.out", "mlp.in", "mlp.out"]
METHODS = {
    "scratch": ("full", {}, (1e-3, 3e-3, 6e-3)),
    "probe": ("none", {}, (3e-2, 1e-1)),
    "lora": ("lora", {"targets": LINEAR, "rank": 8, "alpha": 16.0}, (1e-3, 3e-3, 1e-2)),
    "full": ("full", {}, (1e-3, 3e-3)),
}


class HeldOutStructure(Data):
    """Real secondary structure: labelled proteins that pretraining has not seen, FLIP's official test.

    seed         which `train` proteins of the pool are labelled; `val` more are for choosing rates and steps
    residues     proteins are cut to their first so many
    """

    kind = "real"

    def __init__(self, folder: Path, *, seed: int = 0, train: int = 50, val: int = 32, residues: int = 128):
        self.folder, self.seed, self.train, self.val, self.residues = folder, seed, train, val, residues
        self._items: dict[str, list[dict[str, Any]]] = {}

    def setup(self) -> None:
        rows = read(self.folder, "secondary_structure")
        pool = [self._item(row) for row in transfer_pool(rows)]
        order = np.random.default_rng(self.seed).permutation(len(pool) - self.val)
        test = [self._item(row) for row in rows if row["split"] == "test"]
        self._items = {
            "train": [pool[i] for i in order[: self.train]],
            "val": pool[-self.val :],
            "test": [item for item in test if item["resolved"].count("1") >= 20],
        }

    def _item(self, row: dict[str, str]) -> dict[str, Any]:
        part = {key: row[key][: self.residues] for key in ("sequence", "label", "resolved")}
        return {"id": row["id"], "group": row["id"], **part}

    def items(self, split: Split):
        return self._items[split]

    def length(self, item: dict[str, Any]) -> int:
        return len(item["sequence"])

    def audit(self) -> Audit:
        return Audit()


def questions(which: str) -> tuple[str, tuple[int, ...], Callable[[int, int], Data]]:
    """(title, numbers of labelled proteins, (seed, number) -> data) of the comparison of `mini` or `small`."""
    if which == "mini":
        from domains.protein.data.twin import Twin

        title = "Q3 on 150 proteins (50 families) of the twin's world, families that pretraining has not seen."
        return title, (40,), lambda seed, labelled: Twin("structure", seed=seed, train=labelled)
    folder = real_data()
    title = (
        "Q3 (H, E, C) on FLIP's official secondary-structure test set (half of NEW364), first 128 residues, resolved "
        "ones; labelled proteins come from a pool that pretraining has not seen, 32 more choose rate and step."
    )
    return title, (20, 50), lambda seed, labelled: HeldOutStructure(folder, seed=seed, train=labelled)


def compare(source: str, data: Callable[[int], Data], **options: Any) -> dict[str, Any]:
    """Scores and paired differences, ready for JSON; arguments as of `measure`."""
    return summary(*measure(source, data, **options))


Measured = dict[str, tuple[list[np.ndarray], float | None]]


def measure(
    source: str,
    data: Callable[[int], Data],
    *,
    seeds: int = 3,
    steps: int = 125,
    methods: tuple[str, ...] = tuple(METHODS),
) -> tuple[Measured, list[str]]:
    """({row: (test scores of each seed, learning rate)}, group of each test protein).

    source   embedded name or folder of weights       data   seed -> data set, not yet set up
    """
    from domains.protein.tasks.residue import ResidueClassification

    measured: Measured = {}
    for seed in range(seeds):
        rows = data(seed)
        rows.setup()
        task = ResidueClassification(classes="HEC", measure="q3")
        groups = [item["group"] for item in rows.items("test")]
        for name, found in task.baselines(rows).items():
            task.score(found)
            measured.setdefault(name, ([], None))[0].append(np.array([row["score"] for row in found]))
        for name in methods:
            method, options, rates = METHODS[name]
            began, best = time.perf_counter(), (-1.0, None, 0.0)
            for rate in rates if seed == 0 else (measured[name][1],):
                value, test = adapt(source, rows, task, method, options, rate, steps, seed, scratch=name == "scratch")
                if value > best[0]:
                    best = (value, test, rate)
            measured.setdefault(name, ([], best[2]))[0].append(best[1])
            seconds = time.perf_counter() - began
            print(f"  seed {seed}  {name:8} {100 * best[1].mean():.1f}  lr {best[2]:g}  {seconds:.0f} s", flush=True)
    return measured, groups


def summary(measured: Measured, groups: list[str]) -> dict[str, Any]:
    """{"rows": one per method with interval, "differences": LoRA minus each other row, paired by protein}."""
    from core.bench.stats import bootstrap, paired

    mean = {name: np.mean(scores, 0) for name, (scores, _) in measured.items()}
    rows = [
        {
            "name": name,
            "q3": float(mean[name].mean()),
            "ci95": bootstrap(mean[name], groups),
            "seeds": [float(values.mean()) for values in scores],
            "lr": rate,
        }
        for name, (scores, rate) in measured.items()
    ]
    others = [name for name in mean if name != "lora" and "lora" in mean]
    differences = [{"name": f"lora - {name}", **paired(mean["lora"], mean[name], groups)._asdict()} for name in others]
    return {"test": len(groups), "groups": len(set(groups)), "rows": rows, "differences": differences}


@one_gelu()
def adapt(
    source: str,
    data: Data,
    task: Any,
    method: str,
    options: dict[str, Any],
    rate: float,
    steps: int,
    seed: int,
    *,
    scratch: bool = False,
    batch: int = 8,
    every: int = 25,
) -> tuple[float, np.ndarray]:
    """(best validation Q3, test Q3 per protein at that step)."""
    from core.adapters import attach, head, trainable
    from domains.protein.backbones.hf_esm import HFEsm

    model: Backbone = HFEsm(source, pretrained=not scratch)
    if scratch:
        initialise(model.net, 100 + seed)
    own = task.head(model)
    torch.nn.init.zeros_(own.linear.weight)
    attach(model, method, head=own, seed=seed, **options)
    parameters = list(trainable(model).values())
    optimiser = torch.optim.AdamW(parameters, rate, weight_decay=0.01)
    rng, best = np.random.default_rng(seed), (-1.0, None)
    train = list(data.items("train"))
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 10) * (1 - 0.9 * step / steps)
        picked = [train[i] for i in rng.choice(len(train), min(batch, len(train)), replace=False)]
        inputs = task.collate(picked, model.tokenizer)
        total, items = task.loss(model(inputs), inputs, head(model))
        optimiser.zero_grad()
        (total / items).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        if (step + 1) % every == 0 or step + 1 == steps:
            value = float(np.mean(_scores(model, task, data.items("val"))))
            if value > best[0]:
                best = (value, [p.detach().clone() for p in parameters])
    with torch.no_grad():
        for p, kept in zip(parameters, best[1], strict=True):
            p.copy_(kept)
    return best[0], _scores(model, task, data.items("test"))


@torch.no_grad()
def _scores(model: Backbone, task: Any, items: Any) -> np.ndarray:
    """(items,) share of right residues, in the order of `items`."""
    from core.adapters import head

    order = sorted(range(len(items)), key=lambda i: len(items[i]["sequence"]))
    rows: dict[int, dict[str, Any]] = {}
    for part in _parts(order, 16):
        inputs = task.collate([items[i] for i in part], model.tokenizer)
        rows |= zip(part, task.predict(model(inputs), inputs, head(model)), strict=True)
    ordered = [rows[i] | {"group": items[i]["group"]} for i in range(len(items))]
    task.score(ordered)
    return np.array([row["score"] for row in ordered])


def _parts(order: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(order), size):
        yield order[start : start + size]


def table(result: dict[str, Any]) -> list[str]:
    """Markdown lines of stored comparisons: {"title", "comparisons": [{"labelled", **compare(...)}]}."""
    lines = [
        result["title"],
        "",
        "| labelled | row | Q3 [95 %] | LoRA minus it [95 %] | by seed | lr |",
        "| --- " * 6 + "|",
    ]
    for one in result["comparisons"]:
        differences = {d["name"].removeprefix("lora - "): d for d in one["differences"]}
        for row in one["rows"]:
            d = differences.get(row["name"])
            shown = "" if d is None else f"{100 * d['difference']:+.1f} [{100 * d['low']:.1f}, {100 * d['high']:.1f}]"
            low, high = row["ci95"]
            seeds = " ".join(f"{100 * s:.1f}" for s in row["seeds"])
            rate = "" if row["lr"] is None else f"{row['lr']:g}"
            lines.append(
                f"| {one['labelled']} | {row['name']} | {100 * row['q3']:.1f} [{100 * low:.1f}, {100 * high:.1f}] "
                f"| {shown} | {seeds} | {rate} |"
            )
    return lines
