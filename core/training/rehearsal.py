"""Before the first step: does the worst batch fit, is every site alive on real data, what does a step cost?

All of it runs on real batches; gradients are thrown away, buffers and random numbers put back: training never notices.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import torch
from lightning.pytorch.callbacks import Callback

from core.adapters.base import Selection
from core.adapters.cost import measure
from core.adapters.live import consumed
from core.adapters.probe import pristine
from core.errors import DeadSiteError, Problem
from core.training.memory import out_of_memory, peak


class Rehearsed(NamedTuple):
    """saved_bytes kept for backward on the first batch;  FLOP per example;  live (sites alive, sites);
    step_s one step without its optimiser, s;  peak_bytes after the worst batch"""

    saved_bytes: int
    flops_forward: float
    flops_backward: float
    live: tuple[int, int]
    step_s: float
    peak_bytes: int


class Rehearsal(Callback):
    """Runs once the model is on its device; `on_ready(result)` is called on rank 0."""

    def __init__(self, name: str = "default", on_ready=None):
        self.name, self.on_ready = name, on_ready
        self.result: Rehearsed | None = None

    def on_fit_start(self, trainer, module) -> None:
        loaders, world, rank = trainer.datamodule, trainer.world_size, trainer.global_rank
        with pristine(module), torch.enable_grad(), trainer.precision_plugin.train_step_context():
            module.train()
            batch = _ready(trainer, loaders.longest(world, rank))
            with out_of_memory("the longest training batch", f"{len(batch.get('ids', []))} items"):
                _gradients(module, batch)
            highest = peak(module.device)[0]
            batch = _ready(trainer, loaders.first(world, rank))
            start = time.perf_counter()
            grads = _gradients(module, batch)
            step_s = time.perf_counter() - start
            idle = without_gradient(module, self.name, grads)
            kept, forward, backward = measure(module, lambda: module.losses(batch)[0])
        sites = unread(trainer, module, self.name)
        examples = max(1, len(batch.get("ids", [])))
        live = (sites - idle, sites)
        self.result = Rehearsed(kept, forward / examples, backward / examples, live, step_s, highest)
        if self.on_ready and trainer.is_global_zero:
            self.on_ready(self.result)


def _ready(trainer, batch: dict[str, Any]) -> dict[str, Any]:
    return trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))


def _gradients(module, batch: dict[str, Any]) -> dict[str, torch.Tensor | None]:
    """tensor key -> gradient, None where none arrives; `.grad` is left alone."""
    total, _ = module.losses(batch)
    tensors = {key: p for key, p in module.tensors.items() if p.requires_grad}
    grads = torch.autograd.grad(total, list(tensors.values()), allow_unused=True)
    return dict(zip(tensors, grads, strict=True))


def without_gradient(module, name: str, grads: dict[str, torch.Tensor | None]) -> int:
    """DeadSiteError lists what gets no gradient from the first training batch, but for what the method exempts.

    A selection takes every bias or norm of the network, those of a language-model head too, which a task with a head of
    its own never reads. They stay as they are: the number of these sites is returned. A selection without one live site
    is an error like any other."""
    state = getattr(module.model, "_peft", None)
    if state is None or name not in state.adapters:
        return 0
    bound = {b.site.key: state.slots[b.slot].methods[b.method] for b in state.adapters[name].bound}
    dead = []
    for key, grad in grads.items():
        site, _, tensor = key.rpartition("|")
        if grad is None and (site == "tokens" or (site in bound and tensor not in bound[site].exempt)):
            dead.append(key)
    chosen = {site for site, method in bound.items() if isinstance(method, Selection)}
    idle = {key.rpartition("|")[0] for key in dead} & chosen
    if idle and idle != chosen:
        dead = [key for key in dead if key.rpartition("|")[0] not in idle]
    else:
        idle = set()
    if dead:
        allowed = "every site gets a gradient from the task's own loss"
        fix = "leave this role or layer out of adapter.targets: this task does not use it"
        got = "no gradient on the first training batch"
        raise DeadSiteError(problems=[Problem(key, got, allowed, fix) for key in dead])
    return len(idle)


def unread(trainer, module, name: str) -> int:
    """Number of sites; DeadSiteError lists those that the first validation batch (the first training batch, where there
    is no validation split) does not read in eval mode without gradients."""
    state = getattr(module.model, "_peft", None)
    if state is None or name not in state.adapters:
        return 0
    loaders = trainer.datamodule
    split = "val" if loaders.items("val") else "train"
    key = next(iter(loaders.loader(split, world=trainer.world_size, rank=trainer.global_rank).sampler))
    batch = _ready(trainer, loaders.batches(split)[key])
    with pristine(module), torch.no_grad(), trainer.precision_plugin.val_step_context():
        module.eval()
        dead = consumed(state, state.adapters[name], lambda: module.evaluate(batch))
    if dead:
        allowed = "every site is read in eval mode without gradients"
        fix = "take adapter.path away: the weight path is always read"
        got = "not read on the first validation batch"
        raise DeadSiteError(problems=[Problem(b.site.key, got, allowed, fix) for b in dead])
    return len(state.adapters[name].bound) + (name in state.tokens)
