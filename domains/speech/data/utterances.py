"""What all readers of speech share: sound files checked by their headers, limits, splits, phones, the audit.

Row    a dict of id, line (in the file), audio (Path), speaker, split ('' unless given), and, where there is one: text,
       label, session, phones [(symbol, seconds)], start and stop (samples in the file)
Item   {id, group, speaker, seconds, read, and text, label, session, phones where there are}; `read()` gives
       (samples fp32 mono, sample rate)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from core.contracts import Audit, Data, Split
from core.data.splits import GIVEN, Splitting
from core.data.text import Faults
from core.errors import ConfigError, Problem
from domains.speech.data import flite
from domains.speech.data.audio import Audio, Header, header

Row = dict[str, Any]
Together = Literal["utterance", "speaker", "session"]
SPLIT_COLUMNS = ("split", "set")


@dataclass(frozen=True)
class Reading:
    """How a recording becomes samples, and which are too short or too long.

    sample_rate      Hz to resample to; None: the files', which must agree
    trim, loudness   dB, as audio.Audio has them; None leaves the ends and the level as they are
    shortest, longest   seconds           too_long   drop or error; too short is always an error
    minutes          at most so much of train, whole groups drawn with the seed; a smaller draw is part of a larger one
    """

    sample_rate: int | None = None
    trim: float | None = None
    loudness: float | None = None
    shortest: float = 0.1
    longest: float = 20.0
    too_long: Literal["drop", "error"] = "error"
    minutes: float | None = None

    def __post_init__(self) -> None:
        found = []
        for name in ("sample_rate", "trim", "minutes", "shortest"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                found.append(Problem(f"data.{name}", str(value), "above 0"))
        if self.longest <= self.shortest:
            found.append(Problem("data.longest", str(self.longest), f"more than data.shortest, {self.shortest}"))
        if self.loudness is not None and self.loudness > 0:
            found.append(Problem("data.loudness", str(self.loudness), "0 dB or below"))
        if found:
            raise ConfigError(problems=found)


class Utterances(Data):
    """Base of the readers: a subclass gives `read() -> (file name, rows)`.

    together   what a split keeps together: the text of an utterance (its id, where there is none), speaker or session
    phones     flite: align recordings with flite's speech of their text (alignment.py); none: items have no phones
    folder     where flite's speech and alignments are kept
    """

    def __init__(
        self,
        splitting: Splitting,
        reading: Reading,
        together: Together = "utterance",
        phones: Literal["none", "flite"] = "none",
        folder: str = flite.FOLDER,
    ):
        self.splitting, self.reading, self.together = splitting, reading, together
        self.phones, self.folder = phones, folder
        self._items: dict[str, list[Row]] = {}
        self._headers: dict[Path, Header] = {}
        self.notes: dict[str, int] = {}  # what was left out, for the audit

    def read(self) -> tuple[str, list[Row]]:
        raise NotImplementedError

    def setup(self) -> None:
        file, rows = self.read()
        rows = self._checked(file, rows)
        for row in rows:
            row["group"] = self._group(row)
        parts = self.splitting(rows, file)
        parts["train"] = within(parts["train"], self.reading.minutes, self.splitting.seed)
        self._items = {name: [self._item(row) for row in part] for name, part in parts.items()}
        left = len(rows) - sum(len(part) for part in self._items.values())
        if left:
            self.notes["utterances in no split, left out"] = left

    def everything(self) -> list[Row]:
        """All utterances as items, without a split: new recordings for a trained run."""
        file, rows = self.read()
        rows = self._checked(file, rows)
        return [self._item(row | {"group": row["id"]}) for row in rows]

    def items(self, split: Split) -> Sequence[Row]:
        return self._items[split]

    def length(self, item: Row) -> int:
        """Duration in 10 ms."""
        return max(1, round(100 * item["seconds"]))

    def audit(self) -> Audit:
        from domains.speech.data.audit import audit

        return audit(self._items, together=self.together, headers=self._headers, notes=self.notes)

    def _group(self, row: Row) -> str:
        if self.together == "speaker":
            return row["speaker"]
        if self.together == "session":
            return row["session"]
        return row.get("text") or row["id"]

    def _checked(self, file: str, rows: list[Row]) -> list[Row]:
        """The rows that are used, each with `seconds`; DataError lists all that is wrong with ids and sound files."""
        faults, first, kept = Faults(file), {}, []
        for row in rows:
            line = first.setdefault(row["id"], row["line"])
            if line != row["line"]:
                faults.add(row["line"], "id", f"`{row['id']}` again", f"each id once (first in line {line})")
            if self._heard(faults, row):
                kept.append(row)
        self._one_rate(faults, kept)
        faults.check()
        return kept

    def _heard(self, faults: Faults, row: Row) -> bool:
        """Whether the row's sound can be used; notes what is wrong with it, and writes `seconds` into the row."""
        path, line = row["audio"], row["line"]
        if path not in self._headers:
            found, fault = header(path)
            if found is None:
                faults.add(line, "audio", f"{path}: {fault}", "a sound file (.wav, .flac, .ogg)")
                return False
            self._headers[path] = found
        found, reading = self._headers[path], self.reading
        start, stop = row.get("start", 0), row.get("stop", found.frames)
        if not 0 <= start < stop <= found.frames:
            faults.add(line, "audio", f"samples {start:,} to {stop:,} of {path.name}", f"within 0 to {found.frames:,}")
            return False
        row["seconds"] = (stop - start) / found.sample_rate
        if row["seconds"] < reading.shortest:
            limit = f"at least {reading.shortest:g} s (data.shortest)"
            faults.add(line, "audio", f"{path.name}: {row['seconds']:.3g} s", limit, "leave the row out")
            return False
        if row["seconds"] > reading.longest:
            if reading.too_long == "error":
                limit, fix = f"at most {reading.longest:g} s (data.longest)", "cut it, or data.too_long=drop"
                faults.add(line, "audio", f"{path.name}: {row['seconds']:.4g} s", limit, fix)
            else:
                name = "utterances over data.longest, left out"
                self.notes[name] = self.notes.get(name, 0) + 1
            return False
        return True

    def _one_rate(self, faults: Faults, rows: list[Row]) -> None:
        count = Counter(self._headers[row["audio"]].sample_rate for row in rows)
        if self.reading.sample_rate is None and len(count) > 1:
            got = ", ".join(f"{n} at {rate} Hz" for rate, n in count.most_common())
            fix = f"data.sample_rate={count.most_common(1)[0][0]} resamples"
            faults.add(None, "sample rate", f"a mix: {got}", "one rate", fix)

    def _item(self, row: Row) -> Row:
        reading = self.reading
        whole = row.get("start", 0) == 0 and row.get("stop") is None
        sound = Audio(
            str(row["audio"]),
            0 if whole else row["start"],
            None if whole else row["stop"],
            reading.sample_rate,
            reading.trim,
            reading.loudness,
        )
        item = {key: row[key] for key in ("id", "group", "speaker", "text", "label", "session", "phones") if key in row}
        item |= {"seconds": row["seconds"], "read": sound}
        samples = None
        if reading.trim is not None:
            samples, rate = sound()
            item["seconds"] = len(samples) / rate
        if self.phones == "flite" and "phones" not in item:
            from domains.speech.data import alignment

            samples, rate = sound() if samples is None else (samples, rate)
            item["phones"] = alignment.phones(item["text"], samples, rate, self.folder)
        return item


