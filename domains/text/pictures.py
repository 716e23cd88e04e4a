"""The field's own pictures, as small SVG: what was asked, what is right, what the model wrote before and after; and one
item as a model sees it, coloured by what has a loss.

A box is a value of the record, a wavy line under a word says that no reference has it: colours say nothing alone.
Every function takes prediction rows and returns the names of the files that it wrote into `directory`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from core.bench.plots import BLUE, GREY, INK, ORANGE
from core.bench.result import write_whole
from domains.text.data.slots import pattern

LETTER, LINE, SIZE = 7.25, 19, 12  # px: width of a letter, height of a line, size of the font
WIDE, LABEL = 100, 78  # letters per line; px of the column of labels
PALE = {BLUE: "#dfeaf6", ORANGE: "#fbe8da"}
FONT = "ui-monospace, 'DejaVu Sans Mono', Menlo, Consolas, monospace"
MOST = 420  # letters of one text


class Word(NamedTuple):
    text: str
    value: bool = False  # of the record
    foreign: bool = False  # no reference has it


def texts(
    rows: list[dict[str, Any]], directory: Path, *, name: str, before: Mapping[str, str] | None = None
) -> list[str]:
    """The worst, the median and the best text: asked, right, before, after.

    rows     prediction, truth (references), slots or prompt where there are any, score      name   of the score
    before   id -> what the base wrote without the adapter
    """
    known = sorted((r for r in rows if r.get("score") is not None and r.get("prediction") is not None),
                   key=lambda row: (row["score"], str(row["id"])))  # fmt: skip
    if not known:
        return []
    chosen = {"worst": known[0], "median": known[len(known) // 2], "best": known[-1]}
    page = Page()
    for label, row in chosen.items():
        page.title(f"{label}: {row['id']}, {name} {row['score']:.2f}")
        slots, truth = row.get("slots") or {}, list(row.get("truth") or [])
        if row.get("prompt") or slots:
            asked = row.get("prompt") or " | ".join(f"{slot} {value}" for slot, value in slots.items())
            page.row("asked", words(asked, slots))
        if truth:
            more = f"  (and {len(truth) - 1} more)" if len(truth) > 1 else ""
            page.row("right", words(truth[0], slots) + [Word(more)] * bool(more))
        if before and str(row["id"]) in before:
            page.row("before", words(before[str(row["id"])], slots, truth))
        page.row("after", words(row["prediction"], slots, truth), strong=True)
        if missing := [
            f"{slot} {value}" for slot, value in slots.items() if not pattern(slot, value).search(row["prediction"])
        ]:
            page.row("not said", [Word(", ".join(missing))], colour=ORANGE)
    legend = "box: a value of the record" if any(row.get("slots") for row in known) else ""
    page.note("   ".join(filter(None, (legend, "wavy line: in no reference"))))
    write_whole(Path(directory) / "texts.svg", page.svg())
    return ["texts.svg"]


def words(text: str, slots: Mapping[str, str], truth: Sequence[str] = ()) -> list[Word]:
    """The words of a text; `truth`: the references in which a word is looked for."""
    text = " ".join(text.split())
    text = text[:MOST] + ("..." if len(text) > MOST else "")
    spans = [
        m.span() for slot, value in slots.items() for m in re.finditer(rf"(?<!\w){re.escape(value)}(?!\w)", text, re.I)
    ]
    right = {w for reference in truth for w in re.findall(r"\w+", reference.lower())}
    found = []
    for match in re.finditer(r"\S+", text):
        inside = any(start < match.end() and match.start() < stop for start, stop in spans)
        core = re.findall(r"\w+", match[0].lower())
        found.append(Word(match[0], inside, bool(right) and not inside and any(w not in right for w in core)))
    return found or [Word("(nothing)")]


def labels(sample: Mapping[str, Any] | None, directory: Path) -> list[str]:
    """One item as the model reads it: tokens with a loss in boxes; special tokens and line breaks are shown.

    sample   {"tokens": [text], "loss": [bool]}, as domains.text.data.texts.coloured makes it
    """
    if not sample:
        return []
    page = Page()
    shown = [token.replace("\n", "⏎") or "·" for token in sample["tokens"]]
    page.title(f"one item as the model reads it: {sum(sample['loss'])} of {len(shown)} tokens have a loss")
    page.row("", [Word(t, loss) for t, loss in zip(shown, sample["loss"], strict=True)], apart=True)
    page.note("box: has a loss")
    write_whole(Path(directory) / "tokens.svg", page.svg())
    return ["tokens.svg"]


class Page:
    """Lines of words from top to bottom; `svg()` is the picture."""

    def __init__(self):
        self.parts: list[str] = []
        self.y = 4.0

    def title(self, text: str) -> None:
        self.y += LINE + 4
        self._text(0, text, INK, bold=True)

    def note(self, text: str) -> None:
        self.y += LINE + 2
        self._text(0, text, GREY)

    def row(
        self, label: str, found: list[Word], *, colour: str = INK, strong: bool = False, apart: bool = False
    ) -> None:
        """Words, wrapped; `apart`: tokens, with less room between them."""
        indent = LABEL if label else 0
        self.y += LINE
        if label:
            self._text(0, label, GREY)
        at, gap = 0.0, 0.45 if apart else 1
        for word in found:
            if at and at + len(word.text) > WIDE - indent / LETTER:
                at, self.y = 0, self.y + LINE
            x = indent + at * LETTER
            if word.value:
                self._box(x, len(word.text))
            self._text(x, word.text, ORANGE if word.foreign else colour, bold=strong and word.value, wavy=word.foreign)
            at += len(word.text) + gap

    def _box(self, x: float, letters: int) -> None:
        width = letters * LETTER
        self.parts.append(
            f'<rect x="{x - 1:.1f}" y="{self.y - 12.5:.1f}" width="{width + 1:.1f}" height="16.5" rx="2.5" '
            f'fill="{PALE[BLUE]}" stroke="{BLUE}" stroke-width=".6"/>'
        )

    def _text(self, x: float, text: str, colour: str, *, bold: bool = False, wavy: bool = False) -> None:
        weight = ' font-weight="600"' if bold else ""
        line = ' text-decoration="underline wavy"' if wavy else ""
        # The same width whatever font the reader has.
        fit = f' textLength="{len(text) * LETTER:.1f}" lengthAdjust="spacingAndGlyphs"' if text.strip() else ""
        self.parts.append(
            f'<text x="{x:.1f}" y="{self.y:.1f}" fill="{colour}"{weight}{line}{fit} xml:space="preserve">'
            f"{escape(text, quote=False)}</text>"
        )

    def svg(self) -> str:
        width, height = WIDE * LETTER + 8, self.y + 10
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-4 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
            f'height="{height:.0f}" font-family="{FONT}" font-size="{SIZE}">\n' + "\n".join(self.parts) + "\n</svg>\n"
        )
