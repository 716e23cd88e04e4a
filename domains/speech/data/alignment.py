"""Phones and durations of recorded speech: flite says the same text, and its sound is warped onto the recording.

Method   flite's voice gives phones with exact times. Both sounds become 13 mel-cepstra and their slopes at 100 frames
         per second and 16 kHz, each coefficient with mean 0 and variance 1 over the utterance; dynamic time warping
         pairs the frames; a phone's boundary goes to the mean of the recording's frames that its own is paired with
Check    python -m domains.speech.data.alignment speaks sentences with two voices of flite, both with known times, and
         prints how far the warped boundaries are off, beside a uniform stretch of the phones
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path

import numpy as np

from core.bench.result import write_whole
from domains.speech import dtw
from domains.speech.data import flite
from domains.speech.data.audio import Audio, resample, sounding

RATE, STEP = 16_000, 160
PENALTY = 0.6
VOICE = "slt"
EDGE = 30.0  # dB below the loudest frame: what is softer at the ends is silence


def phones(text: str, samples: np.ndarray, rate: int, folder: str | Path = flite.FOLDER) -> list[tuple[str, float]]:
    """(symbol, seconds) that fill the recording; kept in `folder` by a hash of text and samples.

    DataError, EnvironmentError_   as flite.speak
    """
    key = hashlib.sha256(f"{VOICE}\0{text}\0{rate}\0".encode() + samples.tobytes()).hexdigest()[:20]
    file = Path(folder) / f"{key}.phones.json"
    if not file.is_file():
        spoken = flite.speak(text, VOICE, folder)
        model, _ = Audio(str(spoken.path), sample_rate=RATE)()
        found = aligned(spoken.phones, model, resample(samples, rate, RATE), len(samples) / rate)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps(found))
    return [(symbol, float(seconds)) for symbol, seconds in json.loads(file.read_text(encoding="utf-8"))]


def aligned(
    known: list[tuple[str, float]], model: np.ndarray, recording: np.ndarray, seconds: float
) -> list[tuple[str, float]]:
    """The phones of `model` with the durations that they have in `recording`, `seconds` in all.

    known              (symbol, seconds) of the model's sound, silence first and last
    model, recording   samples at 16 kHz
    """
    ends = np.cumsum([d for _, d in known])
    first, last = sounding(recording, RATE, EDGE)
    start, stop = _span(known, ends, len(model) / RATE)
    cut = model[round(start * RATE) : round(stop * RATE)]
    pairs = dtw.path(dtw.distances(_features(cut), _features(recording[first:last])), PENALTY)
    times = _mapped(pairs, (ends - start) * RATE / STEP) * STEP / RATE + first / RATE
    times[ends <= start + 1e-9] = first / RATE
    times[ends >= stop - 1e-9] = last / RATE
    times[-1] = seconds
    times = np.maximum.accumulate(np.clip(times, 0, seconds))
    gaps = np.diff(times, prepend=0.0)
    return [(symbol, float(gap)) for (symbol, _), gap in zip(known, gaps, strict=True) if gap > 0]


def uniform(known: list[tuple[str, float]], recording: np.ndarray, seconds: float) -> list[tuple[str, float]]:
    """The model's phones stretched evenly over the recording's sound; its silence goes to the first and last pause."""
    ends = np.cumsum([d for _, d in known])
    first, last = (at / RATE for at in sounding(recording, RATE, EDGE))
    start, stop = _span(known, ends, ends[-1])
    times = first + np.clip((ends - start) / (stop - start), 0, 1) * (last - first)
    times[-1] = seconds
    return [(s, float(d)) for (s, _), d in zip(known, np.diff(times, prepend=0.0), strict=True)]


def _span(known: list[tuple[str, float]], ends: np.ndarray, seconds: float) -> tuple[float, float]:
    """Seconds from the end of a leading pause to the beginning of a closing one."""
    start = float(ends[0]) if known[0][0] == flite.PAUSE else 0.0
    stop = float(ends[-2]) if known[-1][0] == flite.PAUSE and len(known) > 1 else seconds
    return start, max(stop, start + 2 * STEP / RATE)


def _mapped(pairs: tuple[np.ndarray, np.ndarray], at: np.ndarray) -> np.ndarray:
    """Where positions of the first sequence lie in the second: the mean of the frames paired with each."""
    first, second = pairs
    mean = np.bincount(first, second + 0.5) / np.bincount(first)
    return np.interp(at, np.arange(len(mean)) + 0.5, mean)


def _features(samples: np.ndarray) -> np.ndarray:
    """(frames, 26) normalised mel-cepstra and slopes."""
    import torch

    sound = torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))
    found = _transform()(sound).T.numpy().astype(np.float64)
    found = np.concatenate([found, 2 * np.gradient(found, axis=0)], 1) if len(found) > 1 else np.tile(found, 2)
    return (found - found.mean(0)) / (found.std(0) + 1e-3)


@lru_cache(maxsize=1)
def _transform():
    from domains.speech.features import audio_library

    settings = {"n_fft": 512, "win_length": 400, "hop_length": STEP, "n_mels": 40}
    return audio_library().transforms.MFCC(RATE, 13, melkwargs=settings)


def errors(voices: tuple[str, str], texts: list[str], folder: str | Path = flite.FOLDER) -> dict[str, np.ndarray]:
    """Method -> (boundaries,) absolute errors in ms, of utterances for which both voices say the same phones."""
    found: dict[str, list[float]] = {"warped": [], "uniform": []}
    for text in texts:
        model, truth = (flite.speak(text, voice, folder) for voice in voices)
        if [s for s, _ in model.phones] != [s for s, _ in truth.phones]:
            continue
        sounds = [Audio(str(spoken.path), sample_rate=RATE)()[0] for spoken in (model, truth)]
        seconds = len(sounds[1]) / RATE
        wanted = np.cumsum([d for _, d in truth.phones])[:-1]
        for name, guess in (
            ("warped", aligned(model.phones, *sounds, seconds)),
            ("uniform", uniform(model.phones, sounds[1], seconds)),
        ):
            if len(guess) == len(truth.phones):
                found[name] += (1000 * np.abs(np.cumsum([d for _, d in guess])[:-1] - wanted)).tolist()
    return {name: np.array(values) for name, values in found.items()}


if __name__ == "__main__":
    from domains.speech.data.sentences import sentences

    for pair in (("slt", "rms"), ("slt", "awb"), ("rms", "slt")):
        for name, off in errors(pair, sentences(20)).items():
            shares = ", ".join(f"{(off <= most).mean():.0%} within {most} ms" for most in (20, 50))
            print(f"{pair[0]} onto {pair[1]}, {name:8} {len(off)} boundaries: median {np.median(off):.0f} ms, {shares}")
