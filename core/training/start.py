"""Data-driven starts: before the first step, the methods that ask for it look at a few training batches.

The batches are the first of the first epoch, so that the start is a function of the seed; a run that goes on from a
checkpoint takes its tensors from there, and only makes room for their shapes.
"""

from __future__ import annotations

from pathlib import Path

import lightning as L
import torch

from core.adapters.calibrate import BATCHES, calibrate, needs
from core.data.loading import share
from core.data.seeding import derive, guard
from core.training import files
from core.training.checkpoint import BEST, find
from core.training.memory import out_of_memory


def start(cfg, folder: Path, module, name: str, loaders) -> str:
    """What was looked at, in words; "" where nothing was. `folder` holds the checkpoints of an earlier run."""
    if not (wanted := needs(module.model, name)):
        return ""
    if (saved := _saved(cfg, folder)) is not None:
        module.make_room(saved)
        return ""
    if not cfg.run.fit:
        return ""
    plan, batches = loaders.plan("train"), loaders.batches("train")
    count = int(cfg.run.get("calibrate") or BATCHES)
    keys = [share(indices, 0, position, 0, 1) for position, indices in enumerate(plan.batches(0)[:count])]
    options = {"accelerator": cfg.trainer.get("accelerator") or "auto", "precision": cfg.trainer.get("precision")}
    fabric = L.Fabric(devices=1, **options)
    module.to(fabric.device)

    def loss(batch) -> torch.Tensor:
        with fabric.autocast():
            return module.losses(fabric.to_device(batch))[0]

    with guard(derive(cfg.seed, "calibrate")), out_of_memory("a data-driven start", f"{len(keys)} batches"):
        calibrate(module.model, name, (batches[key] for key in keys), loss)
    module.to("cpu")
    return f"from the {' and '.join(sorted(wanted))} of {len(keys)} training batches"


def _saved(cfg, folder: Path) -> dict[str, torch.Tensor] | None:
    """The tensors with which this run will go on."""
    if cfg.run.resume == "never":
        return None
    found = find(folder)
    if found.path is not None:
        return files.read(found.path)["state_dict"]
    return files.read(folder / BEST)["tensors"] if (folder / BEST).exists() else None
