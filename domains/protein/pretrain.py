"""Makes the embedded weights: `python -m domains.protein.pretrain mini|small [--out DIR] [--budget-s S]`.

mini    an ESM-2 of 0.8 M parameters for the twin's world, by masked prediction; no data needed, minutes
small   an ESM-2 of 0.8 M parameters for real proteins; needs the FLIP tables (PEFT_ATLAS_DATA), about an hour

`--compare` trains nothing: it adds to the card what the embedded weights gain over scratch with few labels.

Both print masked accuracy and loss on held-out families, can be stopped and go on to the same bits, use one thread, and
write <name>.safetensors (keys of transformers' `EsmForMaskedLM`), <name>.json (its configuration) and <name>.md (card).
"""

from __future__ import annotations

from pathlib import Path

from core.recipe import command

WEIGHTS = Path(__file__).resolve().parent / "weights"
NAMES = {"mini": "esm2_mini", "small": "esm2_small"}


def initialise(net, seed: int = 0):
    """`net` with the start that the embedded weights grew from; `scratch` is compared fairly with it."""
    from domains.protein.pretraining.initialiser import initialise

    return initialise(net, seed)


def recipe(which: str):
    """The recipe of `mini` or `small`."""
    from domains.protein.pretraining.loop import Recipe

    return {
        "mini": Recipe("esm2_mini", steps=1500, lr=3e-3, warmup=50, crop=80),
        "small": Recipe(
            "esm2_small",
            steps=2200,
            lr=1.5e-3,
            warmup=200,
            conservation=1.0,
            masked=0.15,
            masked_weight=0.3,
            masked_from=800,
        ),
    }[which]


def corpora(which: str, out: Path):
    """(training, held-out) corpus of a recipe. `small` keeps the result of its homolog search in `out`."""
    from domains.protein.pretraining import corpus

    return corpus.twin() if which == "mini" else corpus.real(corpus.real_data(), out / "homologs.json")


def train(which: str, chosen, folder: Path, budget: float | None):
    from domains.protein.pretraining import card, loop

    seen, held = corpora(which, folder)
    print(f"{chosen.name}  {len(seen.tokens):,} proteins, {seen.residues():,} residues; {chosen}", flush=True)
    model, facts = loop.train(chosen, seen, held, folder / "state.safetensors", budget=budget)
    return facts, lambda out: card.export(model, chosen, facts, seen, held, out)


def compare(given) -> list[Path]:
    """Stores the few-label comparisons of the embedded weights as <name>.transfer.json and writes the card anew."""
    import json

    from core.pretraining import put
    from domains.protein.pretraining import card, transfer

    name, done = NAMES[given.which], []
    title, labelled, data = transfer.questions(given.which)
    for count in labelled:
        print(f"{name}  {count} labelled proteins", flush=True)
        done.append({"labelled": count} | transfer.compare(name, lambda seed, count=count: data(seed, count)))
    stored = WEIGHTS / f"{name}.transfer.json"
    put(stored, (json.dumps({"title": title, "comparisons": done}, indent=1) + "\n").encode())
    return [stored, card.write(WEIGHTS, name)]


def main(arguments: list[str] | None = None) -> int:
    compares = "few labels: embedded weights against scratch, into the card"
    return command(
        __doc__, "protein", WEIGHTS, recipe, train, compare, names=NAMES, compares=compares, arguments=arguments
    )


if __name__ == "__main__":
    raise SystemExit(main())
