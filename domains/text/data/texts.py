"""What all readers of texts share: checks over all rows, splits, the rendering, the audit. A reader gives rows.

Row     a dict of id, group, split ('' unless given), line (in the file) and what is said: messages, or prompt and
        completion, or text; slots and references where there are any; choices and answer of a question
Item    the row without split and line

group   what a split keeps together: the file's own key, else the prompt, so that no test prompt was trained on
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

from core.contracts import Audit, Data, Split
from core.data.splits import GIVEN, Splitting
from core.data.text import Faults, refuse_repeated_ids
from core.errors import DataError
from domains.text.data.rendering import Rendered, Rendering


@dataclass(frozen=True)
class Splits(Splitting):
    """drop_leaks   train rows whose group is in another split are left out"""

    drop_leaks: bool = False

    def finished(self, parts: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
        if not self.drop_leaks:
            return parts
        held = {row["group"] for name in ("val", "test") for row in parts[name]}
        return {**parts, "train": [row for row in parts["train"] if row["group"] not in held]}


class Seen(NamedTuple):
    """What rendering found in one item: tokens, tokens with a loss, tokens cut, unknown tokens; `ended`: the end has a
    loss"""

    tokens: int
    supervised: int
    cut: int
    unknown: int
    ended: bool


class Texts(Data):
    """Base of the readers: a subclass gives `read() -> (file name, rows)`.

    `render` is called by a task's check with the rendering and the backbone's tokenizer: from then on lengths are
    tokens, and the audit knows what a model would see.
    """

    def __init__(self, splitting: Splitting):
        self.splitting = splitting
        self._items: dict[str, list[dict[str, Any]]] = {}
        self.seen: dict[str, Seen] = {}  # by id
        self.notes: dict[str, int] = {}  # what was left out or changed, for the audit
        self.sample: dict[str, Any] | None = None  # one item as a model sees it: tokens and which have a loss
        self.shared_end = False  # padding and end are one token

    def read(self) -> tuple[str, list[dict[str, Any]]]:
        raise NotImplementedError

    def setup(self) -> None:
        file, rows = self.read()
        refuse_repeated_ids(file, rows)
        parts = self.splitting(rows, file)
        if left := len(rows) - sum(len(part) for part in parts.values()):
            self.notes["rows in no split, left out"] = left
        self.keep(parts)

    def keep(self, parts: dict[str, list[dict[str, Any]]]) -> None:
        hidden = ("split", "line")
        self._items = {
            name: [{k: v for k, v in row.items() if k not in hidden} for row in part] for name, part in parts.items()
        }

    def items(self, split: Split) -> Sequence[dict[str, Any]]:
        return self._items[split]

    def length(self, item: dict[str, Any]) -> int:
        """Tokens of the item as rendered; before that, words."""
        seen = self.seen.get(item["id"])
        return seen.tokens if seen else 1 + sum(len(text.split()) for text in spoken(item))

    def render(self, rendering: Rendering, tokenizer: Any) -> None:
        """Render every item once. DataError lists those that are too long (too_long=error) or have nothing to learn;
        too_long=drop leaves the long ones out of every split."""
        problems: list[Any] = []
        self.seen, self.shared_end = {}, tokenizer.pad in tokenizer.stops
        for split, items in self._items.items():
            kept, dropped = [], 0
            for item in items:
                try:
                    parts = rendered(item, rendering, tokenizer)
                except DataError as error:
                    problems += error.problems
                    continue
                if not parts:
                    dropped += 1
                    continue
                self.seen[item["id"]] = _seen(parts, tokenizer)
                kept.append(item)
                if self.sample is None:
                    self.sample = coloured(parts[0], tokenizer)
            self._items[split] = kept
            if dropped:
                self.notes[f"{split} items over the length limit, left out"] = dropped
        if problems:
            raise DataError(problems=[*problems[:20], *_more(problems[20:])])

    def general_items(self) -> list[dict[str, Any]]:
        """Items of what the model could say before: how much of it an adapter forgets is measured. [] where unknown."""
        return []

    def audit(self) -> Audit:
        from domains.text.data.audit import audit

        return audit(self._items, seen=self.seen, notes=self.notes, sample=self.sample, shared_end=self.shared_end)


def _more(rest: list[Any]) -> list[Any]:
    from core.errors import Problem

    return [Problem("items", f"{len(rest)} more of these")] if rest else []


def rendered(item: dict[str, Any], rendering: Rendering, tokenizer: Any) -> list[Rendered]:
    """One Rendered, one for each choice of a question, or none where the item is dropped."""
    if "choices" in item:
        return rendering.options(item, tokenizer)
    one = rendering(item, tokenizer)
    return [] if one is None else [one]


def _seen(parts: list[Rendered], tokenizer: Any) -> Seen:
    """Of a question: the tokens of all its choices, the fewest of them with a loss."""
    return Seen(
        sum(len(part.ids) for part in parts),
        min(sum(label >= 0 for label in part.labels) for part in parts),
        max(part.cut for part in parts),
        sum(tokenizer.unknown(part.ids) for part in parts),
        all(part.ended for part in parts),
    )


def coloured(part: Rendered, tokenizer: Any, most: int = 400) -> dict[str, Any]:
    """{"tokens": [text], "loss": [bool], "spans": [(text, loss)]} of one rendered item: what a picture colours. A span
    are neighbours of one kind, decoded together. The first `most` tokens."""
    ids, loss = part.ids[:most], [label >= 0 for label in part.labels[:most]]
    decode = partial(tokenizer.inner.decode, skip_special_tokens=False)
    spans = [
        (decode([ids[at] for at in places]), kind)
        for kind, places in ((kind, list(found)) for kind, found in groupby(range(len(ids)), loss.__getitem__))
    ]
    return {"tokens": [decode([i]) for i in ids], "loss": loss, "spans": spans}


def answer(item: dict[str, Any]) -> str:
    """What the model should write: the completion, the last turn, or the text."""
    return item["messages"][-1]["content"] if "messages" in item else item.get("completion", item.get("text", ""))


def spoken(item: dict[str, Any]) -> list[str]:
    """Every text of an item, in order."""
    if "messages" in item:
        return [turn["content"] for turn in item["messages"]]
    return [item[key] for key in ("text", "prompt", "completion") if key in item] + list(item.get("choices", []))


def read_split(faults: Faults, line: int, value: Any) -> str:
    """train, val or test; '' for a cell that is empty."""
    name = str(value or "").strip().lower()
    if name and name not in GIVEN:
        faults.add(line, "split", repr(value), ", ".join(GIVEN))
        return ""
    return GIVEN.get(name, "")
