"""LJ Speech's layout: one speaker, a folder with metadata.csv and a folder of sound files.

metadata.csv   cells between `|`, never quoted: `id|text|normalised text`, or with a header that names at least id and
               text, and may name split, normalized_text, speaker
sound          wavs/ID.wav (or flac/, audio/, beside it)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from core.data.splits import Splitting
from core.data.text import Faults, read_text
from core.errors import DataError, did_you_mean
from core.paths import locate
from domains.speech.data import flite
from domains.speech.data.audio import SUFFIXES
from domains.speech.data.utterances import Reading, Utterances, check_readable, read_split

CLASSIC = ("id", "text", "normalized_text")
SPOKEN = ("normalized_text", "normalised_text", "text")  # what is read aloud: the first of these that the file has
FOLDERS = ("wavs", "flac", "audio", "")


class LJSpeech(Utterances):
    """Utterances of one speaker.

    path      the folder             speaker   its name; a speaker of the base's own goes on from that voice
    phones    flite aligns recordings with flite's speech of their text: a speaking task needs it
    split     given (a column `split`) or random, texts kept together       others   as Reading and Utterances say
    """

    def __init__(
        self,
        path: str,
        *,
        speaker: str = "target",
        phones: Literal["none", "flite"] = "flite",
        sample_rate: int | None = None,
        trim: float | None = None,
        loudness: float | None = None,
        shortest: float = 0.3,
        longest: float = 15.0,
        too_long: Literal["drop", "error"] = "error",
        minutes: float | None = None,
        split: Literal["given", "random"] = "given",
        seed: int = 0,
        val: float = 0.1,
        test: float = 0.2,
        limit: dict[str, int] | None = None,
        folder: str = flite.FOLDER,
    ):
        reading = Reading(sample_rate, trim, loudness, shortest, longest, too_long, minutes)
        super().__init__(Splitting(split, seed, val, test, limit), reading, "utterance", phones, folder)
        self.path, self.speaker = path, speaker

    def read(self) -> tuple[str, list[dict[str, Any]]]:
        folder = locate(self.path)
        if not folder.is_dir():
            beside = [p.name for p in folder.parent.iterdir()] if folder.parent.is_dir() else []
            got = "not a folder" if folder.exists() else "no such folder"
            fix = did_you_mean(folder.name, beside)
            raise DataError(str(self.path), got, "a folder with metadata.csv and wavs/", fix)
        if self.phones == "flite":
            flite.program()
        file, columns, lines = cells(folder / "metadata.csv")
        faults, rows = Faults(file), []
        if self.splitting.kind == "given" and "split" not in columns:
            fix = "data.split=random, or a header with a column `split`"
            faults.add(None, "columns", "no column `split` for data.split=given", ", ".join(columns), fix)
        spoken = next(name for name in SPOKEN if name in columns)
        for line, row in lines:
            name = row["id"].strip()
            text = row.get(spoken, "").strip() or row.get("text", "").strip()
            if not name:
                faults.add(line, "id", "no id", "an id in every row")
            if not text:
                faults.add(line, spoken, "no text", "what is said in this file")
            elif self.phones == "flite":
                check_readable(faults, line, spoken, text)
            split = read_split(faults, line, "split", row.get("split", "")) if self.splitting.kind == "given" else ""
            speaker = row.get("speaker", "").strip() or self.speaker
            found = {"id": name, "line": line, "speaker": speaker, "text": text, "split": split}
            rows.append({**found, "audio": sound(folder, name)})
        faults.check()
        return file, rows


def cells(path: Path) -> tuple[str, list[str], list[tuple[int, dict[str, str]]]]:
    """(file name, columns, [(line, cells by column)]) of a table between `|` in which quotes mean nothing.

    DataError   as core.data.text.read_text; a row with another number of cells than the first
    """
    file, text = read_text(str(path))
    lines = [(n, line.split("|")) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
    faults = Faults(file)
    header = [cell.strip().lower() for cell in lines[0][1]]
    if "id" in header:
        columns, lines = header, lines[1:]
        if not set(SPOKEN) & set(columns):
            faults.add(1, "header", f"no column {' or '.join(SPOKEN)}", ", ".join(columns))
        if not lines:
            faults.add(None, "", "a header and no rows", "at least one row")
    else:
        columns = list(CLASSIC[: len(header)]) if 2 <= len(header) <= 3 else list(CLASSIC)
    for line, row in lines:
        if len(row) != len(columns):
            fix = "take the `|` out of the text" if len(row) > len(columns) else ""
            faults.add(line, "", f"{len(row)} cells", f"{len(columns)}: {'|'.join(columns)}", fix)
    faults.check()
    return file, columns, [(line, dict(zip(columns, row, strict=True))) for line, row in lines]


def sound(folder: Path, name: str) -> Path:
    """The sound file of an id, where it lies or should lie."""
    for place in FOLDERS:
        for suffix in SUFFIXES:
            if (path := folder / place / f"{name}{suffix}").is_file():
                return path
    return folder / next((place for place in FOLDERS if (folder / place).is_dir()), "wavs") / f"{name}.wav"
