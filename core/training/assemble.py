"""From a config to objects: backbone, data, task, adapted model, loaders, trainer. Checks that need them run here."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from torch import nn

from core.contracts import Audit, Backbone, Data, Task
from core.data.loading import Loader, Loaders
from core.data.seeding import derive
from core.errors import ConfigError, DataError, Problem
from core.parts import expand
from core.training.files import SafeIO
from core.training.optim import Optim
from core.training.progress import told


class Parts(NamedTuple):
    backbone: Backbone
    data: Data
    task: Task
    audit: Audit


def make(cfg: DictConfig, part: str, seed: int) -> Any:
    """The object that `cfg[part]` describes, built with every random draw a function of (seed, part)."""
    torch.manual_seed(derive(seed, part))
    found = _instantiated(cfg[part])
    return quantised(cfg, found) if part == "backbone" else found


def quantised(cfg: DictConfig, backbone: Backbone) -> Backbone:
    """The backbone with the weights that `cfg.quantise` asks for."""
    if cfg.get("quantise"):
        _instantiated(cfg.quantise)(backbone, partial(told, what="4-bit weights, layer"))
    return backbone


def optim(cfg: DictConfig) -> Optim:
    """What `cfg.optim` says, its rule included."""
    own = "core.training.optim.Optim"
    found = _instantiated({"_target_": own, **OmegaConf.to_container(cfg.optim, resolve=True)})
    found.seed = derive(cfg.seed, "optim")
    return found


def _instantiated(node: Any) -> Any:
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:  # Hydra's wrapping hides our own errors from those who catch them
        if error.__cause__ is not None:
            raise error.__cause__ from None
        raise


def parts(cfg: DictConfig) -> Parts:
    """Backbone, data and task, read, fitted to each other and audited. DataError where the audit's gate is shut."""
    data = make(cfg, "data", cfg.seed)
    task = make(cfg, "task", cfg.seed)
    data.setup()
    backbone = make(cfg, "backbone", cfg.seed)
    task.check(data, backbone)
    audit = data.audit()
    if audit.errors and cfg.run.audit == "gate":
        fix = "run.audit=warn trains all the same"
        raise DataError(problems=[Problem("data audit", text, "", fix) for text in audit.errors])
    return Parts(backbone, data, task, audit)


def learned(task: Task) -> dict[str, Any]:
    """Constructor arguments as `check` left them: class names read from the labels, for instance. Only those that a
    task keeps under their own name, as plain data."""
    kept = {name: getattr(task, name, None) for name in inspect.signature(type(task).__init__).parameters}
    return {name: value for name, value in kept.items() if isinstance(value, (str, int, float, bool, list, dict))}


def adapt(cfg: DictConfig, backbone: Backbone, head: nn.Module | None) -> tuple[nn.Module, str]:
    """(backbone with the adapter of `cfg.adapter` and its head, the adapter's name)."""
    from core.adapters import attach

    method, options = asked(OmegaConf.to_container(cfg.adapter, resolve=True))
    attach(backbone, method, head=head, seed=derive(cfg.seed, "adapter"), **options)
    return backbone, options.get("name") or "default"


