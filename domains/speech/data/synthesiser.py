"""Speech from a source and a filter: what it says, how long each phone lasts and its pitch are known exactly.

Source   all harmonics of F0 up to half the sample rate, equal in amplitude, with a continuous phase (the closed form
         of their sum), and white noise
Filter   resonances at the phone's formants, scaled by the speaker's tract, over 20 ms frames; they glide between phones
Vowels   Peterson & Barney 1952, men's means
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

HOP, GLIDE = 0.005, 0.012  # s: between frames (each four long), of the glide between phones
SIZE = 16  # hops of the transform: a window of four, and the filter's response
CLOSURE = 0.6  # share of a stop before its burst


@dataclass(frozen=True)
class Voice:
    """One speaker's constants.

    name     f0      Hz, mean        tract   factor on all formants: 1 a man's, 1.2 a child's      rate   1: phones as
    tilt     dB per octave of the source                  long as in SOUNDS, 2: half as long      breath   dB of noise
    accent   semitones that F0 rises on a vowel behind a voiceless consonant
    fall     semitones from the first to the last phone, negative falls
    last     factor on the duration of the last two phones
    shift    symbol -> factors on its three formants: how this speaker says the vowel
    """

    name: str
    f0: float = 120.0
    tract: float = 1.0
    rate: float = 1.0
    tilt: float = -6.0
    breath: float = -35.0
    accent: float = 2.0
    fall: float = -3.0
    last: float = 1.4
    shift: tuple[tuple[str, tuple[float, float, float]], ...] = ()


@dataclass(frozen=True)
class Sound:
    """A phone's target: formants in Hz, level in dB of its voiced part and of its noise around `centre` Hz, seconds."""

    formants: tuple[float, float, float]
    voice: float | None = 0.0
    noise: float | None = None
    centre: float = 0.0
    width: float = 0.5  # octaves
    seconds: float = 0.09
    stop: bool = False


SOUNDS = {
    "pau": Sound((500, 1500, 2500), None, seconds=0.08),
    "iy": Sound((270, 2290, 3010), seconds=0.11),
    "eh": Sound((530, 1840, 2480)),
    "ae": Sound((660, 1720, 2410), seconds=0.13),
    "aa": Sound((730, 1090, 2440), seconds=0.12),
    "ao": Sound((570, 840, 2410), seconds=0.12),
    "uw": Sound((300, 870, 2240), seconds=0.11),
    "er": Sound((490, 1350, 1690), seconds=0.12),
    "m": Sound((280, 900, 2200), -9, seconds=0.07),
    "n": Sound((280, 1700, 2600), -9, seconds=0.06),
    "l": Sound((360, 1100, 2700), -6, seconds=0.06),
    "w": Sound((300, 610, 2200), -6, seconds=0.06),
    "y": Sound((260, 2300, 3100), -6, seconds=0.05),
    "s": Sound((320, 1700, 2600), None, -14, 5500, 0.35, 0.10),
    "sh": Sound((320, 1800, 2500), None, -12, 3000, 0.45, 0.10),
    "f": Sound((320, 1200, 2400), None, -24, 4500, 1.2, 0.09),
    "z": Sound((320, 1700, 2600), -16, -20, 5500, 0.35, 0.08),
    "p": Sound((400, 900, 2300), None, -18, 900, 0.9, 0.08, True),
    "t": Sound((400, 1700, 2600), None, -15, 4200, 0.6, 0.08, True),
    "k": Sound((400, 1800, 2300), None, -15, 1900, 0.5, 0.09, True),
    "d": Sound((300, 1700, 2600), -20, -20, 3800, 0.6, 0.06, True),
}
SILENT, ROOM = -70.0, -50.0  # dB: what is off, and white noise everywhere


def pitch(phones: Sequence[tuple[str, float, float]], seconds: np.ndarray) -> np.ndarray:
    """F0 in Hz at times (any shape) of an utterance of (symbol, seconds, Hz): straight in log F0 between the middles
    of its voiced phones; 0 inside phones that are not voiced."""
    ends = np.cumsum([p[1] for p in phones])
    middles = ends - np.array([p[1] for p in phones]) / 2
    heard = np.array([p[2] > 0 for p in phones])
    if not heard.any():
        return np.zeros_like(seconds, dtype=float)
    hertz = np.exp(np.interp(seconds, middles[heard], np.log([p[2] for p in phones if p[2] > 0])))
    at = np.minimum(np.searchsorted(ends, seconds, side="right"), len(phones) - 1)
    return np.where(heard[at], hertz, 0.0)


