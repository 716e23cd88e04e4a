"""A seeded pretraining loop that can be stopped anywhere: how the fields make their embedded weights.

A field gives the network, the loss of a step and what to measure. Draws must be a function of (seed, step) and of
nothing else; then weights, optimiser and step number are the whole state, and a run stopped and continued ends with
the same bits as one left alone.

State     one safetensors file, written atomically: model|<parameter>, exp_avg|.., exp_avg_sq|.., step|..; its metadata
          holds the recipe and the facts (step, seconds, curve) as JSON
Schedule  linear warm-up, constant, linear decay over the last part
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from core.errors import DataError


class Recipe(Protocol):
    """A frozen dataclass with at least these fields.

    warmup   steps until the full rate       decay   share of the steps over which the rate falls to 2 %
    clip     norm of the gradients at most
    """

    steps: int
    lr: float
    warmup: int
    decay: float
    clip: float


def rate(recipe: Any, step: int) -> float:
    fall = max(1, round(recipe.decay * recipe.steps))
    return recipe.lr * min(1.0, (step + 1) / recipe.warmup, max(0.02, (recipe.steps - step) / fall))


def same_start(stored: dict[str, Any], recipe: Any, step: int) -> bool:
    """Whether a run of another number of steps would have the same weights at `step`: no rate has differed."""
    other = replace(recipe, steps=stored["steps"])
    return all(rate(other, s) == rate(recipe, s) for s in range(step))


def train(
    recipe: Any,
    model: nn.Module,
    loss: Callable[[int], Tensor],
    evaluate: Callable[[], dict[str, float]],
    show: Callable[[dict[str, float]], str],
    state: Path,
    *,
    budget: float | None = None,
    every: int = 100,
    keep: int = 200,
) -> dict[str, Any]:
    """Facts of the run: step, seconds, done, curve (the figures of `evaluate` by step). Continues `state` if it is
    there; stops after `budget` seconds with the state saved.

    loss      step -> () the loss that is minimised over the parameters that require a gradient
    show      figures -> what the progress line says of them
    every     steps between evaluations        keep   steps between saves of the state
    DataError   the state is of another recipe
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    fused = all(p.dtype == torch.float32 for p in parameters)
    optimiser = torch.optim.AdamW(parameters, recipe.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=fused)
    facts: dict[str, Any] = {"step": 0, "seconds": 0.0, "curve": []}
    if state.is_file():
        facts = restore(state, recipe, model, optimiser)
        print(f"resumed   {state} at step {facts['step']:,}", flush=True)
    began, spent, first = time.perf_counter(), facts["seconds"], facts["step"]
    running, shown_at = torch.zeros(()), first
    while facts["step"] < recipe.steps:
        step = facts["step"]
        for group in optimiser.param_groups:
            group["lr"] = rate(recipe, step)
        value = loss(step)
        optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(parameters, recipe.clip)
        optimiser.step()
        running = running + value.detach().cpu()
        step += 1
        elapsed = time.perf_counter() - began
        facts |= {"step": step, "seconds": spent + elapsed}
        over = budget is not None and elapsed >= budget
        if step % every == 0 or step == recipe.steps:
            figures = evaluate()
            facts["curve"].append({"step": step, **figures})
            left = elapsed / (step - first) * (recipe.steps - step)
            print(
                f"{100 * step // recipe.steps:3d} %  step {step:,}/{recipe.steps:,}"
                f"  train {running.item() / (step - shown_at):.3f}"
                f"  held-out {show(figures)}  {facts['seconds']:.0f} s  left {left:.0f} s",
                flush=True,
            )
            running, shown_at = torch.zeros(()), step
        if step % keep == 0 or over or step == recipe.steps:
            save(state, recipe, model, optimiser, facts)
        if over:
            break
    return facts | {"done": facts["step"] >= recipe.steps}


def save(path: Path, recipe: Any, model: nn.Module, optimiser: torch.optim.Optimizer, facts: dict[str, Any]) -> None:
    """Write atomically: a kill leaves the old state or the new one."""
    from safetensors.torch import save as packed

    tensors = {f"model|{name}": p.detach().contiguous() for name, p in model.named_parameters()}
    tensors |= {f"buffer|{name}": b.detach().clone().contiguous() for name, b in _buffers(model)}
    for name, p in model.named_parameters():
        tensors |= {f"{key}|{name}": value for key, value in optimiser.state[p].items()}
    notes = {"recipe": json.dumps(asdict(recipe)), "facts": json.dumps(facts)}
    put(path, packed(tensors, notes))


def restore(path: Path, recipe: Any, model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """Fill model and optimiser from a state; returns its facts. DataError: the state is of another recipe."""
    from safetensors import safe_open

    with safe_open(path, "pt") as stored:
        notes = stored.metadata()
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}
    theirs, ours = json.loads(notes["recipe"]), asdict(recipe)
    facts = json.loads(notes["facts"])
    changed = [f"{key}={theirs.get(key)}" for key in ours if theirs.get(key) != json.loads(json.dumps(ours[key]))]
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
            if f"step|{name}" in tensors:  # not a parameter that no loss reaches
                optimiser.state[p] = {key: tensors[f"{key}|{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
        for name, b in _buffers(model):
            b.copy_(tensors[f"buffer|{name}"])
    return facts


def _buffers(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Buffers that belong to the state (running statistics); constants made in a constructor do not."""
    kept = model.state_dict().keys()
    return [(name, b) for name, b in model.named_buffers() if name in kept]


def shipped(path: Path) -> tuple[dict[str, Any], int]:
    """(notes that travel in a weight file's metadata, number of its parameters)."""
    from safetensors import safe_open

    with safe_open(path, "pt") as stored:
        notes = {key: json.loads(value) for key, value in stored.metadata().items()}
        return notes, sum(stored.get_tensor(key).numel() for key in stored.keys())


def optimiser_row(recipe: dict[str, Any]) -> str:
    """The card's row on how `train` optimised."""
    return (
        f"| optimiser | AdamW (.9, .98), decay .01, lr {recipe['lr']}, {recipe['warmup']} steps warm-up, linear decay "
        f"over the last {100 * recipe['decay']:.0f} % |"
    )


def write_card(
    folder: Path,
    name: str,
    lines: list[str],
    table: Callable[[Any], list[str]],
    *,
    title: str = "What it gains over scratch",
) -> Path:
    """<name>.md: `lines`, and the table of the comparison in <name>.transfer.json where that is there."""
    compared = folder / f"{name}.transfer.json"
    if compared.is_file():
        lines = [*lines, "", f"## {title}", "", *table(json.loads(compared.read_text(encoding="utf-8")))]
    target = folder / f"{name}.md"
    put(target, "\n".join([*lines, ""]).encode())
    return target


def put(path: Path, content: bytes) -> None:
    """Writes atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
