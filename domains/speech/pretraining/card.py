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

from torch import nn

from core.pretraining import optimiser_row, put, shipped, write_card

TITLES = {
    "acoustic_mini": "A FastSpeech for the speech twin's world, of no use on real speech.",
    "acoustic_flite": "A small English FastSpeech that learned from flite's synthetic voices: a start for a real one.",
    "listener": "A small encoder that learned from synthetic speech: which phone, voiced or not, how high, who.",
}
COMMANDS = {"acoustic_mini": "mini", "acoustic_flite": "flite"}
FLITE = "spoken at run time by flite 2.2 (BSD-like licence): synthetic, from voices built from recordings"
TWIN = "made at run time from a seed (`domains/speech/data/world.py`); no file, no licence"
SOURCES = {"acoustic_mini": TWIN, "acoustic_flite": FLITE, "listener": f"{FLITE}; and {TWIN}"}
ASKED = {
    "acoustic_mini": "Spoken with true durations, pitch and energy: mean absolute errors.",
    "acoustic_flite": "Spoken with true durations, pitch and energy: mean absolute errors.",
    "listener": "Frames of 20 ms, without noise; speakers are those of the training.",
}
UNITS = {"mel": "nat", "log_durations": "log frames", "pitch": "octaves", "energy": "nat", "phone loss": "nat"}


def export(
    net: nn.Module,
    settings: dict[str, Any],
    trivial: dict[str, float],
    recipe: Any,
    facts: dict[str, Any],
    corpus: Any,
    folder: Path,
) -> list[Path]:
    """Writes <name>.safetensors, .json and .md into `folder`; returns their paths."""
    from safetensors.torch import save

    stored = {k: v for k, v in facts.items() if k != "curve"}
    curve = [{k: round(v, 4) for k, v in figures.items()} for figures in facts["curve"]]
    about = {**corpus.facts, "minutes of speech": round(corpus.seconds() / 60, 1)}
    notes = {"recipe": asdict(recipe), "facts": stored, "curve": curve, "corpus": about}
    notes["figures"] = {**{k: v for k, v in curve[-1].items() if k != "step"}, **trivial}
    paths = [folder / f"{recipe.name}.safetensors", folder / f"{recipe.name}.json"]
    tensors = {name: p.detach().contiguous() for name, p in net.state_dict().items()}
    put(paths[0], save(tensors, {key: json.dumps(value) for key, value in notes.items()}))
    put(paths[1], json.dumps(settings, indent=2).encode() + b"\n")
    return [*paths, write(folder, recipe.name)]


def write(folder: Path, name: str) -> Path:
    """<name>.md from the metadata of the tensors and, if it is there, the comparison on a new speaker."""
    from domains.speech.pretraining.transfer import table

    path = folder / f"{name}.safetensors"
    notes, parameters = shipped(path)
    settings = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    recipe, facts, mel = notes["recipe"], notes["facts"], settings["recipe"]
    shape = ", ".join(f"{key} {value}" for key, value in settings["shape"].items())
    lines = [
        f"# {name}",
        "",
        TITLES.get(name, "A small speech model."),
        "",
        "| | |",
        "| --- | --- |",
        f"| made by | `python -m domains.speech.pretrain {COMMANDS.get(name, name)}`, seed {recipe['seed']} |",
        f"| network | {parameters:,} parameters, fp32: {shape} |",
        f"| mel recipe | {mel['sample_rate']:,} Hz, window {mel['win']:,}, hop {mel['hop']}, {mel['n_mels']} bins, "
        f"{mel['fmin']:.0f} to {mel['fmax']:,.0f} Hz, {mel['log']} logarithm |",
        f"| trained | {facts['step']:,} steps of {recipe['batch']} utterances, {facts['seconds']:,.0f} s on one thread "
        "of a shared CPU |",
        optimiser_row(recipe),
        *(f"| {key} | {_shown(value)} |" for key, value in notes["corpus"].items()),
        f"| data | {SOURCES.get(name, '')} |",
        f"| sha256 | `{hashlib.sha256(path.read_bytes()).hexdigest()}` |",
        "",
        "## Held-out sentences of the same speakers",
        "",
        ASKED.get(name, ""),
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {key}{_unit(key)} | {value:.3f} |" for key, value in notes["figures"].items()),
    ]
    return write_card(folder, name, lines, table, title="What it is worth")


def _unit(key: str) -> str:
    unit = UNITS.get(key.partition(",")[0])
    return f" ({unit})" if unit else ""


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
