"""E2E NLG: a meaning representation of a restaurant and the sentences that people wrote for it.

mr,ref csv of the challenge, or JSON lines {"mr": "name[The Vaults], food[Fast food]", "ref": ..., "split": ...}.
Several sentences share one MR; a random split of rows would train on the test's MRs, so the MR is the group.

Train has one item per sentence; in val and test an MR is one item, its sentences are the references that BLEU counts.
"""

from __future__ import annotations

import re
from typing import Any

from core.data.text import Faults, read_table, read_text, require
from domains.text.data.jsonl import objects, of_file
from domains.text.data.texts import Splits, Texts, read_split

SLOT = re.compile(r"\s*([^\[\],]+?)\s*\[([^\]]*)\]\s*(?:,|$)")


class E2E(Texts):
    """Items of E2E: prompt (the MR), completion, slots; in val and test also references.

    path       .jsonl, .csv or .tsv, gzipped or not, with mr and ref, and split where split=given
    ask        what the prompt looks like; {mr} is the meaning representation
    split      given or random, whole MRs       seed, val, test, limit   core.data.splits; a limit counts sentences
    general    file of texts of the old task: how much the model forgets of them is measured (null: nothing)
    """

    def __init__(
        self,
        path: str,
        *,
        ask: str = "{mr} =>",
        split: str = "given",
        seed: int = 0,
        val: float = 0.1,
        test: float = 0.1,
        limit: dict[str, int] | None = None,
        general: str | None = None,
    ):
        super().__init__(Splits(split, seed, val, test, limit))
        self.path, self.ask, self.general = path, ask, general

    def setup(self) -> None:
        super().setup()
        for split in ("val", "test"):
            self._items[split] = gathered(self._items[split])

    def general_items(self) -> list[dict[str, Any]]:
        return of_file(self.general) if self.general else []

    def read(self) -> tuple[str, list[dict[str, Any]]]:
        file, text = read_text(self.path)
        faults, rows = Faults(file), []
        if text.lstrip()[:1] in ("{", "["):
            found = objects(text, faults)
        else:
            table = read_table(self.path)
            require(table, [("E2E", "mr"), ("E2E", "ref")])
            found = iter(table.rows)
        for line, row in found:
            mr, reference = str(row.get("mr") or "").strip(), str(row.get("ref") or "").strip()
            slots = parse(mr)
            if slots is None:
                faults.add(line, "mr", repr(mr[:40]), "slots as name[The Vaults], food[Fast food]")
            if not reference:
                faults.add(line, "ref", "nothing to learn ('')", "a sentence")
            split = read_split(faults, line, row.get("split"))
            rows.append({"id": str(line), "group": mr, "split": split, "line": line, "slots": slots,
                         "prompt": self.ask.replace("{mr}", mr), "completion": reference})  # fmt: skip
        faults.check()
        return file, rows


def parse(mr: str) -> dict[str, str] | None:
    """Slot -> value of "name[The Vaults], food[Fast food]"; None where something is left over."""
    slots, at = {}, 0
    while at < len(mr):
        found = SLOT.match(mr, at)
        if found is None:
            return None
        slots[found[1]] = found[2].strip()
        at = found.end()
    return slots or None


def gathered(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One item per MR: the first one's, with the sentences of all as references."""
    first: dict[str, dict[str, Any]] = {}
    for item in items:
        known = first.setdefault(item["group"], {**item, "references": []})
        known["references"].append(item["completion"])
    return list(first.values())