def speak(
    phones: Sequence[tuple[str, float, float]], voice: Voice, *, seed: int, gain: float = 0.0, sample_rate: int = 16_000
) -> np.ndarray:
    """(samples,) float32 in [-1, 1] of (symbol, seconds, Hz) phones; the length is the sum of the seconds, rounded.

    seed   of the noise       gain   dB on everything
    """
    total = sum(p[1] for p in phones)
    count = round(total * sample_rate)
    hop = round(HOP * sample_rate)
    frames = count // hop + 5  # the first and the last lie over the ends
    times = (np.arange(frames) - 1) * HOP
    targets = _targets(phones, voice, np.clip(times, 0, total - 1e-6))
    formants, loud, hiss, centre, width = (table.astype(np.float32) for table in targets)  # what follows is large
    hertz = np.fft.rfftfreq(SIZE * hop, 1 / sample_rate).astype(np.float32)

    at = np.arange(count) / sample_rate
    track = pitch(phones, at)
    heard = track > 0
    track = np.interp(at, at[heard], track[heard]) if heard.any() else np.full(count, voice.f0)
    harmonics = max(1, int(0.5 * sample_rate / track.max()) - 1)
    angle = 2 * np.pi * np.cumsum(track) / sample_rate
    half = np.sin(angle / 2)
    safe = np.abs(half) > 1e-6
    source = np.where(safe, np.sin((harmonics + 0.5) * angle) / np.where(safe, 2 * half, 1) - 0.5, harmonics)
    source /= np.sqrt(harmonics / 2)  # power 1
    noise = np.random.default_rng(seed).standard_normal(count)

    resonant = _resonances(formants, hertz, voice)
    breath = 10 ** ((np.maximum(loud, SILENT) + voice.breath) / 20)[:, None] * resonant
    bump = np.exp(-0.5 * (np.log2(np.maximum(hertz, 1)[None] / centre[:, None]) / width[:, None]) ** 2)
    bump /= np.sqrt((bump**2).mean(1, keepdims=True))
    breath += 10 ** (hiss / 20)[:, None] * bump + 10 ** (ROOM / 20)
    gains = 10 ** (loud / 20)[:, None] * resonant, breath
    wave = _filtered((source, noise), gains, hop)
    return np.clip(0.09 * 10 ** (gain / 20) * wave, -1, 1).astype(np.float32)


def _targets(phones, voice: Voice, times: np.ndarray) -> tuple[np.ndarray, ...]:
    """Formants (frames, 3), levels in dB of voice and noise, centre and width of the noise (frames,), all gliding."""
    seconds = np.array([p[1] for p in phones])
    ends = np.cumsum(seconds)
    at = np.minimum(np.searchsorted(ends, times, side="right"), len(phones) - 1)
    burst = (times - (ends - seconds)[at]) >= CLOSURE * seconds[at]
    sounds = [SOUNDS[p[0]] for p in phones]
    shift = dict(voice.shift)
    table = np.array([np.multiply(s.formants, shift.get(p[0], (1, 1, 1))) for p, s in zip(phones, sounds, strict=True)])
    formants = voice.tract * table[at]
    stop = np.array([s.stop for s in sounds])[at]
    loud = np.array([SILENT if s.voice is None else s.voice for s in sounds], float)[at]
    hiss = np.array([SILENT if s.noise is None else s.noise for s in sounds], float)[at]
    hiss = np.where(stop & ~burst, SILENT, hiss)
    centre = np.array([s.centre or 1000.0 for s in sounds], float)[at] * voice.tract
    width = np.array([s.width for s in sounds])[at]
    return _glide(formants, GLIDE), _glide(loud, 0.004), _glide(hiss, 0.004), centre, width


def _glide(track: np.ndarray, seconds: float) -> np.ndarray:
    reach = int(np.ceil(3 * seconds / HOP))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) * HOP / seconds) ** 2)
    weights /= weights.sum()
    padded = np.pad(track, [(reach, reach)] + [(0, 0)] * (track.ndim - 1), mode="edge")
    return sum(w * padded[i : i + len(track)] for i, w in enumerate(weights))


def _resonances(formants: np.ndarray, hertz: np.ndarray, voice: Voice) -> np.ndarray:
    """(frames, bins) gain with mean square 1: three moving and two fixed resonances, and the source's tilt."""
    fixed = np.broadcast_to(np.float32(voice.tract) * np.array([3500, 4500], np.float32), (len(formants), 2))
    square = hertz**2
    power = np.tile((np.maximum(hertz, 60) / 100) ** (voice.tilt / 3.01), (len(formants), 1))
    for centre in np.concatenate([formants, fixed], 1).T[:, :, None]:
        power *= centre**4 / ((centre**2 - square) ** 2 + (50 + 0.04 * centre) ** 2 * square)
    return np.sqrt(power / power.mean(1, keepdims=True))


def _filtered(signals: Sequence[np.ndarray], gains: Sequence[np.ndarray], hop: int) -> np.ndarray:
    """The sum of the signals, each frame's spectrum times its row of the signal's gain (zero phase), overlapped."""
    from scipy import fft  # keeps single precision

    frames, window, count = len(gains[0]), 4 * hop, len(signals[0])
    start = window // 2 + hop  # frame i is centred on sample (i - 1) * hop
    shape = (np.hanning(window + 1)[:-1] / 2).astype(np.float32)  # four of them overlap and add up to 1
    spectrum = 0
    for signal, gain in zip(signals, gains, strict=True):
        padded = np.zeros(window + hop * (frames - 1), np.float32)
        padded[start : start + count] = signal
        cut = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop][:frames] * shape
        spectrum = spectrum + fft.rfft(cut, SIZE * hop) * gain
    parts = fft.irfft(spectrum, SIZE * hop).reshape(frames, SIZE, hop)
    side = (SIZE - 4) // 2  # hops of the response before the window: the transform has them at its end
    out = np.zeros((frames + SIZE, hop), np.float32)
    for i in range(SIZE):
        out[i : i + frames] += parts[:, (i - side) % SIZE]
    return out.ravel()[start + side * hop :][:count]
