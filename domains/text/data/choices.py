"""Multiple choice: JSON lines {"question", "choices", "answer"}, or LLM-Adapters' {"instruction", "answer"}.

answer      0-based index, letter (A, B, ...) or the choice itself
LLM-Adapters writes the choices into the instruction ("Answer1: ... Answer2: ...", "Answer format: answer1/answer2"):
they stay in the question, and the choices are what the format offers.
"""

from __future__ import annotations

import re
import string
from typing import Any

from core.data.text import Faults, read_text
from domains.text.data.jsonl import files, objects
from domains.text.data.texts import Splits, Texts, read_split

FORMAT = re.compile(r"\s*Answer format:\s*(\S+(?:\s*/\s*\S+)+)\s*$")
LETTERED = re.compile(r"\(([A-Z])\)")


class Choices(Texts):
    """Items with prompt, choices (list of str) and answer (index).

    path      a file, or a folder with train, val and test
    ask       what the prompt looks like; {question} is the question
    lead      what begins the answer to an LLM-Adapters question; the offered words ("answer1") are scored behind it
    split     given (key `split`, or the folder's files) or random; group is the question
    """

    def __init__(
        self,
        path: str,
        *,
        ask: str = "{question}\nAnswer:",
        lead: str = "the correct answer is",
        split: str = "random",
        seed: int = 0,
        val: float = 0.1,
        test: float = 0.2,
        limit: dict[str, int] | None = None,
        drop_leaks: bool = False,
    ):
        super().__init__(Splits(split, seed, val, test, limit, drop_leaks))
        self.path, self.ask, self.lead = path, ask, lead

    def read(self) -> tuple[str, list[dict[str, Any]]]:
        rows: list[dict[str, Any]] = []
        for split, path in files(self.path):
            file, text = read_text(path)
            faults = Faults(file)
            for line, row in objects(text, faults):
                found = self._row(faults, line, row)
                if found is not None:
                    name = str(row["id"]) if row.get("id") is not None else f"{split}-{line}" if split else str(line)
                    given = split or read_split(faults, line, row.get("split"))
                    rows.append({"id": name, "split": given, "line": f"{line} of {file}" if split else line, **found})
            faults.check()
        return self.path.rpartition("/")[2], rows

    def _row(self, faults: Faults, line: int, row: dict[str, Any]) -> dict[str, Any] | None:
        if {"question", "choices", "answer"} <= row.keys():
            asked, offered, said = row["question"], row["choices"], self.ask
        elif {"instruction", "answer"} <= row.keys():
            asked = "\n".join(str(row[key]) for key in ("instruction", "input") if row.get(key))
            offered, said = offers(asked), "{question}\n" + self.lead
            if offered is None:
                got = f"no choices in ...{asked[-30:]!r}"
                faults.add(line, "instruction", got, "`Answer format: a/b/c` at its end")
                return None
        else:
            faults.add(line, "", f"keys {', '.join(map(str, row)) or 'none'}",
                       "question, choices and answer; or instruction and answer")  # fmt: skip
            return None
        many = isinstance(offered, list) and len(offered) > 1
        if not (many and all(isinstance(choice, str) and choice.strip() for choice in offered)):
            faults.add(line, "choices", str(offered)[:40], "a list of at least two texts")
            return None
        at = index(row["answer"], offered)
        if at is None:
            names = f"0 to {len(offered) - 1}, a letter up to {string.ascii_uppercase[len(offered) - 1]}, or a choice"
            faults.add(line, "answer", repr(row["answer"]), names)
            return None
        prompt = said.replace("{question}", asked)
        return {"group": str(row.get("group") or asked), "prompt": prompt, "choices": offered, "answer": at,
                "completion": offered[at]}  # fmt: skip


def offers(instruction: str) -> list[str] | None:
    """Choices that an LLM-Adapters instruction names: "true/false", "answer1/answer2", or "(A) ... (B) ..."."""
    found = FORMAT.search(instruction)
    if found:
        return [choice.strip() for choice in found[1].split("/")]
    letters = LETTERED.findall(instruction)
    return letters if letters == list(string.ascii_uppercase[: len(letters)]) and len(letters) > 1 else None


def index(answer: Any, choices: list[str]) -> int | None:
    """0-based index of the answer, None where it is none of the choices."""
    if isinstance(answer, bool):
        answer = str(answer).lower()
    if isinstance(answer, int):
        return answer if 0 <= answer < len(choices) else None
    text = str(answer).strip()
    if text in choices:
        return choices.index(text)
    if len(text) == 1 and text.upper() in string.ascii_uppercase[: len(choices)]:
        return string.ascii_uppercase.index(text.upper())
    return int(text) if text.isdecimal() and int(text) < len(choices) else None
