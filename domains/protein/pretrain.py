"""Makes the embedded weights: `python -m domains.protein.pretrain mini|small [--out DIR] [--budget-s S]`.

mini    an ESM-2 of 0.8 M parameters for the twin's world, by masked prediction; no data needed, minutes
small   an ESM-2 of 0.8 M parameters for real proteins; needs the FLIP tables (PEFT_ATLAS_DATA), about an hour

`--compare` trains nothing: it adds to the card what the embedded weights gain over scratch with few labels.

Both print masked accuracy and loss on held-out families, can be stopped and go on to the same bits, use one thread, and
write <name>.safetensors (keys of transformers' `EsmForMaskedLM`), <name>.json (its configuration) and <name>.md (card).
"""

from __future__ import annotations

import argparse
from pathlib import Path

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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m domains.protein.pretrain", description=__doc__.splitlines()[0])
    parser.add_argument("which", choices=sorted(NAMES))
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder of the three files (default: the package's)")
    parser.add_argument("--state", type=Path, help="folder of the resumable state (default: outputs/pretrain/<name>)")
    parser.add_argument("--steps", type=int, help="instead of the recipe's")
    parser.add_argument("--budget-s", type=float, help="stop after so many seconds, with the state saved")
    parser.add_argument(
        "--compare", action="store_true", help="few labels: embedded weights against scratch, into the card"
    )
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

    from domains.protein.pretraining import loop

    torch.set_num_threads(given.threads)
    if given.compare:
        return compare(given.which)
    chosen = recipe(given.which)
    chosen = replace(chosen, seed=given.seed, steps=given.steps or chosen.steps)
    folder = given.state or Path("outputs", "pretrain", chosen.name)
    train, held = corpora(given.which, folder)
    print(f"{chosen.name}  {len(train.tokens):,} proteins, {train.residues():,} residues; {chosen}", flush=True)
    model, facts = loop.train(chosen, train, held, folder / "state.safetensors", budget=given.budget_s)
    if not facts["done"]:
        print(f"stopped at step {facts['step']:,} of {chosen.steps:,}; the same command goes on")
        return 0
    from domains.protein.pretraining import card

    written = card.export(model, chosen, facts, train, held, given.out)
    print("\n".join(f"wrote     {path}" for path in written))
    return 0


def compare(which: str) -> int:
    """Stores the few-label comparisons of the embedded weights as <name>.transfer.json and writes the card anew."""
    import json

    from domains.protein.pretraining import card, transfer

    name, done = NAMES[which], []
    title, labelled, data = transfer.questions(which)
    for count in labelled:
        print(f"{name}  {count} labelled proteins", flush=True)
        done.append({"labelled": count} | transfer.compare(name, lambda seed, count=count: data(seed, count)))
    stored = WEIGHTS / f"{name}.transfer.json"
    card.put(stored, (json.dumps({"title": title, "comparisons": done}, indent=1) + "\n").encode())
    print(f"wrote     {stored}\nwrote     {card.write(WEIGHTS, name)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
