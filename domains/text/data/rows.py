"""One row of a file: which kind it is, what it says, and what is wrong with it."""

from __future__ import annotations

from typing import Any

from core.data.text import Faults
from core.errors import did_you_mean

KEYS = {
    "messages": ("messages",),
    "conversations": ("conversations",),
    "prompt": ("prompt", "completion"),
    "instruction": ("instruction", "output"),
    "text": ("text",),
}
ROLES = {"human": "user", "gpt": "assistant"}


def kind_of(row: dict[str, Any], keys: dict[str, tuple[str, ...]]) -> str | None:
    """The first kind all of whose keys a row has."""
    return next((kind for kind, needed in keys.items() if all(key in row for key in needed)), None)


def wanted(row: dict[str, Any], keys: dict[str, tuple[str, ...]]) -> tuple[str, str]:
    every = {key for needed in keys.values() for key in needed}
    near = [text for text in (did_you_mean(str(key), every) for key in row if key not in every) if text]
    allowed = "; ".join(" and ".join(needed) for needed in keys.values())
    return allowed, near[0] if near else "data.prompt and data.completion name your own keys"


def read_content(
    faults: Faults, line: int, row: dict[str, Any], kind: str, keys: dict[str, tuple[str, ...]]
) -> dict[str, Any] | None:
    """messages, or prompt and completion, or text of a row; None where a fault was noted."""
    if kind == "conversations":
        return read_messages(faults, line, [_renamed(turn) for turn in row[kind] or []], kind)
    if kind == "messages":
        return read_messages(faults, line, row["messages"], kind)
    if kind == "prompt" and isinstance(row[keys["prompt"][0]], list):
        return read_messages(faults, line, row[keys["prompt"][0]] + list(row[keys["prompt"][1]]), keys["prompt"][0])
    if kind == "instruction":
        given = str(row.get("input") or "")
        row = {
            "instruction": f"{row['instruction']}\n{given}" if given else row["instruction"],
            "output": row["output"],
        }
    wrong = [key for key in keys[kind] if not isinstance(row[key], str)]
    for key in wrong:
        faults.add(line, key, f"{type(row[key]).__name__} {str(row[key])[:30]}", "text")
    if wrong:
        return None
    last = keys[kind][-1]
    if not row[last].strip():
        faults.add(line, last, f"nothing to learn ({row[last]!r})", "at least one word")
        return None
    if kind == "text":
        return {"text": row["text"]}
    return {"prompt": row[keys[kind][0]], "completion": row[last]}


def _renamed(turn: Any) -> Any:
    """ShareGPT's turn as one of messages."""
    if not isinstance(turn, dict):
        return turn
    return {"role": ROLES.get(turn.get("from"), turn.get("from")), "content": turn.get("value")}


def read_messages(faults: Faults, line: int, turns: Any, field: str) -> dict[str, Any] | None:
    """An optional system turn, then user and assistant by turns; the last word is the assistant's."""
    if not isinstance(turns, list) or not all(isinstance(t, dict) and "role" in t and "content" in t for t in turns):
        faults.add(line, field, str(turns)[:40], 'a list of {"role": ..., "content": ...}')
        return None
    roles = [str(turn["role"]) for turn in turns]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if not spoken or len(spoken) % 2 or spoken != ["user", "assistant"] * (len(spoken) // 2):
        allowed = "system (or not), then user, assistant, user, assistant, ...; assistant last"
        faults.add(line, field, ", ".join(roles) or "no turn", allowed)
        return None
    empty = [at for at, turn in enumerate(turns) if not isinstance(turn["content"], str) or not turn["content"].strip()]
    for at in empty:
        faults.add(line, f"{field}[{at}]", f"{roles[at]} says nothing ({turns[at]['content']!r})", "at least one word")
    if empty:
        return None
    return {"messages": [{"role": role, "content": t["content"]} for role, t in zip(roles, turns, strict=True)]}


def extras(faults: Faults, line: int, row: dict[str, Any]) -> dict[str, Any]:
    """slots and references, where a row has them."""
    found: dict[str, Any] = {}
    if row.get("slots") is not None:
        if isinstance(row["slots"], dict) and all(isinstance(v, str) for v in row["slots"].values()):
            found["slots"] = dict(row["slots"])
        else:
            faults.add(line, "slots", str(row["slots"])[:40], "an object of texts by name")
    if row.get("references") is not None:
        texts = row["references"]
        if isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts):
            found["references"] = texts
        else:
            faults.add(line, "references", str(row["references"])[:40], "a list of texts")
    return found


def question(content: dict[str, Any]) -> str:
    """What is asked: the prompt, or the user's first words; of a bare text the text itself."""
    if "messages" in content:
        return next(turn["content"] for turn in content["messages"] if turn["role"] == "user")
    return content.get("prompt", content.get("text", ""))