def within(rows: list[Row], minutes: float | None, seed: int) -> list[Row]:
    """Whole groups, drawn with the seed, that last at most `minutes` (at least one group); file order is kept."""
    if minutes is None or sum(row["seconds"] for row in rows) <= 60 * minutes:
        return rows
    seconds: dict[str, float] = {}
    for row in rows:
        seconds[row["group"]] = seconds.get(row["group"], 0.0) + row["seconds"]
    names, chosen, total = list(seconds), set(), 0.0
    for i in np.random.default_rng((seed, 11)).permutation(len(names)):
        if total + seconds[names[i]] > 60 * minutes and chosen:
            break
        chosen.add(names[i])
        total += seconds[names[i]]
    return [row for row in rows if row["group"] in chosen]


def check_readable(faults: Faults, line: int, field: str, text: str) -> None:
    """Notes letters that flite cannot say."""
    if letters := flite.unreadable(text):
        faults.add(line, field, f"letters {' '.join(letters)}", "Latin letters, read as English", "write it in English")


def read_split(faults: Faults, line: int, field: str, text: str) -> str:
    """train, val or test from a split cell, '' for an empty one."""
    name = text.strip().lower()
    if name in ("", "-", "none", "nan"):
        return ""
    if name not in GIVEN:
        faults.add(line, field, repr(text), ", ".join(GIVEN))
        return ""
    return GIVEN[name]
