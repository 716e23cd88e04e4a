"""Makes the embedded weights: `python -m domains.speech.pretrain mini|flite|listener [--out DIR] [--budget-s S]`.

mini      a FastSpeech of 0.9 M parameters that speaks as the twin's eight base speakers; no data needed, minutes
flite     the same network for English, from what flite's voices say now; needs flite and PEFT_ATLAS_DATA, half an hour
listener  an encoder of 0.4 M parameters that hears phones, pitch and voices, of flite's voices and the twin's; the same

`--compare` trains nothing: it adds to the card what the embedded weights are worth to a new speaker, against scratch.

Both print held-out errors, can be stopped and go on to the same bits, use one thread, and write <name>.safetensors,
<name>.json (shape, mel recipe, speakers) and <name>.md (card).
"""

from __future__ import annotations

from pathlib import Path

from core.recipe import command

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


def train(which: str, chosen, folder: Path, budget: float | None):
    from domains.speech.pretraining import card, listening, loop

    heard, held = corpora(which)
    print(
        f"{chosen.name}  {heard.facts['utterances']:,} utterances, {heard.seconds() / 60:.1f} min; {chosen}", flush=True
    )
    step = listening if which == "listener" else loop
    model, facts = step.train(chosen, heard, held, folder / "state.safetensors", budget=budget)
    return facts, lambda out: card.export(*step.shipped(model, heard, held), chosen, facts, heard, out)


def compare(given) -> list[Path]:
    """Stores what the embedded weights are worth to a new speaker in <name>.transfer.json; writes the card anew."""
    import json

    from core.pretraining import put
    from domains.speech.pretraining import card, transfer

    name = NAMES[given.which]
    stored = WEIGHTS / f"{name}.transfer.json"
    found = transfer.compare(given.which, Path("outputs", "pretrain", name, "transfer"))
    put(stored, (json.dumps(found, indent=1) + "\n").encode())
    return [stored, card.write(WEIGHTS, name)]


def main(arguments: list[str] | None = None) -> int:
    compares = "a new speaker: embedded weights against scratch"
    return command(
        __doc__, "speech", WEIGHTS, recipe, train, compare, names=NAMES, compares=compares, arguments=arguments
    )


if __name__ == "__main__":
    raise SystemExit(main())