def asked(adapter: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """(the method's class, or part -> options of a combination; the other arguments of `attach`) of an adapter node."""
    node, problems = expand(adapter)
    if problems:
        raise ConfigError(problems=problems)
    parts = node.pop("parts", None)
    if parts is None:
        return located(node.pop("_target_")), node
    return {
        part: {"method": located(own["_target_"])} | {k: v for k, v in own.items() if k != "_target_"}
        for part, own in parts.items()
    }, node


def settings(cfg: DictConfig) -> dict[str, Any]:
    """Dotted key -> value of all that decides a run's bits; worker count, tests and names do not."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    plain["run"] = {key: plain["run"][key] for key in ("limit", "calibrate") if key in plain["run"]}
    flat: dict[str, Any] = {}

    def walk(node: Any, at: str) -> None:
        if isinstance(node, dict):
            for key, value in node.items():
                walk(value, f"{at}.{key}" if at else str(key))
        else:
            flat[at] = node

    for key in (
        "seed",
        "backbone",
        "data",
        "task",
        "adapter",
        "optim",
        "loader",
        "trainer",
        "metric",
        "quantise",
        "run",
    ):
        walk(plain.get(key), key)
    flat.pop("loader.workers", None)
    return flat


def located(target: str) -> Any:
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)


def methods_of(cfg: DictConfig) -> type | dict[str, type]:
    """The class of the adapter's method; part -> class of a combination."""
    node = expand(OmegaConf.to_container(cfg.adapter, resolve=True))[0]
    if node.get("parts") is None:
        return located(node["_target_"])
    return {part: located(own["_target_"]) for part, own in node["parts"].items()}


def may_idle(cfg: DictConfig, module: Any) -> bool:
    """Whether some trained parameters may get no gradient: full fine-tuning and selections also take what the task does
    not read."""
    from core.adapters.base import Selection

    found = methods_of(cfg)
    classes = found.values() if isinstance(found, dict) else [found]
    return module.base_trains or any(isinstance(cls, type) and issubclass(cls, Selection) for cls in classes)


def loaders(cfg: DictConfig, found: Parts) -> Loaders:
    settings = Loader(**OmegaConf.to_container(cfg.loader, resolve=True)) if cfg.get("loader") else Loader()
    tokenizer = found.backbone.tokenizer
    return Loaders(found.data, found.task, tokenizer, settings, seed=derive(cfg.seed, "data"), limit=cfg.run.limit)


def trainer(cfg: DictConfig, directory: Path, callbacks: list, batches: int, *, unused: bool) -> L.Trainer:
    """Lightning's Trainer from `cfg.trainer`; what this layer does itself (checkpoints, bars, sampling) is off.

    batches   of one epoch;  unused: some trained parameters may get no gradient
    """
    from core.training.ddp import Ddp

    options = OmegaConf.to_container(cfg.trainer, resolve=True)
    options.pop("callbacks", None)
    if options.get("strategy") == "ddp":
        options["strategy"] = Ddp(directory, find_unused_parameters=unused)
    defaults = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    fixed = {
        "use_distributed_sampler": False,
        "plugins": [SafeIO()],
        "default_root_dir": str(directory),
        "callbacks": callbacks,
    }
    if "val_check_interval" not in options and "check_val_every_n_epoch" not in options:
        steps = total_steps(options, batches)
        options["val_check_interval"] = validation_interval(steps) * options.get("accumulate_grad_batches", 1)
        options["check_val_every_n_epoch"] = None
    try:
        return L.Trainer(**(defaults | options | fixed))
    except (MisconfigurationException, ValueError, TypeError) as error:  # Lightning's ways to refuse an argument
        raise ConfigError("trainer", str(error).splitlines()[0], "what Lightning's Trainer takes here") from error


def total_steps(options: dict[str, Any], batches: int) -> int:
    """Optimiser steps of a whole run. ConfigError where neither max_steps nor max_epochs bounds it."""
    accumulate = options.get("accumulate_grad_batches", 1)
    epochs, steps = options.get("max_epochs"), options.get("max_steps", -1)
    bounds = [steps] if steps is not None and steps >= 0 else []
    if epochs is not None and epochs >= 0:
        bounds.append(epochs * -(-batches // accumulate))
    if not bounds:
        raise ConfigError("trainer.max_steps", "no bound", "max_steps or max_epochs", "trainer.max_steps=200")
    return min(bounds)


def validation_interval(steps: int, wanted: int = 10) -> int:
    """Steps between validations: about `wanted` in all, the last on the last step where a divisor allows it."""
    for count in range(min(wanted, steps), 4, -1):
        if steps % count == 0:
            return steps // count
    return max(1, -(-steps // wanted))


def splits(found: Loaders) -> tuple[str, bool]:
    """(sha256 of the ids of every split, whether no group is in two splits)."""
    names = ("train", "val", "test")
    ids = {name: [str(item["id"]) for item in found.items(name)] for name in names}
    groups = [{str(item.get("group", item["id"])) for item in found.items(name)} for name in names]
    together = sum(map(len, groups)) == len(set().union(*groups))
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest(), together


def base_digest(model: nn.Module) -> str:
    """sha256 of every frozen tensor of the base, buffers included: equal before and after means not one bit moved."""
    from core.training.module import base_tensors

    total = hashlib.sha256()
    for tensor in base_tensors(model):
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        total.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return total.hexdigest()


# ---------------------------------------------------------------------- the trained adapter


def merge_error(model: nn.Module, name: str) -> float | None:
    """Relative error of merging on the example, the base then put back to the bit; None without a weight form."""
    from core.adapters import adapters, merge, unmerge
    from core.errors import AdapterError, PeftError

    if not adapters(model)[name].sites:
        return None
    try:
        report = merge(model, name)
    except (AdapterError, PeftError):
        return None
    unmerge(model)
    return float(report.max_error)


def save(model: nn.Module, directory: Path, name: str) -> int:
    """Bytes of the adapter's tensor file, head included."""
    from core.adapters import save_adapter

    save_adapter(model, directory, name)
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


@torch.no_grad()
def reload_equal(cfg: DictConfig, model: nn.Module, directory: Path, name: str, limit: int = 10**8) -> bool | None:
    """Whether the saved adapter, loaded into a base built anew, gives the same bits; None above `limit` parameters."""
    from core.adapters import load_adapter
    from core.adapters.probe import Example, floats

    if sum(p.numel() for p in model.parameters()) > limit:
        return None
    with torch.random.fork_rng(devices=[]):
        fresh = make(cfg, "backbone", cfg.seed)
    load_adapter(fresh, directory, name=name, method=methods_of(cfg))
    pair = [Example(m.eval(), m.example)() for m in (model, fresh)]
    return all(torch.equal(a, b) for a, b in zip(*map(floats, pair), strict=True))
