"""The judges of a run, asked per utterance; beside each value stands what the judge says of the true recording.

recogniser   cer, cer_true        similarity   cosine to the speaker's training recordings, similarity_true
quality      1 to 5, quality_true
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from importlib import util
from typing import Any

import numpy as np

from core.errors import EnvironmentError_, Problem
from domains.speech import judges, metrics

UNITS = {
    "cer": ("", False),
    "cer_true": ("", False),
    "similarity": ("", True),
    "similarity_true": ("", True),
    "quality": ("1 to 5", True),
    "quality_true": ("1 to 5", True),
}
PACKAGES = {  # judge -> packages, how to get them
    "recogniser": (("pocketsphinx", "jiwer"), "pip install pocketsphinx==5.1.1 jiwer"),
    "similarity": (("resemblyzer",), "pip install --no-deps resemblyzer==0.1.4"),
    "quality": (("speechmos", "onnxruntime"), "pip install onnxruntime && pip install --no-deps speechmos==0.0.1.1"),
}


def check(names: Sequence[str]) -> None:
    """EnvironmentError_ lists the judges whose packages are missing: before a run is trained, not after."""
    problems = []
    for name in names:
        packages, fix = PACKAGES[name]
        if missing := [package for package in packages if util.find_spec(package) is None]:
            problems.append(Problem("task.judges", f"{name}: no package {', '.join(missing)}", "installed", fix))
    if problems:
        raise EnvironmentError_(problems=problems)


class Panel:
    """names        of recogniser, similarity, quality
    references   speaker -> what reads a training recording of that speaker"""

    def __init__(self, names: Sequence[str], references: dict[str, list[Callable]]):
        self.names, self.references = tuple(names), references
        self._voices: dict[str, np.ndarray] = {}
        self._true: dict[tuple[str, str], float] = {}

    @cached_property
    def _recogniser(self) -> judges.Recogniser:
        return judges.Recogniser()

    @cached_property
    def _listener(self) -> judges.Listener:
        return judges.Listener()

    @cached_property
    def _quality(self) -> judges.Quality:
        return judges.Quality()

    def __call__(
        self, name: str, text: str, speaker: str, said: np.ndarray, truth: np.ndarray | None, rate: int
    ) -> dict[str, float]:
        """Values of one utterance, `name` its id; those of the truth are asked once."""
        found: dict[str, float] = {}
        for judge, ask in (("recogniser", self._errors), ("similarity", self._alike), ("quality", self._clean)):
            if judge not in self.names:
                continue
            key = "cer" if judge == "recogniser" else judge
            value = ask(said, rate, text, speaker)
            if value is None:
                continue
            found[key] = value
            if truth is not None:
                if (name, key) not in self._true:
                    self._true[name, key] = ask(truth, rate, text, speaker)
                found[f"{key}_true"] = self._true[name, key]
        return found

    def _errors(self, sound: np.ndarray, rate: int, text: str, speaker: str) -> float | None:
        return metrics.error_rates([text], [self._recogniser.hear(sound, rate)])["cer"] if text else None

    def _alike(self, sound: np.ndarray, rate: int, text: str, speaker: str) -> float | None:
        if speaker not in self._voices:
            heard = [read() for read in self.references.get(speaker, [])]
            if not heard:
                return None
            self._voices[speaker] = np.stack([self._listener.embed(samples, own) for samples, own in heard])
        return self._listener.similarity(self._listener.embed(sound, rate), self._voices[speaker])

    def _clean(self, sound: np.ndarray, rate: int, text: str, speaker: str) -> float | None:
        return self._quality.opinion(sound, rate)


def references(items: Sequence[dict[str, Any]], count: int = 5) -> dict[str, list[Callable]]:
    """speaker -> readers of the first `count` recordings of at least 1.6 s, else of any."""
    found: dict[str, list[Callable]] = {}
    for item in sorted(items, key=lambda item: item["seconds"] < 1.6):
        if len(known := found.setdefault(item["speaker"], [])) < count:
            known.append(item["read"])
    return found
