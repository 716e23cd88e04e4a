"""Sound files in and out through soundfile: checked by their headers first, read when a batch needs them.

samples   (samples,) fp32 mono in [-1, 1]
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from core.errors import EnvironmentError_

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".aiff", ".au")
FRAME = 0.01  # s, over which loudness is looked at


class Header(NamedTuple):
    frames: int
    sample_rate: int
    channels: int

    @property
    def seconds(self) -> float:
        return self.frames / self.sample_rate


def sound_library():
    """soundfile. EnvironmentError_ where it is not installed."""
    try:
        import soundfile
    except (ImportError, OSError) as error:
        raise EnvironmentError_("soundfile", str(error), "the extra `speech`", "pip install soundfile") from None
    return soundfile


def header(path: Path) -> tuple[Header | None, str]:
    """(length, rate and channels of a file, ""), or (None, what is wrong with it)."""
    soundfile = sound_library()
    if not path.is_file():
        return None, "no such file" if not path.exists() else "not a file"
    try:
        found = soundfile.info(str(path))
    except (soundfile.LibsndfileError, RuntimeError) as error:
        return None, f"not readable as sound ({str(error).rpartition(':')[2].strip().rstrip('.') or 'unknown format'})"
    if found.frames < 1:
        return None, "no samples"
    return Header(found.frames, found.samplerate, found.channels), ""


@dataclass(frozen=True)
class Audio:
    """Samples of a file, or of a part of it, on every call; small, and can be sent to a worker.

    start, stop   samples in the file             sample_rate   Hz to resample to, None: the file's own
    trim          dB below the loudest frame: softer beginnings and ends are cut but for 50 ms; None keeps them
    loudness      dB of the mean square after this (-25 is usual), never over full scale; None leaves it
    """

    path: str
    start: int = 0
    stop: int | None = None
    sample_rate: int | None = None
    trim: float | None = None
    loudness: float | None = None

    def __call__(self) -> tuple[np.ndarray, int]:
        """(samples, sample rate)."""
        samples, rate = sound_library().read(
            self.path, start=self.start, stop=self.stop, dtype="float32", always_2d=True
        )
        samples = samples.mean(1)
        if self.sample_rate is not None:
            samples, rate = resample(samples, rate, self.sample_rate), self.sample_rate
        if self.trim is not None:
            first, last = sounding(samples, rate, self.trim)
            samples = samples[max(0, first - rate // 20) : last + rate // 20]
        if self.loudness is not None:
            samples = level(samples, self.loudness)
        return samples, rate


def resample(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """The samples at another rate, band-limited (torchaudio's windowed sinc, 64 zero crossings)."""
    if rate == wanted:
        return samples
    import torch

    from domains.speech.features import audio_library

    sound = torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))
    return audio_library().functional.resample(sound, rate, wanted, lowpass_filter_width=64).numpy()


def frame_levels(samples: np.ndarray, rate: int) -> np.ndarray:
    """(frames,) dB of the mean square over 10 ms; -120 where there is nothing."""
    step = max(1, round(FRAME * rate))
    count = len(samples) // step
    power = np.square(samples[: count * step].reshape(count, step), dtype=np.float64).mean(1)
    return 10 * np.log10(np.maximum(power, 1e-12))


def sounding(samples: np.ndarray, rate: int, below: float) -> tuple[int, int]:
    """(first, behind the last) sample of what is at most `below` dB under the loudest 10 ms."""
    levels = frame_levels(samples, rate)
    if not len(levels):
        return 0, len(samples)
    loud = np.flatnonzero(levels >= levels.max() - below)
    step = max(1, round(FRAME * rate))
    return int(loud[0]) * step, min(len(samples), (int(loud[-1]) + 1) * step)


def level(samples: np.ndarray, wanted: float) -> np.ndarray:
    power, peak = float(np.square(samples, dtype=np.float64).mean()), float(np.abs(samples).max(initial=0.0))
    if power == 0:
        return samples
    return samples * np.float32(min(np.sqrt(10 ** (wanted / 10) / power), 0.99 / peak))


def write(path: Path, samples: np.ndarray, rate: int) -> Path:
    """The path of a sound file, in the format of its suffix (.wav 16 bit, .flac, .ogg Vorbis)."""
    sound_library().write(str(path), np.clip(samples, -1, 1), rate)
    return path
