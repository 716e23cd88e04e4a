"""Every method on one page: the contract matrix, then each method's own header, presets and refusals.

atlas methods --write docs/methods.md
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

from core import catalog
from core.adapters import matrix
from core.adapters.matrix import Cell

COMMAND = "atlas methods --write docs/methods.md"
FACES = {
    "weight": ("Weight methods", "They change a weight, W' = weight(W), and merge into the base. Columns: layers."),
    "activation": ("Activation methods", "They act on what a module gives out. Columns: modules."),
    "token": ("Token methods", "They give virtual tokens, keys or values. Columns: what a backbone's port offers."),
    "selection": ("Selections", "They choose parameters of the network and train copies: of any layer, any parameter."),
}
ROOT = Path(__file__).resolve().parent.parent


def own() -> list[catalog.Method]:
    """The methods of this project, not those of installed packages."""
    found = [catalog.method(name) for name in catalog.methods()]
    return [m for m in found if m.definition is not None and m.definition.file.is_relative_to(ROOT)]


def page() -> str:
    """The page as Markdown."""
    found, named = own(), presets()
    rows = {m.name: matrix.row(m.name) for m in found}
    lines = ["# Methods", "", *_wrapped(f"{len(found)} methods in {sum(map(len, named.values()))} presets. "
             f"Written by `{COMMAND}` from the methods' own files; do not edit. "
             "`no` is an error when the adapter is attached, which says why and what to use.")]  # fmt: skip
    for face, (title, text) in FACES.items():
        members = [m for m in found if m.face == face]
        lines += ["", f"## {title}", "", text, ""]
        if columns := matrix.columns(face):
            lines += [f"- **{name}** {what}" for name, what in columns]
            lines += ["", *_row("", *(name for name, _ in columns)), *_row(*["---"] * (1 + len(columns)))]
            lines += [line for m in members for line in _row(f"[{m.name}](#{m.name})", *map(str, rows[m.name]))]
        else:
            lines += [f"- [{m.name}](#{m.name})" for m in members]
    if several := named.get("", []):
        lines += ["", "## Several at once", "", *[_preset(*one) for one in several]]
    lines += ["", "## Each method"]
    for m in found:
        lines += ["", f"### {m.name}", "", "```text", m.doc.strip(), "```", ""]
        lines += [_preset(*one) for one in named.get(m.name, [])]
        lines += [f"- not on {kinds}: {reason}" for kinds, reason in refusals(rows[m.name])]
    return "\n".join(lines) + "\n"


def presets() -> dict[str, list[tuple[str, str]]]:
    """method -> (preset, the comment that opens its file); "" for presets of several methods."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name, file in catalog.groups("").get("adapter", {}).items():
        comment, content = catalog.preset(file)
        settings = content.get("adapter", content)
        target = str(settings.get("_target_", "")) if isinstance(settings, dict) else ""
        method = target.split(".")[-2] if ".adapters.methods." in target else ""
        found.setdefault(method, []).append((name, re.sub(r"\s{2,}", ", ", comment.strip())))
    return found


def refusals(row: list[Cell]) -> Iterator[tuple[str, str]]:
    """(kinds, reason), kinds with one reason together."""
    by_reason: dict[str, list[str]] = {}
    for cell in row:
        if cell.reason:
            by_reason.setdefault(cell.reason, []).append(cell.kind)
    for reason, kinds in by_reason.items():
        yield ", ".join(kinds), reason


def _preset(name: str, comment: str) -> str:
    return f"- `adapter={name}` {comment}".rstrip()


def _row(*cells: str) -> list[str]:
    return ["| " + " | ".join(cells) + " |"]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 120, break_on_hyphens=False)
