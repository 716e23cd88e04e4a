"""Makes the embedded weights: `python -m domains.text.pretrain [--out DIR] [--budget-s S]`.

A Llama of 0.4 M parameters for the twin's world, by next-token prediction; no data needed, minutes of one core.
`--compare` trains nothing: it adds to the card what the embedded weights gain over scratch with few records.

It prints the loss on held-out records and how many syllables of new names are copied, can be stopped and goes on to the
same bits, uses one thread, and writes <name>.safetensors (keys of transformers' `LlamaForCausalLM`), <name>.json (its
configuration), <name>.tokenizer.json and <name>.md (card).
"""

from __future__ import annotations

import argparse
from pathlib import Path

WEIGHTS = Path(__file__).resolve().parent / "weights"
NAME = "tiny_llama"


def recipe():
    from domains.text.pretraining.loop import Recipe

    return Recipe(NAME)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m domains.text.pretrain", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder of the four files (default: the package's)")
    parser.add_argument("--state", type=Path, help=f"folder of the resumable state (default: outputs/pretrain/{NAME})")
    parser.add_argument("--steps", type=int, help="instead of the recipe's")
    parser.add_argument("--budget-s", type=float, help="stop after so many seconds, with the state saved")
    parser.add_argument("--compare", action="store_true", help="few records: embedded weights against scratch")
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

    from domains.text.pretraining import card, loop

    torch.set_num_threads(given.threads)
    if given.compare:
        return compare()
    chosen = recipe()
    chosen = replace(chosen, seed=given.seed, steps=given.steps or chosen.steps)
    folder = given.state or Path("outputs", "pretrain", chosen.name)
    print(f"{chosen.name}  {chosen}", flush=True)
    net, tokenizer, facts = loop.train(chosen, folder / "state.safetensors", budget=given.budget_s)
    if not facts["done"]:
        print(f"stopped at step {facts['step']:,} of {chosen.steps:,}; the same command goes on")
        return 0
    written = card.export(net, tokenizer, chosen, facts, given.out)
    print("\n".join(f"wrote     {path}" for path in written))
    return 0


def compare() -> int:
    """Stores the few-record comparison of the embedded weights as <name>.transfer.json and writes the card anew."""
    import json

    from core.pretraining import put
    from domains.text.pretraining import card, transfer

    stored = WEIGHTS / f"{NAME}.transfer.json"
    put(stored, (json.dumps(transfer.compare(NAME), indent=1) + "\n").encode())
    print(f"wrote     {stored}\nwrote     {card.write(WEIGHTS, NAME)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
