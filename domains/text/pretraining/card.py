"""The files of shipped weights: tensors, configuration, tokenizer, and a card: whence they come, what they are worth.

The recipe and the held-out curve travel in the tensors' own metadata, the few-record comparison in
<name>.transfer.json: the card can be written again from the files alone.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from core.pretraining import optimiser_row, put, shipped, write_card

UNWRITTEN = ("transformers_version", "use_cache", "dtype")


def export(net: Any, tokenizer: Any, recipe: Any, facts: dict[str, Any], folder: Path) -> list[Path]:
    """Writes <name>.safetensors, .json, .tokenizer.json and .md into `folder`; returns their paths."""
    from safetensors.torch import save

    curve = [{"step": c["step"], "loss": round(c["loss"], 4), "copied": round(c["accuracy, syllables"], 4)}
             for c in facts["curve"]]  # fmt: skip
    stored = {key: facts[key] for key in ("step", "seconds", "done")}
    notes = {"recipe": asdict(recipe), "facts": stored, "curve": curve, "corpus": facts["corpus"]}
    notes["figures"] = facts["curve"][-1]
    # Tied weights once: the output's matrix is the embedding.
    tensors = {key: value.contiguous() for key, value in net.state_dict().items() if key != "lm_head.weight"}
    paths = [folder / f"{recipe.name}{ending}" for ending in (".safetensors", ".json", ".tokenizer.json")]
    put(paths[0], save(tensors, {key: json.dumps(value) for key, value in notes.items()}))
    settings = {k: v for k, v in net.config.to_diff_dict().items() if v is not None and k not in UNWRITTEN}
    settings |= {"architectures": ["LlamaForCausalLM"]}
    put(paths[1], json.dumps(settings, indent=2).encode() + b"\n")
    put(paths[2], (tokenizer.backend_tokenizer.to_str(pretty=False) + "\n").encode())
    return [*paths, write(folder, recipe.name)]


def write(folder: Path, name: str) -> Path:
    """<name>.md from the metadata of the tensors and, if it is there, the few-record comparison."""
    from domains.text.pretraining.transfer import table

    path = folder / f"{name}.safetensors"
    notes, parameters = shipped(path)
    recipe, facts, corpus, figures = (notes[key] for key in ("recipe", "facts", "corpus", "figures"))
    shown = notes["curve"][:: max(1, len(notes["curve"]) // 8)]
    shown += [notes["curve"][-1]] * (shown[-1] != notes["curve"][-1])
    lines = [
        f"# {name}",
        "",
        "A Llama for the text twin's world: it says records in many styles. Of no use on real text.",
        "",
        "| | |",
        "| --- | --- |",
        f"| made by | `python -m domains.text.pretrain`, seed {recipe['seed']} |",
        f"| network | `LlamaForCausalLM` with attention biases, {recipe['layers']} layers x {recipe['width']}, "
        f"{recipe['heads']} heads, tied, {parameters:,} parameters, fp32 |",
        "| start | one induction head, `domains/text/pretraining/initialiser.py` |",
        f"| trained | {facts['step']:,} of {recipe['steps']:,} steps of {recipe['batch']} texts, "
        f"{facts['seconds']:,.0f} s on one thread of a shared CPU |",
        "| objective | next token of the completion and its end, from a record in any order |",
        optimiser_row(recipe),
        *(f"| {key} | {value:,} |" for key, value in corpus.items()),
        "| data | Made at run time from a seed (`domains/text/data/world.py`); no file, no licence. |",
        f"| sha256 | `{hashlib.sha256(path.read_bytes()).hexdigest()}` |",
        "",
        "## Held-out records",
        "",
        "| | |",
        "| --- | --- |",
        f"| loss, nat per token | {figures['loss']:.3f} (frequencies alone {figures['loss, frequencies alone']:.3f}) |",
        f"| next token right | {figures['accuracy']:.3f} |",
        f"| syllables of spelled names right (never seen together, 1 of 90 by chance) "
        f"| {figures['accuracy, syllables']:.3f} |",
        f"| tokens | {figures['tokens']:,} |",
        "",
        "| step | " + " | ".join(f"{c['step']:,}" for c in shown) + " |",
        "| --- " * (len(shown) + 1) + "|",
        "| loss | " + " | ".join(f"{c['loss']:.3f}" for c in shown) + " |",
        "| syllables | " + " | ".join(f"{c['copied']:.3f}" for c in shown) + " |",
    ]
    return write_card(folder, name, lines, table)
