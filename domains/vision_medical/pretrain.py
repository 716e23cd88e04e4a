"""Makes the embedded weights: `python -m domains.vision_medical.pretrain [--out DIR] [--budget-s S]`.

mini    a SegResNet of 0.6 M parameters: five organs of synthetic patients, every image in another contrast; no data

`--compare` trains adapters: it adds to the card what the weights gain at a site with a lesion class they have not seen.

It prints the Dice on held-out patients, can be stopped and goes on to the same bits, uses one thread, and writes
segresnet_mini.safetensors (keys of MONAI's `SegResNet`), .json (its options) and .md (card).
"""

from __future__ import annotations

from pathlib import Path

from core.recipe import command

WEIGHTS = Path(__file__).resolve().parent / "weights"
NAMES = {"mini": "segresnet_mini"}


def recipe(which: str):
    """The recipe of `mini`."""
    from domains.vision_medical.pretraining.loop import Recipe

    return {"mini": Recipe("segresnet_mini", steps=2000)}[which]


def train(which: str, chosen, folder: Path, budget: float | None):
    from domains.vision_medical.pretraining import card, loop

    print(f"{chosen.name}  {chosen}", flush=True)
    net, facts = loop.train(chosen, folder / "state.safetensors", budget=budget)
    return facts, lambda out: card.export(net, chosen, facts, out)


def compare(given) -> list[Path]:
    from domains.vision_medical.pretraining import card, transfer

    name = NAMES[given.which]
    folder = given.state or Path("outputs", "pretrain", name)
    return [transfer.compare(name, folder / "compare", given.out), card.write(given.out, name)]


def main(arguments: list[str] | None = None) -> int:
    return command(
        __doc__,
        "vision_medical",
        WEIGHTS,
        recipe,
        train,
        compare,
        names=NAMES,
        default="mini",
        compares="few patients: adapters against scratch, into the card",
        arguments=arguments,
    )


if __name__ == "__main__":
    raise SystemExit(main())
