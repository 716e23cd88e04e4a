"""Makes the embedded weights: `python -m domains.speech.pretrain mini|flite|listener [--out DIR] [--budget-s S]`.

mini      a FastSpeech of 0.9 M parameters that speaks as the twin's eight base speakers; no data needed, minutes
flite     the same network for English, from what flite's voices say now; needs flite and PEFT_ATLAS_DATA, half an hour
listener  an encoder of 0.4 M parameters that hears phones, pitch and voices, of flite's voices and the twin's; the same

`--compare` trains nothing: it adds to the card what the embedded weights are worth to a new speaker, against scratch.

Both print held-out errors, can be stopped and go on to the same bits, use one thread, and write <name>.safetensors,
<name>.json (shape, mel recipe, speakers) and <name>.md (card).
"""

from __future__ import annotations

import argparse
from pathlib import Path

WEIGHTS = Path(__file__).resolve().parent / "weights"
NAMES = {"mini": "acoustic_mini", "flite": "acoustic_flite", "listener": "listener"}


def recipe(which: str):
    """The recipe of `mini`, `flite` or `listener`."""
    from domains.speech.pretraining import listening, loop

    return {
        "mini": loop.Recipe("acoustic_mini", steps=1200, batch=16, lr=2e-3),
        "flite": loop.Recipe("acoustic_flite", steps=1400, batch=8, lr=2e-3),
        "listener": listening.Recipe(),
    }[which]


def corpora(which: str):
    """(training, held-out) corpus of a recipe. What flite spoke is kept in outputs/flite."""
    from domains.speech.data.flite import FOLDER
    from domains.speech.pretraining import corpus, listening

    if which == "mini":
        return corpus.twin()
    return corpus.flite(Path(FOLDER)) if which == "flite" else listening.corpora(Path(FOLDER))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m domains.speech.pretrain", description=__doc__.splitlines()[0])
    parser.add_argument("which", choices=sorted(NAMES))
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder of the three files (default: the package's)")
    parser.add_argument("--state", type=Path, help="folder of the resumable state (default: outputs/pretrain/<name>)")
    parser.add_argument("--steps", type=int, help="instead of the recipe's")
    parser.add_argument("--budget-s", type=float, help="stop after so many seconds, with the state saved")
    parser.add_argument("--compare", action="store_true", help="a new speaker: embedded weights against scratch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args(arguments)

    from core.errors import PeftError

    try:
        return run(given)
    except PeftError as error:
        print(error)
        return error.code


def run(given: argparse.Namespace) -> int:
    from dataclasses import replace

    import torch

    torch.set_num_threads(given.threads)
    if given.compare:
        return compare(given.which)
    from domains.speech.pretraining import card, listening, loop

    chosen = recipe(given.which)
    chosen = replace(chosen, seed=given.seed, steps=given.steps or chosen.steps)
    folder = given.state or Path("outputs", "pretrain", chosen.name)
    train, held = corpora(given.which)
    print(
        f"{chosen.name}  {train.facts['utterances']:,} utterances, {train.seconds() / 60:.1f} min; {chosen}", flush=True
    )
    step = listening if given.which == "listener" else loop
    model, facts = step.train(chosen, train, held, folder / "state.safetensors", budget=given.budget_s)
    if not facts["done"]:
        print(f"stopped at step {facts['step']:,} of {chosen.steps:,}; the same command goes on")
        return 0
    written = card.export(*step.shipped(model, train, held), chosen, facts, train, given.out)
    print("\n".join(f"wrote     {path}" for path in written))
    return 0


def compare(which: str) -> int:
    """Stores what the embedded weights are worth to a new speaker in <name>.transfer.json; writes the card anew."""
    import json

    from core.pretraining import put
    from domains.speech.pretraining import card, transfer

    name = NAMES[which]
    stored = WEIGHTS / f"{name}.transfer.json"
    found = transfer.compare(which, Path("outputs", "pretrain", name, "transfer"))
    put(stored, (json.dumps(found, indent=1) + "\n").encode())
    print(f"wrote     {stored}\nwrote     {card.write(WEIGHTS, name)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
