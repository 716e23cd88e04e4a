"""The files of shipped weights: tensors, shape, and a card: where they come from, what they are worth.

The recipe and the held-out curve travel in the tensors' own metadata, the comparison in <name>.transfer.json: the card
can be written again from the files alone.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from core.pretraining import put
from domains.speech.backbones.fastspeech import FastSpeech
from domains.speech.pretraining.corpus import Corpus
from domains.speech.pretraining.loop import SHAPE, Recipe, mean_frame

TITLES = {
    "acoustic_mini": "A FastSpeech for the speech twin's world, of no use on real speech.",
    "acoustic_flite": "A small English FastSpeech that learned from flite's synthetic voices: a start for a real one.",
}
COMMANDS = {"acoustic_mini": "mini", "acoustic_flite": "flite"}
SOURCES = {
    "acoustic_mini": "Made at run time from a seed (`domains/speech/data/world.py`); no file, no licence.",
    "acoustic_flite": "Spoken at run time by flite 2.2 (BSD-like licence). Synthetic: no person's recordings are in it "
    "but those that flite's voices were built from.",
}
UNITS = {
    "mel": "mel spectrogram, mean absolute error (nat)",
    "log_durations": "durations, mean absolute error (log frames)",
    "pitch": "pitch, mean absolute error (octaves)",
    "energy": "energy, mean absolute error (nat)",
}


def export(
    model: FastSpeech, recipe: Recipe, facts: dict[str, Any], train: Corpus, held: Corpus, folder: Path
) -> list[Path]:
    """Writes <name>.safetensors, .json and .md into `folder`; returns their paths."""
    from safetensors.torch import save

    stored = {k: v for k, v in facts.items() if k != "curve"}
    curve = [{k: round(v, 4) for k, v in figures.items()} for figures in facts["curve"]]
    about = {**train.facts, "minutes": round(train.seconds() / 60, 1), "held out": len(held.spoken)}
    notes = {"recipe": asdict(recipe), "facts": stored, "curve": curve, "corpus": about}
    notes["figures"] = {**curve[-1], "mean frame": mean_frame(train, held)}
    paths = [folder / f"{recipe.name}.safetensors", folder / f"{recipe.name}.json"]
    tensors = {name: p.detach().contiguous() for name, p in model.net.state_dict().items()}
    put(paths[0], save(tensors, {key: json.dumps(value) for key, value in notes.items()}))
    settings = {"shape": SHAPE, "speakers": list(train.speakers), "recipe": asdict(train.recipe)}
    put(paths[1], json.dumps(settings, indent=2).encode() + b"\n")
    return [*paths, write(folder, recipe.name)]


def write(folder: Path, name: str) -> Path:
    """<name>.md from the metadata of the tensors and, if it is there, the comparison on a new speaker."""
    from safetensors import safe_open

    path = folder / f"{name}.safetensors"
    with safe_open(path, "pt") as stored:
        notes = {key: json.loads(value) for key, value in stored.metadata().items()}
        parameters = sum(stored.get_tensor(key).numel() for key in stored.keys())
    settings = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    recipe, facts, figures, mel = notes["recipe"], notes["facts"], notes["figures"], settings["recipe"]
    lines = [
        f"# {name}",
        "",
        TITLES.get(name, "A small FastSpeech."),
        "",
        "| | |",
        "| --- | --- |",
        f"| made by | `python -m domains.speech.pretrain {COMMANDS.get(name, name)}`, seed {recipe['seed']} |",
        f"| network | `domains/speech/backbones/acoustic.py`, {parameters:,} parameters, fp32 |",
        f"| mel recipe | {mel['sample_rate']:,} Hz, window {mel['win']:,}, hop {mel['hop']}, {mel['n_mels']} bins, "
        f"{mel['fmin']:.0f} to {mel['fmax']:.0f} Hz, natural logarithm |",
        f"| trained | {facts['step']:,} steps of {recipe['batch']} utterances, {facts['seconds']:,.0f} s on one thread "
        "of a shared CPU |",
        f"| optimiser | AdamW (.9, .98), decay .01, lr {recipe['lr']}, {recipe['warmup']} steps warm-up, linear decay "
        f"over the last {100 * recipe['decay']:.0f} % |",
        *(f"| {key} | {value:,} |" if isinstance(value, int) else f"| {key} | {value} |"
          for key, value in notes["corpus"].items()),
        f"| data | {SOURCES.get(name, '')} |",
        f"| sha256 | `{hashlib.sha256(path.read_bytes()).hexdigest()}` |",
        "",
        "## Held-out sentences of the same speakers",
        "",
        "Spoken with true durations, pitch and energy. Saying each phone's mean frame has a mel error of "
        f"{figures['mean frame']:.3f} nat.",
        "",
        "| | error |",
        "| --- | --- |",
        *(f"| {UNITS[key]} | {figures[key]:.3f} |" for key in UNITS if key in figures),
    ]  # fmt: skip
    compared = folder / f"{name}.transfer.json"
    if compared.is_file():
        from domains.speech.pretraining.transfer import table

        lines += ["", "## What it is worth to a new speaker", ""]
        lines += table(json.loads(compared.read_text(encoding="utf-8")))
    target = folder / f"{name}.md"
    put(target, "\n".join([*lines, ""]).encode())
    return target
