"""The resumable state of a pretraining run: one safetensors file, written atomically.

model|<parameter>, exp_avg|<parameter>, exp_avg_sq|<parameter>, step|<parameter>; the metadata holds the recipe and the
facts (step, seconds, curve) as JSON. No random state: the loop draws from (seed, step).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from core.errors import DataError


def save(path: Path, recipe: Any, model: nn.Module, optimiser: torch.optim.Optimizer, facts: dict[str, Any]) -> None:
    """Write atomically: a kill leaves the old state or the new one."""
    from safetensors.torch import save_file

    tensors = {f"model|{name}": p.detach().contiguous() for name, p in model.named_parameters()}
    for name, p in model.named_parameters():
        tensors |= {f"{key}|{name}": value for key, value in optimiser.state[p].items()}
    notes = {"recipe": json.dumps(asdict(recipe)), "facts": json.dumps(facts)}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, notes)
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def restore(
    path: Path,
    recipe: Any,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    same_start: Callable[[dict[str, Any], Any, int], bool],
) -> dict[str, Any]:
    """Fill model and optimiser from a state; returns its facts. DataError: the state is of another recipe.

    same_start   (stored recipe, recipe, step): may the number of steps differ?
    """
    from safetensors import safe_open

    with safe_open(path, "pt") as stored:
        notes = stored.metadata()
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}
    theirs, ours = json.loads(notes["recipe"]), asdict(recipe)
    facts = json.loads(notes["facts"])
    changed = [f"{key}={theirs.get(key)}" for key in ours if theirs.get(key) != ours[key]]
    if changed == [f"steps={theirs['steps']}"] and same_start(theirs, recipe, facts["step"]):
        changed = []
    if changed:
        raise DataError(
            where=str(path),
            got=f"a run with {', '.join(changed)}",
            allowed="the same recipe",
            fix="choose another --state or delete it",
        )
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(tensors[f"model|{name}"])
            if f"step|{name}" in tensors:  # not the contact regression: no loss reaches it
                optimiser.state[p] = {key: tensors[f"{key}|{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
    return facts
