"""JSON lines, one text each; what a row says is told by its keys. A folder has train.jsonl, val.jsonl, test.jsonl.

messages        [{"role": "system" | "user" | "assistant", "content": ...}, ...]
conversations   [{"from": "human" | "gpt" | "system", "value": ...}, ...]
prompt          with completion; data.prompt and data.completion name other keys
instruction     with output, and input where there is one
text            no prompt

Beside them: id, group, split, slots {name: value}, references [text]. Other keys are left alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.data.splits import GIVEN
from core.data.text import Faults, json_lines, read_text
from core.errors import DataError, did_you_mean
from core.paths import locate
from domains.text.data.rows import KEYS, extras, kind_of, question, read_content, wanted
from domains.text.data.texts import Splits, Texts, read_split

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz")


class Jsonl(Texts):
    """Texts of a .jsonl file (or .jsonl.gz), or of a folder with one file per split.

    path          see above for what a row may hold; all rows of a file are of one kind
    prompt, completion   keys of a row that are named otherwise (question and answer, for instance)
    group         key whose equal values stay in one split; null: `group` where rows have it, else the prompt
    split         given (key `split`, or the folder's files) or random; seed, val, test: core.data.splits
    limit         {train: 100}: at most so many rows, whole groups
    drop_leaks    train rows whose group is in another split are left out
    general       file of texts of the old task: how much the model forgets of them is measured (null: nothing)
    """

    def __init__(
        self,
        path: str,
        *,
        prompt: str = "prompt",
        completion: str = "completion",
        group: str | None = None,
        split: str = "random",
        seed: int = 0,
        val: float = 0.1,
        test: float = 0.2,
        limit: dict[str, int] | None = None,
        drop_leaks: bool = False,
        general: str | None = None,
    ):
        super().__init__(Splits(split, seed, val, test, limit, drop_leaks))
        self.path, self.group, self.general = path, group, general
        self.names = {"prompt": prompt, "completion": completion}

    def general_items(self) -> list[dict[str, Any]]:
        return of_file(self.general) if self.general else []

    def read(self) -> tuple[str, list[dict[str, Any]]]:
        found = [row for split, path in files(self.path) for row in self.read_file(path, split)]
        return Path(self.path).name, found

    def read_file(self, path: str, split: str = "") -> list[dict[str, Any]]:
        """Rows of one file; `split`: the folder's name for all of them, and part of ids that are line numbers."""
        file, text = read_text(path)
        faults, rows, kind = Faults(file), [], None
        keys = {**KEYS, "prompt": (self.names["prompt"], self.names["completion"])}
        for line, row in objects(text, faults):
            found = kind_of(row, keys)
            if found is None:
                faults.add(line, "", f"keys {', '.join(map(str, row)) or 'none'}", *wanted(row, keys))
                continue
            kind = kind or found
            if found != kind:
                faults.add(line, "", f"a row of {found}", f"{kind}, as the rows before it")
                continue
            content = read_content(faults, line, row, kind, keys)
            if content is not None:
                named = self._named(faults, line, row, content)
                if split:
                    own = {} if row.get("id") is not None else {"id": f"{split}-{line}"}
                    named |= {"split": split, "line": f"{line} of {file}", **own}
                rows.append({**named, **content, **extras(faults, line, row)})
        faults.check()
        return rows

    def _named(self, faults: Faults, line: int, row: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
        """id (the line, where the row has none), group, split and line."""
        key = self.group or "group"
        if self.group and row.get(self.group) is None:
            faults.add(line, self.group, "no value", "a group in every row", did_you_mean(self.group, row))
        group = row.get(key) if row.get(key) is not None else question(content)
        name = line if row.get("id") is None else row["id"]
        return {"id": str(name), "group": str(group), "split": read_split(faults, line, row.get("split")), "line": line}


def files(path: str) -> list[tuple[str, str]]:
    """(split or '', path) of a file, or of the files of a folder."""
    place = locate(path)
    if not place.is_dir():
        return [("", path)]
    found = [(GIVEN[p.name.split(".")[0]], str(p)) for p in sorted(place.iterdir())
             if p.name.endswith(SUFFIXES) and p.name.split(".")[0] in GIVEN]  # fmt: skip
    if not found:
        there = ", ".join(sorted(p.name for p in place.iterdir())[:8]) or "nothing"
        raise DataError(path, f"a folder with {there}", "train.jsonl, and val.jsonl and test.jsonl where there are any")
    return found


def objects(text: str, faults: Faults) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, object) of every line that holds one; others are faults. A file that is one JSON list is read, too."""
    if text.lstrip().startswith("["):
        try:
            whole = json.loads(text)
        except ValueError as error:
            faults.add(
                getattr(error, "lineno", 1), "", f"not JSON: {error}", "a list of objects, or one object per line"
            )
            return
        lines: Iterator[tuple[int, Any]] = enumerate(whole, 1)
    else:
        lines = json_lines(text, faults)
    for line, found in lines:
        if isinstance(found, dict):
            yield line, found
        else:
            faults.add(line, "", f"{type(found).__name__} {str(found)[:30]}", "an object")


def of_file(path: str, most: int = 200) -> list[dict[str, Any]]:
    """At most `most` items of a file of any kind, evenly spread, without splits: what a forgetting score reads."""
    keys = {"prompt": "question", "completion": "answer"} if _asks(path) else {}
    rows = Jsonl(path, **keys).read()[1]
    step = max(1, len(rows) // most)
    return [{k: v for k, v in row.items() if k not in ("split", "line")} for row in rows[::step][:most]]


def _asks(path: str) -> bool:
    """Whether the first row has question and answer."""
    first = next((row for _, row in objects(read_text(path)[1], Faults(path))), {})
    return {"question", "answer"} <= first.keys()
