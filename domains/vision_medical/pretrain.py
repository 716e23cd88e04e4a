"""Makes the embedded weights: `python -m domains.vision_medical.pretrain [--out DIR] [--budget-s S]`.

mini    a SegResNet of 0.6 M parameters: five organs of synthetic patients, every image in another contrast; no data

`--compare` trains adapters: it adds to the card what the weights gain at a site with a lesion class they have not seen.

It prints the Dice on held-out patients, can be stopped and goes on to the same bits, uses one thread, and writes
segresnet_mini.safetensors (keys of MONAI's `SegResNet`), .json (its options) and .md (card).
"""

from __future__ import annotations

import argparse
from pathlib import Path

WEIGHTS = Path(__file__).resolve().parent / "weights"
NAMES = {"mini": "segresnet_mini"}


def recipe(which: str):
    """The recipe of `mini`."""
    from domains.vision_medical.pretraining.loop import Recipe

    return {"mini": Recipe("segresnet_mini", steps=2000)}[which]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m domains.vision_medical.pretrain", description=__doc__.splitlines()[0]
    )
    parser.add_argument("which", nargs="?", default="mini", choices=sorted(NAMES))
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder of the three files (default: the package's)")
    parser.add_argument("--state", type=Path, help="folder of the resumable state (default: outputs/pretrain/<name>)")
    parser.add_argument("--steps", type=int, help="instead of the recipe's")
    parser.add_argument("--budget-s", type=float, help="stop after so many seconds, with the state saved")
    parser.add_argument("--compare", action="store_true", help="few patients: adapters against scratch, into the card")
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

    from domains.vision_medical.pretraining import card, loop, transfer

    torch.set_num_threads(given.threads)
    name = NAMES[given.which]
    folder = given.state or Path("outputs", "pretrain", name)
    if given.compare:
        stored = transfer.compare(name, folder / "compare", given.out)
        print(f"wrote     {stored}\nwrote     {card.write(given.out, name)}")
        return 0
    chosen = recipe(given.which)
    chosen = replace(chosen, seed=given.seed, steps=given.steps or chosen.steps)
    print(f"{name}  {chosen}", flush=True)
    net, facts = loop.train(chosen, folder / "state.safetensors", budget=given.budget_s)
    if not facts["done"]:
        print(f"stopped at step {facts['step']:,} of {chosen.steps:,}; the same command goes on")
        return 0
    written = card.export(net, chosen, facts, given.out)
    print("\n".join(f"wrote     {path}" for path in written))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
