"""The files of shipped weights: tensors, configuration, and a card: where they come from, what they are worth.

Recipe and held-out curve travel in the tensors' own metadata, the comparison with scratch in <name>.transfer.json: the
card can be written again from the files alone.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from core.pretraining import optimiser_row, put, shipped, write_card
from domains.vision_medical.pretraining.loop import HELD, Recipe, evaluate, held_out, place_alone
from domains.vision_medical.pretraining.network import CLASSES, OPTIONS


def export(net: nn.Module, recipe: Recipe, facts: dict[str, Any], folder: Path) -> list[Path]:
    """Writes <name>.safetensors, .json and .md into `folder`; returns their paths."""
    from safetensors.torch import save

    figures = evaluate(net, *held_out(recipe))
    net.eval()
    curve = [{"step": c["step"], "Dice": round(c["Dice"], 4)} for c in facts["curve"]]
    notes = {
        "recipe": asdict(recipe),
        "facts": {key: value for key, value in facts.items() if key != "curve"},
        "curve": curve,
        "figures": figures,
        "place alone": place_alone(recipe),
    }
    tensors = {key: value.contiguous() for key, value in net.state_dict().items()}
    paths = [folder / f"{recipe.name}.safetensors", folder / f"{recipe.name}.json"]
    put(paths[0], save(tensors, {key: json.dumps(value) for key, value in notes.items()}))
    settings = {"network": "segresnet", "options": OPTIONS, "classes": list(CLASSES)}
    put(paths[1], (json.dumps(settings, indent=2) + "\n").encode())
    return [*paths, write(folder, recipe.name)]


def write(folder: Path, name: str) -> Path:
    """<name>.md from the metadata of the tensors and, if it is there, the comparison with scratch."""
    from domains.vision_medical.pretraining.transfer import table

    path = folder / f"{name}.safetensors"
    notes, parameters = shipped(path)
    recipe, facts, figures, place = notes["recipe"], notes["facts"], notes["figures"], notes["place alone"]
    lines = [
        f"# {name}",
        "",
        "A SegResNet for the synthetic patients of this package, of no use on real images.",
        "",
        "| | |",
        "| --- | --- |",
        f"| made by | `python -m domains.vision_medical.pretrain`, seed {recipe['seed']} |",
        f"| network | MONAI `SegResNet`, two dimensions, {len(OPTIONS['blocks_down'])} levels from "
        f"{OPTIONS['init_filters']} channels, group norm, {parameters:,} parameters, fp32 |",
        f"| trained | {facts['step']:,} steps of {recipe['batch']} slices of 64 x 64, every slice another patient and "
        f"another contrast, {facts['seconds']:,.0f} s on one thread of a shared CPU |",
        "| objective | five organs and background; lesions and cysts are in half of the patients and not asked |",
        optimiser_row(recipe),
        f"| data | Made at run time from a seed, world {recipe['world']} (`domains/vision_medical/data/world.py`); no "
        "file, no licence. |",
        f"| sha256 | `{hashlib.sha256(path.read_bytes()).hexdigest()}` |",
        "",
        f"## Held-out patients ({HELD}), random contrast",
        "",
        "| | Dice, mean of organs | pixels right |",
        "| --- | --- | --- |",
        f"| this network | {figures['Dice']:.3f} | {figures['pixel accuracy']:.3f} |",
        f"| place alone (commonest class at each pixel) | {place['Dice']:.3f} | {place['pixel accuracy']:.3f} |",
        "",
        "Dice by organ: "
        + ", ".join(f"{name} {figures[f'Dice {name}']:.3f}" for name in CLASSES[1:])
        + ". By step: "
        + ", ".join(f"{c['step']:,} {c['Dice']:.3f}" for c in notes["curve"] if c["step"] in _told(notes["curve"]))
        + ".",
    ]
    return write_card(folder, name, lines, table)


def _told(curve: list[dict[str, Any]]) -> set[int]:
    """About eight steps of the curve, the last among them."""
    steps = [c["step"] for c in curve]
    return {*steps[:: max(1, len(steps) // 8)], steps[-1]}
