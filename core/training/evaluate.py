"""Prediction rows of a split, their scores, and the rivals that need no training: baselines and the zero-shot score."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from core.bench.result import write_whole
from core.contracts import Backbone, Data, Metric, Task
from core.data.seeding import derive, guard
from core.errors import ConfigError, did_you_mean
from core.training.checkpoint import plain
from core.training.memory import out_of_memory
from core.training.module import PeftModule, in_order

PREDICTIONS, BASELINES = "predictions.jsonl", "baselines.json"


@torch.no_grad()
def rows(module: PeftModule, trainer, loaders, split: str, *, final: bool = True) -> list[dict[str, Any]]:
    """One row per item of `split`, in the items' order: id, group, truth, prediction. On this process alone."""
    device = trainer.strategy.root_device
    module.to(device).eval()
    found: list[dict[str, Any]] = []
    with trainer.precision_plugin.val_step_context(), out_of_memory(f"split {split}", "a batch of the evaluation"):
        for batch in loaders.loader(split):
            batch = trainer.precision_plugin.convert_input(batch)
            batch = trainer.strategy.batch_to_device(batch, device)
            found += module.task.infer(module.model, batch, module.head, final=final)
    return in_order(found, loaders.items(split))


def check_metric(module: PeftModule, trainer, loaders, name: str, seed: int) -> None:
    """ConfigError where validation has no metric of that name to select the checkpoint by: only scoring tells."""
    with guard(derive(seed, "metric")):
        found = rows(module, trainer, loaders, "val", final=False)
    known = ["loss", *sorted(module.task.score(found))]
    if name not in known:
        raise ConfigError("metric.name", name, ", ".join(known), did_you_mean(name, known))


@torch.no_grad()
def retention(module: PeftModule, trainer, data: Data, seed: int, *, base: bool) -> Metric | None:
    """The task's score of what the base could do before: of the base alone, or with the active adapter."""
    with guard(derive(seed, "retention")), _base(module.model) if base else nullcontext():
        model = module.to(trainer.strategy.root_device).eval().model
        with trainer.precision_plugin.val_step_context(), out_of_memory("retention", "the task's retention"):
            return module.task.retention(model, data)


def strata(task: Task, data: Data, found: list[dict[str, Any]], metric: str, least: int = 10) -> dict[str, Any]:
    """ "test, <stratum>" -> {metric: score} for every part of the test split with at least `least` items."""
    scores = {}
    for name, ids in data.strata("test").items():
        wanted = set(ids)
        part = [dict(row) for row in found if str(row["id"]) in wanted]  # copies: scoring writes into rows
        if least <= len(part) < len(found):
            scores[f"test, {name}"] = {metric: task.score(part)[metric]}
    return scores


def write_rows(path: Path, found: list[dict[str, Any]]) -> None:
    """predictions.jsonl, whole or not at all."""
    write_whole(path, "".join(json.dumps(row, ensure_ascii=False, default=_plain) + "\n" for row in found))


def rivals(task: Task, backbone: Backbone, data: Data, items: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """name -> {metrics, rows} of every baseline and, where the task has one, `zero_shot` of the base alone."""
    named = dict(task.baselines(data))
    base = _base(backbone)
    with base, torch.no_grad():
        backbone.eval()
        zero = task.zero_shot(backbone, data)
    if zero is not None:
        named["zero_shot"] = zero
    wanted = {str(item["id"]) for item in items}
    found = {}
    for name, predicted in named.items():
        predicted = in_order([row for row in predicted if str(row["id"]) in wanted], items)
        if predicted:
            scores = task.score(predicted)
            found[name] = {"metrics": plain(scores), "rows": predicted}
    return found


def _base(backbone: Backbone):
    from core.adapters import use

    state = getattr(backbone, "_peft", None)
    return use(backbone, None) if state is not None else nullcontext()


def write_rivals(path: Path, found: dict[str, dict[str, Any]]) -> None:
    write_whole(path, json.dumps(found, indent=1, ensure_ascii=False, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    """numpy and torch scalars and arrays as JSON has them."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} in a prediction row cannot be written")
