"""The Free Spoken Digit Dataset as one sound file per speaker: a row of index.csv names a part of a file.

index.csv   speaker, digit, take, start, end (samples), split (takes 0-4 are test, by the data set's own rule)
"""

from __future__ import annotations

from typing import Any, Literal

from core.data.splits import Splitting
from core.data.text import Faults, read_table, require
from core.errors import DataError
from core.paths import locate
from domains.speech.data import flite
from domains.speech.data.utterances import Reading, Utterances, read_split

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Fsdd(Utterances):
    """Spoken digits of five speakers, 8 kHz.

    path       the folder of index.csv and <speaker>.flac        label   digit or speaker
    together   utterance, or speaker: with split random, test speakers are then never heard in training
    others     as Reading and Utterances say
    """

    def __init__(
        self,
        path: str,
        *,
        label: Literal["digit", "speaker"] = "digit",
        together: Literal["utterance", "speaker"] = "utterance",
        sample_rate: int | None = None,
        trim: float | None = None,
        loudness: float | None = None,
        minutes: float | None = None,
        split: Literal["given", "random"] = "given",
        seed: int = 0,
        val: float = 0.1,
        test: float = 0.2,
        limit: dict[str, int] | None = None,
    ):
        reading = Reading(sample_rate, trim, loudness, shortest=0.1, longest=5.0, minutes=minutes)
        super().__init__(Splitting(split, seed, val, test, limit), reading, together, folder=flite.FOLDER)
        self.path, self.label = path, label

    def read(self) -> tuple[str, list[dict[str, Any]]]:
        folder = locate(self.path)
        if not folder.is_dir():
            raise DataError(str(self.path), "no such folder", "a folder with index.csv and <speaker>.flac")
        table = read_table(str(folder / "index.csv"))
        require(table, [("fsdd", name) for name in ("speaker", "digit", "take", "start", "end", "split")])
        faults, rows = Faults(table.file), []
        for line, row in table.rows:
            numbers = [row[name].strip() for name in ("digit", "start", "end")]
            if not all(text.isdigit() for text in numbers) or int(numbers[0]) > 9:
                faults.add(line, "digit, start, end", ", ".join(numbers), "a digit and two numbers of samples")
                continue
            digit, start, stop = map(int, numbers)
            speaker = row["speaker"].strip()
            found = {"id": f"{speaker}-{digit}-{row['take'].strip()}", "line": line, "speaker": speaker}
            found["label"] = speaker if self.label == "speaker" else WORDS[digit]
            found["split"] = read_split(faults, line, "split", row["split"]) if self.splitting.kind == "given" else ""
            rows.append({**found, "audio": folder / f"{speaker}.flac", "start": start, "stop": stop})
        faults.check()
        return table.file, rows
