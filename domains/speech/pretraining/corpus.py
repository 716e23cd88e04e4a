"""What the acoustic models are pretrained on, prepared once and kept in memory as half precision.

twin    the eight base speakers of the twin's world 0; no data needed
flite   sentences that flite's voices speak now, each also with a longer and a shorter vocal tract: twelve speakers;
        needs the program flite and questions of BoolQ in the folder of real data
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from domains.speech.data.phones import INDEX
from domains.speech.features import LJSPEECH, MelRecipe
from domains.speech.tasks.utterances import Utterance, padded, utterance

QUESTIONS = "data://text/llm_adapters/boolq_train.jsonl.gz"
TRACTS = (0.9, 1.0, 1.1)  # factors on pitch, formants and rate
LEVEL = -25.0  # dB, mean square of every utterance
TWIN = MelRecipe(sample_rate=16000)  # the sample rate of the twin's world


@dataclass
class Corpus:
    """Utterances by row: symbols, speaker's number, features. `facts` go to the card."""

    recipe: MelRecipe
    speakers: tuple[str, ...]
    phones: list[list[str]] = field(default_factory=list)
    voices: list[int] = field(default_factory=list)
    spoken: list[Utterance] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def add(self, items: Iterable[dict[str, Any]]) -> Corpus:
        for item in items:
            one = utterance(item, self.recipe)
            self.phones.append([symbol for symbol, _ in item["phones"]])
            self.voices.append(self.speakers.index(item["speaker"]))
            self.spoken.append(one._replace(mel=one.mel.half()))
        return self

    def seconds(self) -> float:
        return sum(len(one.mel) for one in self.spoken) * self.recipe.hop_s

    def batch(self, reader: Any, rows: Sequence[int]) -> dict[str, Tensor]:
        batch = reader.read([self.phones[i] for i in rows]) | padded([self.spoken[i] for i in rows])
        batch["mel"] = batch["mel"].float()
        return batch | {"speaker": torch.tensor([self.voices[i] for i in rows])}


def indices(symbols: Sequence[str]) -> Tensor:
    return torch.tensor([INDEX[s] for s in symbols])


def twin(utterances: int = 150, held: int = 6) -> tuple[Corpus, Corpus]:
    """(training, held-out) utterances of each base speaker of world 0; the sentences differ."""
    from domains.speech.data.world import World

    world = World(0)
    voices = world.base()
    made = [Corpus(TWIN, tuple(voice.name for voice in voices)) for _ in range(2)]
    for corpus, stream, count in zip(made, ("pretrain", "held"), (utterances, held), strict=True):
        for voice in voices:
            corpus.add(world.sample(stream, voice, count))
    made[0].facts = {"speakers": f"{len(voices)}, of the twin's world 0", "utterances": len(made[0].spoken)}
    return made[0], made[1]


def flite_speakers() -> tuple[str, ...]:
    """flite's voices by name; with another length of the tract, the name has it behind an x."""
    from domains.speech.data.flite import VOICES

    return tuple(voice if tract == 1 else f"{voice}x{tract}" for voice in VOICES for tract in TRACTS)


def flite_items(folder: Path, utterances: int, held: int, rate: int) -> tuple[list[dict], list[dict]]:
    """(training, held-out) items of each of the twelve speakers; every sentence is spoken once.

    folder   where what was spoken is kept       rate   Hz
    """
    from domains.speech.data.flite import VOICES

    speakers = flite_speakers()
    made: tuple[list[dict], list[dict]] = [], []
    for at, text in enumerate(_texts(len(speakers) * (utterances + held))):
        number, turn = at % len(speakers), at // len(speakers)
        voice, tract = VOICES[number // len(TRACTS)], TRACTS[number % len(TRACTS)]
        made[turn >= utterances].append(_spoken(text, voice, tract, speakers[number], folder, rate))
        if (at + 1) % 200 == 0:
            print(f"  spoken  {at + 1:,}", flush=True)
    return made


def flite(folder: Path, utterances: int = 120, held: int = 4) -> tuple[Corpus, Corpus]:
    """(training, held-out) corpus of `flite_items`."""
    speakers = flite_speakers()
    train, test = (
        Corpus(LJSPEECH, speakers).add(items) for items in flite_items(folder, utterances, held, LJSPEECH.sample_rate)
    )
    train.facts = {
        "speakers": f"{len(speakers)}: flite's four voices, each at {', '.join(map(str, TRACTS))} of its tract",
        "utterances": len(train.spoken),
        "text": "two of three are questions of BoolQ (CC BY-SA 3.0), the others from domains/speech/data/sentences.py",
    }
    return train, test


def _texts(count: int) -> list[str]:
    """Questions of BoolQ, every third place a sentence of the grammar."""
    import gzip
    import json

    from core.paths import locate
    from domains.speech.data.sentences import sentences

    with gzip.open(locate(QUESTIONS), "rt", encoding="utf-8") as file:
        asked = [json.loads(line)["instruction"].split("question: ")[1].split("\n")[0] for line in file]
    asked = iter([text for text in dict.fromkeys(asked) if text.isascii() and not any(c.isdigit() for c in text)])
    own = iter(sentences(count // 3 + 1, seed=1))
    return [next(own) if at % 3 == 2 else next(asked) for at in range(count)]


def _spoken(text: str, voice: str, tract: float, speaker: str, folder: Path, rate: int) -> dict[str, Any]:
    from domains.speech.data.flite import speak

    said = speak(text, voice, folder)
    phones = [(symbol, seconds / tract) for symbol, seconds in said.phones]
    read = partial(_read, said.path, tract, rate)
    return {"id": text, "speaker": speaker, "text": text, "phones": phones, "read": read}


def _read(path: Path, tract: float, rate: int) -> tuple[Any, int]:
    from domains.speech.data.audio import Audio, level, resample

    samples, own = Audio(str(path))()
    return level(resample(samples, round(own * tract), rate), LEVEL), rate
