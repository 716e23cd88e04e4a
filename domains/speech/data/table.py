"""csv and tsv tables of sound files: a label per file for classification, a text for a speaking task."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from core.data.splits import Splitting
from core.data.text import Faults, Table, read_table, require
from core.paths import locate
from domains.speech.data import flite
from domains.speech.data.utterances import SPLIT_COLUMNS, Reading, Utterances, check_readable, read_split


class Csv(Utterances):
    """Utterances of a table, one per row.

    path       csv or tsv, gzipped or not       audio   column of sound files, from the table's folder
    text, speaker, label, session, id   columns; None: not there (id: the file's name; speaker: one for all)
    together   what a split keeps together: utterance (its text), speaker or session
    split_column   for split given; None looks for `split`, `set`            others   as Reading and Utterances say
    """

    def __init__(
        self,
        path: str,
        *,
        audio: str = "path",
        text: str | None = None,
        speaker: str | None = None,
        label: str | None = None,
        session: str | None = None,
        id: str | None = None,
        phones: Literal["none", "flite"] = "none",
        together: Literal["utterance", "speaker", "session"] = "utterance",
        sample_rate: int | None = None,
        trim: float | None = None,
        loudness: float | None = None,
        shortest: float = 0.1,
        longest: float = 20.0,
        too_long: Literal["drop", "error"] = "error",
        minutes: float | None = None,
        split: Literal["given", "random"] = "given",
        split_column: str | None = None,
        seed: int = 0,
        val: float = 0.1,
        test: float = 0.2,
        limit: dict[str, int] | None = None,
        folder: str = flite.FOLDER,
    ):
        reading = Reading(sample_rate, trim, loudness, shortest, longest, too_long, minutes)
        super().__init__(Splitting(split, seed, val, test, limit), reading, together, phones, folder)
        self.path, self.audio, self.text, self.speaker = path, audio, text, speaker
        self.label, self.session, self.id, self.split_column = label, session, id, split_column

    def read(self) -> tuple[str, list[dict[str, Any]]]:
        table = read_table(self.path)
        columns = {"text": self.text, "speaker": self.speaker, "label": self.label, "session": self.session}
        columns = {name: column for name, column in columns.items() if column}
        named = {"audio": self.audio, "id": self.id, "split_column": self.split_column, **columns}
        require(table, [(f"data.{key}", column) for key, column in named.items() if column])
        faults = Faults(table.file)
        split = self._split_column(faults, table)
        self._needs(faults, columns)
        faults.check()
        if self.phones == "flite":
            flite.program()
        home = locate(self.path).parent
        rows = [self._row(faults, line, row, columns, split, home) for line, row in table.rows]
        faults.check()
        return table.file, rows

    def _row(
        self, faults: Faults, line: int, cells: dict[str, str], columns: dict[str, str], split: str | None, home: Path
    ) -> dict[str, Any]:
        path = cells[self.audio].strip()
        if not path:
            faults.add(line, self.audio, "no file", "the path of a sound file")
        name = cells[self.id].strip() if self.id else path
        if not name and path:
            faults.add(line, self.id or "id", "no id", "an id in every row")
        row = {"id": name, "line": line, "audio": home / path, "speaker": "speaker", "split": ""}
        for key, column in columns.items():
            row[key] = cells[column].strip()
            if not row[key]:
                faults.add(line, column, f"no {key}", f"a {key} in every row")
        if self.phones == "flite":
            check_readable(faults, line, self.text or "text", row["text"])
        if split:
            row["split"] = read_split(faults, line, split, cells[split])
        return row

    def _split_column(self, faults: Faults, table: Table) -> str | None:
        if self.splitting.kind != "given":
            return None
        found = self.split_column or next((c for c in table.columns if c.lower() in SPLIT_COLUMNS), None)
        if found is None:
            fix = "data.split=random, or data.split_column=NAME"
            faults.add(None, "header", "no column `split` or `set` for data.split=given", ", ".join(table.columns), fix)
        return found

    def _needs(self, faults: Faults, columns: dict[str, str]) -> None:
        """What the other options ask of the columns."""
        if self.together in ("speaker", "session") and self.together not in columns:
            got = f"data.together={self.together} and no column for it"
            faults.add(None, "header", got, f"data.{self.together}=NAME")
        if self.phones == "flite" and "text" not in columns:
            faults.add(None, "header", "data.phones=flite and no column of text", "data.text=NAME")
