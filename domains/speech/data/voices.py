"""Sentences in flite's voices, spoken at run time, with exact phones: for pretraining, or to try a path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from core.data.splits import Splitting
from core.data.text import read_text
from core.errors import ConfigError, Problem, did_you_mean
from domains.speech.data import flite
from domains.speech.data.audio import Audio
from domains.speech.data.sentences import sentences
from domains.speech.data.utterances import Reading, Utterances


class Flite(Utterances):
    """Utterances {id, group (the sentence), speaker (the voice), text, seconds, phones, read} of synthetic voices.

    voices   of flite.VOICES                  count   sentences, each spoken by every voice
    texts    a file with one sentence per line; None: sentences of a small grammar
    label    none, or voice: for classification           sample_rate   Hz to resample to, None: 16 kHz as spoken
    loudness   dB of the mean square, None: as spoken
    """

    def __init__(
        self,
        voices: list[str] | None = None,
        *,
        count: int = 60,
        texts: str | None = None,
        label: Literal["none", "voice"] = "none",
        sample_rate: int | None = None,
        loudness: float | None = None,
        minutes: float | None = None,
        seed: int = 0,
        val: float = 0.1,
        test: float = 0.2,
        limit: dict[str, int] | None = None,
        folder: str = flite.FOLDER,
    ):
        self.voices = list(voices or ("awb",))
        wrong = [v for v in self.voices if v not in flite.VOICES]
        problems = [Problem("data.voices", v, ", ".join(flite.VOICES), did_you_mean(v, flite.VOICES)) for v in wrong]
        if count < 3:
            problems.append(Problem("data.count", str(count), "at least 3 sentences"))
        if problems:
            raise ConfigError(problems=problems)
        reading = Reading(sample_rate, loudness=loudness, longest=60.0, minutes=minutes)
        super().__init__(Splitting("random", seed, val, test, limit), reading, "utterance", "none", folder)
        self.count, self.texts, self.label = count, texts, label

    def read(self) -> tuple[str, list[dict[str, Any]]]:
        flite.program()
        lines = sentences(self.count)
        if self.texts is not None:
            lines = [line.strip() for line in read_text(self.texts)[1].splitlines() if line.strip()][: self.count]
        rows = []
        for number, text in enumerate(lines, 1):
            for voice in self.voices:
                said = flite.speak(text, voice, self.folder)
                row = {"id": f"{voice}-{number}", "line": number, "speaker": voice, "text": text, "split": ""}
                row |= {"audio": said.path, "phones": said.phones}
                rows.append(row | ({"label": voice} if self.label == "voice" else {}))
        return self.texts or "flite", rows


def spoken(
    voices: Sequence[str], count: int, *, seed: int = 0, sample_rate: int | None = None, folder: str = flite.FOLDER
) -> list[dict[str, Any]]:
    """`count` items of each voice: sentences of the grammar with this seed. EnvironmentError_ where flite is missing.

    sample_rate   Hz to resample to, None: 16 kHz as spoken
    """
    items = []
    for number, text in enumerate(sentences(count, seed)):
        for voice in voices:
            said = flite.speak(text, voice, folder)
            item = {"id": f"{voice}-{seed}-{number}", "group": text, "speaker": voice, "text": text}
            item |= {"phones": said.phones}
            item |= {"seconds": said.frames / said.sample_rate, "read": Audio(str(said.path), sample_rate=sample_rate)}
            items.append(item)
    return items
