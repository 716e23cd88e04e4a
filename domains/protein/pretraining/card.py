"""The files of shipped weights: tensors, configuration, and a card: where they come from, what they are worth.

The recipe and the held-out curve travel in the tensors' own metadata, the few-label comparison in <name>.transfer.json:
the card can be written again from the files alone.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from core.pretraining import optimiser_row, put, shipped, write_card
from domains.protein.pretraining.corpus import Corpus
from domains.protein.pretraining.loop import Pretraining, Recipe, evaluate

TASKS = {"masked": "masked residues (pure `<mask>`)", "conservation": "conservation class of a residue (1 to 9)"}
TITLES = {
    "esm2_mini": "An ESM-2 for the protein twin's world, of no use on real sequences.",
    "esm2_small": "A small ESM-2 from real protein sequences and conservation classes.",
}
UNWRITTEN = ("transformers_version", "is_decoder", "add_cross_attention", "use_cache", "is_folding_model")
SOURCES = {
    "esm2_mini": "Made at run time from a seed (`domains/protein/data/world.py`); no file, no licence.",
    "esm2_small": "FLIP (J-SNACKKB/FLIP, AFL-3.0): training sequences of the conservation, secondary-structure and "
    "binding tables, and the conservation labels (ConSurf10k). Labels of the other two tables were not read.",
}


def export(
    model: Pretraining, recipe: Recipe, facts: dict[str, Any], train: Corpus, held: Corpus, folder: Path
) -> list[Path]:
    """Writes <name>.safetensors, .json and .md into `folder`; returns their paths."""
    from safetensors.torch import save

    figures = evaluate(model, held, train)
    stored = {k: v for k, v in facts.items() if k != "curve"}
    curve = [
        {"step": c["step"], **{t: round(c[f"{t} loss"], 4) for t in TASKS if f"{t} loss" in c}} for c in facts["curve"]
    ]
    notes = {"recipe": asdict(recipe), "facts": stored, "curve": curve, "corpus": train.facts, "figures": figures}
    # Tied weights once: the decoder's matrix is the embedding. No contact regression: it has not been trained.
    absent = ("lm_head.decoder.", "esm.contact_head.")
    tensors = {k: v.contiguous() for k, v in model.net.state_dict().items() if not k.startswith(absent)}
    paths = [folder / f"{recipe.name}.safetensors", folder / f"{recipe.name}.json"]
    put(paths[0], save(tensors, {key: json.dumps(value) for key, value in notes.items()}))
    settings = {k: v for k, v in model.net.config.to_diff_dict().items() if v is not None and k not in UNWRITTEN}
    settings |= {"architectures": ["EsmForMaskedLM"]}
    put(paths[1], json.dumps(settings, indent=2).encode() + b"\n")
    return [*paths, write(folder, recipe.name)]


def write(folder: Path, name: str) -> Path:
    """<name>.md from the metadata of the tensors and, if it is there, the few-label comparison."""
    from domains.protein.pretraining.transfer import table

    path = folder / f"{name}.safetensors"
    notes, parameters = shipped(path)
    recipe, facts, figures = notes["recipe"], notes["facts"], notes["figures"]
    command = f"python -m domains.protein.pretrain {name.removeprefix('esm2_')}"
    lines = [
        f"# {name}",
        "",
        TITLES[name],
        "",
        "| | |",
        "| --- | --- |",
        f"| made by | `{command}`, seed {recipe['seed']} |",
        f"| network | ESM-2 (`EsmForMaskedLM`, rotary), {recipe['layers']} layers x {recipe['width']}, "
        f"{recipe['heads']} heads, {parameters:,} parameters, fp32 |",
        "| start | local heads, `domains/protein/pretraining/initialiser.py` |",
        f"| trained | {facts['step']:,} of {recipe['steps']:,} steps of {recipe['batch']} crops of up to "
        f"{recipe['crop']} residues, {facts['seconds']:,.0f} s on one thread of a shared CPU |",
        f"| objective | {_objective(recipe)} |",
        optimiser_row(recipe),
        *(f"| {key} | {_shown(value)} |" for key, value in notes["corpus"].items()),
        f"| data | {SOURCES[name]} |",
        f"| sha256 | `{hashlib.sha256(path.read_bytes()).hexdigest()}` |",
        "",
        "## Held-out families",
        "",
        "| | accuracy | most frequent | loss, nats | frequencies alone | perplexity | items |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for task in TASKS:
        if f"{task} loss" in figures:
            lines.append(
                f"| {TASKS[task]} | {figures[f'{task} accuracy']:.3f} "
                f"| {figures[f'{task} accuracy, most frequent']:.3f} | {figures[f'{task} loss']:.3f} "
                f"| {figures[f'{task} loss, frequencies alone']:.3f} | {figures[f'{task} perplexity']:.2f} "
                f"| {figures[f'{task} items']:,} |"
            )
    return write_card(folder, name, lines, table)


def _objective(recipe: dict[str, Any]) -> str:
    masked = f"{100 * recipe['masked']:.0f} % of the residues masked"
    classes = "conservation classes (their head is not shipped)"
    if not recipe["conservation"]:
        return masked
    if not recipe["masked"]:
        return classes
    weights = f"weights {recipe['masked_weight']:g} and {recipe['conservation']:g}"
    if recipe["masked_from"]:
        return f"{classes}; from step {recipe['masked_from']:,} also {masked}, {weights.replace('and', 'beside')}"
    return f"{masked} and {classes}, {weights}"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(v)}" for key, v in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)
