"""result.json as a run fills it in: what the config tells, what is attached, what it cost."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from core.bench import result
from core.bench.result import Devices, Record
from core.training import assemble, evaluate
from core.training.module import PeftModule
from core.training.rehearsal import Rehearsed


def begin(cfg: DictConfig, directory: Path) -> Record:
    """The record as far as the config tells; what an interrupted run has noted as its start stays."""
    choices = cfg.get("choices") or {}
    plain = OmegaConf.to_container(cfg, resolve=True)
    started = now()
    if (directory / result.FILE).exists():
        started = result.read(directory).started or started
    tuning = plain.get("tuning") or {}
    return Record(
        run_id=directory.name,
        started=started,
        domain=cfg.get("domain"),
        task=choices.get("task"),
        data=choices.get("data"),
        backbone=choices.get("backbone"),
        method=choices.get("adapter"),
        lr=plain["optim"].get("lr"),
        seed=cfg.seed,
        precision=str(plain["trainer"].get("precision", "32-true")),
        tuning_group=tuning.get("group"),
        tuning_budget=tuning.get("budget"),
        command=result.command(cfg.get("domain")),
        config_hash=result.config_hash(cfg),
        **result.environment(),
    )


def describe(record: Record, cfg, model, name: str, module: PeftModule, parts, loaders) -> None:
    from core.adapters import adapters, summary

    info, table = adapters(model)[name], summary(model, name)
    record.data_kind = parts.data.kind
    record.split_hash = assemble.splits(loaders)[0]
    record.base_fingerprint, record.base_parameters = module.fingerprint, table.base
    record.method = record.method or info.method
    record.options, record.targets = dict(info.options), sorted({row.role for row in table.rows})
    if cfg.adapter.get("budget") is not None:
        record.options["budget"] = cfg.adapter.budget
    if cfg.get("quantise"):  # one method on two bases is two settings
        record.options["quantise"] = (cfg.get("choices") or {}).get("quantise")
        own = [key for key in cfg.quantise if not key.startswith("_") and key not in cfg.adapter]
        record.options |= {f"quantise.{key}": cfg.quantise[key] for key in own}
    record.paths = {kind: sum(row.path == kind for row in table.rows) for kind in sorted({r.path for r in table.rows})}
    record.trainable = info.parameters - module.optim.rule.spared(module.tensors)
    record.head_trainable = info.head_parameters
    record.fraction = record.trainable / table.base if table.base else None
    kind = str(cfg.trainer.get("accelerator", "auto"))
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if kind in ("auto", "gpu") else kind
    devices = cfg.trainer.get("devices", 1)
    record.devices = Devices(kind=kind, count=devices if isinstance(devices, int) and devices > 0 else 1)


def write_facts(directory: Path, model, name: str, parts) -> None:
    """audit.json and sites.json, for the run card; task.json, for whoever predicts without the training data."""
    from core.adapters import summary

    audit = {"facts": parts.audit.facts, "warnings": parts.audit.warnings, "errors": parts.audit.errors}
    result.write_whole(directory / "audit.json", json.dumps(audit, indent=1, default=evaluate._plain) + "\n")
    sites = [
        {key: getattr(row, key) for key in ("site", "role", "path", "why", "shape", "parameters")} | {"sites": 1}
        for row in summary(model, name).rows
    ]
    result.write_whole(directory / "sites.json", json.dumps(sites, indent=1) + "\n")
    result.write_whole(directory / "task.json", json.dumps(assemble.learned(parts.task), indent=1) + "\n")


def note_cost(path: Path, record: Record, cost, rehearsal, rows, trainer, module, before: str) -> None:
    """Costs and counts into the record's shape, kept in a file for a later resume that only scores."""
    seen: Rehearsed = rehearsal.result
    unchanged = None if module.base_trains else before == assemble.base_digest(module.model)
    noted = cost.result() | {
        "saved_activation_bytes": seen.saved_bytes,
        "flops_forward": seen.flops_forward,
        "flops_backward": seen.flops_backward,
        "steps": trainer.global_step,
        "examples_seen": rows.examples,
        "epochs": rows.examples / max(1, len(trainer.datamodule.items("train"))),
        "batch_size": round(rows.examples / max(1, trainer.global_step)),
        "live": list(seen.live) if seen.live[1] else None,
        "base_bit_equal": unchanged,
        "plan": record.plan.model_dump() if record.plan else None,
    }
    result.write_whole(path, json.dumps(noted, indent=1) + "\n")


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
