"""New prompts for a trained run: `atlas predict RUN --input prompts.jsonl --out answers.jsonl`. No labels are read.

jsonl     a row holds prompt, or messages (the last of them the user's), or text; id where it has one. Completions are
          left where they are: generation does not look at them, likelihood needs them
txt       one prompt per line
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.errors import DataError

KEPT = ("prompt", "completion", "messages", "text", "choices", "slots", "references")


def read(path: Path, data: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Items of a file, in its order.

    data   the run's `data` config: `prompt` and `completion` name its own keys
    DataError   not JSON, nothing to read in a row, repeated ids
    """
    from core.data.text import Faults, json_lines, read_text

    file, text = read_text(str(path))
    if not file.endswith((".jsonl", ".json", ".jsonl.gz", ".json.gz")):
        lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
        return [{"id": str(number), "group": str(number), "prompt": line} for number, line in lines]
    names = {"prompt": "prompt", "completion": "completion"}
    names |= {key: data[key] for key in names if data and isinstance(data.get(key), str)}
    faults, items, first = Faults(file), [], {}
    for number, row in json_lines(text, faults):
        item = _item(row, names, number)
        if item is None:
            keys = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
            faults.add(number, "", keys, f"{names['prompt']}, messages or text")
            continue
        if first.setdefault(item["id"], number) != number:
            faults.add(number, "id", item["id"], f"each id once (first in line {first[item['id']]})")
        items.append(item)
    faults.check()
    if not items:
        raise DataError(str(path), "no prompt", "at least one")
    return items


def _item(row: Any, names: dict[str, str], number: int) -> dict[str, Any] | None:
    if not isinstance(row, dict):
        return None
    row = {**row, **{key: row[name] for key, name in names.items() if name in row}}
    if not any(row.get(key) for key in ("prompt", "messages", "text")):
        return None
    name = str(row.get("id", number))
    return {"id": name, "group": str(row.get("group", name)), **{key: row[key] for key in KEPT if row.get(key)}}
