"""Records and how a new house style says them, made at run time from a seed (world.py). No file, no licence."""

from __future__ import annotations

from typing import Any

from core.errors import ConfigError
from domains.text.data import world
from domains.text.data.texts import Splits, Texts


class Twin(Texts):
    """Items: prompt (a record), completion (the record in the target style), slots, references; a record is a group.

    seed              which labelled records are drawn for train; val and test stay the same
    train, val, test  number of records; a smaller train set is the beginning of a larger one
    """

    kind = "twin"

    def __init__(self, *, seed: int = 0, train: int = 50, val: int = 24, test: int = 60):
        small = [(name, n) for name, n in (("train", train), ("val", val), ("test", test)) if n < 1]
        if small:
            raise ConfigError(where=f"data.{small[0][0]}", got=small[0][1], allowed="at least 1 record")
        super().__init__(Splits())
        self.seed, self.sizes = seed, {"train": train, "val": val, "test": test}

    def setup(self) -> None:
        seeds = {"train": 1000 + self.seed, "val": 1, "test": 2}
        self.keep({split: records(split, n, seeds[split]) for split, n in self.sizes.items()})

    def general_items(self) -> list[dict[str, Any]]:
        """New records in the styles of pretraining."""
        return [{"id": f"old-{i}", "group": f"old-{i}", **item} for i, item in enumerate(world.corpus(60, 8))]


def records(split: str, number: int, seed: int) -> list[dict[str, Any]]:
    items = []
    for i, item in enumerate(world.labelled(number, seed)):
        name = f"{split}-{i}-{item['slots']['name'].capitalize()}"
        items.append({"id": name, "group": name, **item, "references": [item["completion"]]})
    return items
