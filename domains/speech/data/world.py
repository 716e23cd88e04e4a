"""The twin's world: speakers and sentences made from a seed. Eight base speakers, and new ones from the same family.

Words     1-3 syllables of consonant, vowel and sometimes an end; the spelling is regular
Speaker   pitch, vocal tract, rate, tilt, breath, how F0 and durations follow the context, and how each vowel is said:
          a new speaker is a new draw, with an intonation that the base speakers hardly use
Emotion   pitch, range, rate and loudness relative to the speaker's own: only who knows the speaker can tell
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import numpy as np

from core.data.seeding import derive
from core.errors import DataError
from domains.speech.data.phones import PAUSE, UNVOICED
from domains.speech.data.synthesiser import SOUNDS, Voice, speak

SAMPLE_RATE = 16_000
SPEAKERS = 8  # of the base
LETTERS = {
    "iy": "ee", "eh": "e", "ae": "a", "aa": "o", "ao": "aw", "uw": "oo", "er": "ur", "m": "m", "n": "n", "l": "l",
    "w": "w", "y": "y", "s": "s", "sh": "sh", "f": "f", "z": "z", "p": "p", "t": "t", "k": "k", "d": "d",
}  # fmt: skip
VOWELS = ("iy", "eh", "ae", "aa", "ao", "uw", "er")
ENDS = ("n", "m", "l", "s", "t", "k")
EMOTIONS = {  # factors on F0, on its movements and on the rate; dB
    "neutral": (1.0, 1.0, 1.0, 0.0),
    "happy": (1.18, 1.8, 1.1, 2.0),
    "sad": (0.9, 0.4, 0.82, -4.0),
    "angry": (1.1, 1.2, 1.2, 5.0),
}


class World:
    """Speakers and a lexicon of `words` words. Weights pretrained in one world are of little use in another."""

    def __init__(self, seed: int = 0, *, words: int = 150):
        self.seed = seed
        rng = self.rng("lexicon")
        self.words: list[list[str]] = []
        while len(self.words) < words:
            word = [phone for _ in range(rng.choice([1, 2, 3], p=[0.3, 0.5, 0.2])) for phone in _syllable(rng)]
            if word not in self.words:
                self.words.append(word)

    def rng(self, *names: Any) -> np.random.Generator:
        """Random numbers of one named stream; streams are independent of each other."""
        return np.random.default_rng(derive(self.seed, "speech", *names))

    def base(self) -> list[Voice]:
        """The eight speakers that a model is pretrained on, "base0" to "base7"."""
        return [self.voice(f"base{i}") for i in range(SPEAKERS)]

    def voice(self, name: str) -> Voice:
        """The speaker of that name; any name but base0 ... base7 is a new one, with a wide rise at the end."""
        rng = self.rng("voice", name)
        base = name.startswith("base") and name[4:].isdigit() and int(name[4:]) < SPEAKERS
        high = int(name[4:]) % 2 == 1 if base else rng.random() < 0.5  # half of the base speakers are high voices
        tract = rng.normal(1.16 if high else 1.0, 0.035)
        return Voice(
            name,
            f0=float(np.exp(rng.normal(np.log(200 if high else 115), 0.14))),
            tract=float(tract),
            rate=float(np.exp(rng.normal(0, 0.13))),
            tilt=float(rng.normal(-7, 1.2)),
            breath=float(rng.normal(-26, 4)),
            accent=float(rng.uniform(0.5, 3.0) if base else rng.uniform(3.0, 4.0)),
            fall=float(rng.uniform(-5, 0) if base else rng.uniform(1.5, 3.0)),
            last=float(rng.uniform(1.1, 1.7)),
            shift=tuple((v, tuple(float(x) for x in np.exp(rng.normal(0, (0.08, 0.09, 0.05))))) for v in VOWELS),
        )

    def sample(self, stream: str, voice: Voice, count: int, seed: int = 0, emotion: str | None = None) -> list[dict]:
        """`count` utterances of a speaker. A smaller call gives the beginning of a larger one.

        stream    pretrain, held, train, val, test: each with its own sentences
        emotion   None: neutral, no label; a name of EMOTIONS: the item's label
        returns   items {id, group, speaker, text, seconds, phones [(symbol, seconds)], f0 [Hz per phone, 0 without
                  voice], read}; `read()` gives (samples float32, sample rate). The group is the utterance's text
        """
        items = []
        for i in range(count):
            rng = self.rng(stream, voice.name, seed, i, emotion or "")
            text, phones = self.sentence(rng)
            spoken = prosody(phones, voice, rng, EMOTIONS[emotion or "neutral"])
            name = f"{stream}-{voice.name}-{seed}-{i}" + (f"-{emotion}" if emotion else "")
            gain = EMOTIONS[emotion or "neutral"][3]
            items.append(
                {
                    "id": name,
                    "group": text,
                    "speaker": voice.name,
                    "text": text,
                    "seconds": sum(seconds for _, seconds, _ in spoken),
                    "phones": [(symbol, seconds) for symbol, seconds, _ in spoken],
                    "f0": [hertz for _, _, hertz in spoken],
                    "read": partial(read, tuple(spoken), voice, int(rng.integers(2**31)), gain),
                    **({"label": emotion} if emotion else {}),
                }
            )
        return items

    def sentence(self, rng: np.random.Generator) -> tuple[str, list[str]]:
        """(text, phones) of two to four words, with a pause at both ends and sometimes in the middle."""
        words = [self.words[i] for i in rng.integers(len(self.words), size=rng.integers(2, 5))]
        pause = rng.integers(1, len(words)) if rng.random() < 0.3 else None
        phones, text = [PAUSE], []
        for i, word in enumerate(words):
            if i == pause:
                phones.append(PAUSE)
                text[-1] += ","
            phones += word
            text.append("".join(LETTERS[phone] for phone in word))
        return " ".join(text) + ".", [*phones, PAUSE]


def prosody(
    phones: list[str], voice: Voice, rng: np.random.Generator, emotion: tuple[float, float, float, float]
) -> list[tuple[str, float, float]]:
    """(symbol, seconds, Hz) as this speaker says the phones; Hz is 0 for a phone without voice."""
    level, range_, rate, _ = emotion
    voice = replace(voice, f0=voice.f0 * level, rate=voice.rate * rate)
    spoken = []
    for i, symbol in enumerate(phones):
        seconds = SOUNDS[symbol].seconds / voice.rate * float(np.exp(rng.normal(0, 0.05)))
        if i >= len(phones) - 3:  # the last two phones and the pause
            seconds *= voice.last
        semitones = voice.fall * i / max(1, len(phones) - 1) + float(rng.normal(0, 0.15))
        if symbol in VOWELS and phones[i - 1] in UNVOICED:
            semitones += voice.accent
        hertz = 0.0 if symbol in UNVOICED else voice.f0 * 2 ** (range_ * semitones / 12)
        spoken.append((symbol, seconds, hertz))
    return spoken


def read(spoken: tuple, voice: Voice, seed: int, gain: float = 0.0) -> tuple[np.ndarray, int]:
    """(samples, sample rate) of an utterance; module level, so that an item can be sent to a worker."""
    return _said(spoken, voice, seed, gain).copy(), SAMPLE_RATE


@lru_cache(maxsize=512)  # of about 0.1 MB: a run reads an utterance several times
def _said(spoken: tuple, voice: Voice, seed: int, gain: float) -> np.ndarray:
    return speak(spoken, voice, seed=seed, gain=gain, sample_rate=SAMPLE_RATE)


def _syllable(rng: np.random.Generator) -> list[str]:
    starts = [symbol for symbol in LETTERS if symbol not in VOWELS]
    syllable = [str(rng.choice(starts)), str(rng.choice(VOWELS))]
    return syllable + ([str(rng.choice(ENDS))] if rng.random() < 0.3 else [])


def spelled(text: str) -> list[tuple[str, float]]:
    """(symbol, seconds) of a text in the twin's spelling, with pauses at its ends and commas; the seconds are SOUNDS'.

    DataError   a word that is no chain of consonant, vowel and perhaps an end
    """
    phones, strange = [PAUSE], []
    for word in text.lower().split():
        letters = word.strip(".,;:!?\"'()")
        found = _syllables(letters)
        if found is None:
            strange.append(letters or word)
            continue
        phones += found
        if word[-1] in ",;:":
            phones.append(PAUSE)
    if strange or len(phones) == 1:
        got = ", ".join(f"`{word}`" for word in strange[:5]) or "no words"
        allowed = f"words such as `seema tookur`: {' '.join(LETTERS.values())}"
        raise DataError(f"text {text[:40]!r}", got, allowed)
    phones += [] if phones[-1] == PAUSE else [PAUSE]
    return [(symbol, SOUNDS[symbol].seconds) for symbol in phones]


def _syllables(letters: str) -> list[str] | None:
    """Phones of a word, the longest spellings first; None where it cannot be read."""
    if not letters:
        return []
    starts = [symbol for symbol in LETTERS if symbol not in VOWELS]
    for start in _fitting(starts, letters):
        behind = letters[len(LETTERS[start]) :]
        for vowel in _fitting(VOWELS, behind):
            left = behind[len(LETTERS[vowel]) :]
            for end in [*_fitting(ENDS, left), ""]:
                rest = _syllables(left[len(LETTERS[end]) if end else 0 :])
                if rest is not None:
                    return [start, vowel, *([end] if end else []), *rest]
    return None


def _fitting(symbols: Sequence[str], letters: str) -> list[str]:
    return sorted((s for s in symbols if letters.startswith(LETTERS[s])), key=lambda s: -len(LETTERS[s]))
