"""Makes the embedded weights: `python -m domains.text.pretrain [--out DIR] [--budget-s S]`.

A Llama of 0.4 M parameters for the twin's world, by next-token prediction; no data needed, minutes of one core.
`--compare` trains nothing: it adds to the card what the embedded weights gain over scratch with few records.

It prints the loss on held-out records and how many syllables of new names are copied, can be stopped and goes on to the
same bits, uses one thread, and writes <name>.safetensors (keys of transformers' `LlamaForCausalLM`), <name>.json (its
configuration), <name>.tokenizer.json and <name>.md (card).
"""

from __future__ import annotations

from pathlib import Path

from core.recipe import command

WEIGHTS = Path(__file__).resolve().parent / "weights"
NAME = "tiny_llama"


def recipe():
    from domains.text.pretraining.loop import Recipe

    return Recipe(NAME)


def train(_: None, chosen, folder: Path, budget: float | None):
    from domains.text.pretraining import card, loop

    print(f"{chosen.name}  {chosen}", flush=True)
    net, tokenizer, facts = loop.train(chosen, folder / "state.safetensors", budget=budget)
    return facts, lambda out: card.export(net, tokenizer, chosen, facts, out)


def compare(_) -> list[Path]:
    """Stores the few-record comparison of the embedded weights as <name>.transfer.json and writes the card anew."""
    import json

    from core.pretraining import put
    from domains.text.pretraining import card, transfer

    stored = WEIGHTS / f"{NAME}.transfer.json"
    put(stored, (json.dumps(transfer.compare(NAME), indent=1) + "\n").encode())
    return [stored, card.write(WEIGHTS, NAME)]


def main(arguments: list[str] | None = None) -> int:
    compares = "few records: embedded weights against scratch"
    return command(__doc__, "text", WEIGHTS, lambda _: recipe(), train, compare, compares=compares, arguments=arguments)


if __name__ == "__main__":
    raise SystemExit(main())
