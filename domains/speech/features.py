"""From samples to what a model speaks: mel spectrogram, pitch, energy, frames per phone.

A recipe belongs to a backbone. Data, model and vocoder must agree on every number of it: a mel spectrogram of another
recipe sounds wrong and scores wrong, and nothing else would say so.

samples   (samples,) fp32 mono in [-1, 1]      mel   (frames, n_mels) fp32, log of the magnitude
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from core.errors import ConfigError, EnvironmentError_, Problem

LOWEST, HIGHEST = 60.0, 500.0  # Hz, where a speaking voice is looked for


@dataclass(frozen=True)
class MelRecipe:
    """HiFi-GAN's recipe for LJ Speech unless told otherwise (Kong et al. 2020, meldataset.py).

    sample_rate, fmin, fmax   Hz          n_fft, hop, win   samples
    log, floor                the magnitude is clamped to `floor`, then its natural or decimal logarithm is taken
    centre                    frame t is centred at t hop (else at (t + 1/2) hop, and n samples give n / hop frames)
    """

    sample_rate: int = 22050
    n_fft: int = 1024
    hop: int = 256
    win: int = 1024
    n_mels: int = 80
    fmin: float = 0.0
    fmax: float = 8000.0
    log: Literal["natural", "decimal"] = "natural"
    floor: float = 1e-5
    centre: bool = False

    @property
    def hop_s(self) -> float:
        """Seconds from one frame to the next."""
        return self.hop / self.sample_rate

    def frames(self, samples: int) -> int:
        return samples // self.hop + self.centre


LJSPEECH = MelRecipe()
SPEECHT5 = MelRecipe(16000, 1024, 256, 1024, 80, 80.0, 7600.0, "decimal", 1e-10, True)


def same_recipe(**parts: MelRecipe) -> None:
    """ConfigError lists every number in which the named parts differ from the first one."""
    (first, wanted), *others = parts.items()
    wanted = asdict(wanted)
    fix = "choose parts of one recipe, or resample the data (data.sample_rate)"
    problems = [
        Problem(f"{name}: {key}", str(value), f"{wanted[key]}, as the {first} has it", fix)
        for name, recipe in others
        for key, value in asdict(recipe).items()
        if value != wanted[key]
    ]
    if problems:
        raise ConfigError(problems=problems)


def same_rate(found: int, wanted: int, where: str) -> None:
    """ConfigError: samples of another rate than the backbone's."""
    if found != wanted:
        fix = f"resample: data.sample_rate={wanted}"
        raise ConfigError(where, f"{found} Hz", f"{wanted} Hz, the backbone's sample rate", fix)


def audio_library():
    """torchaudio. EnvironmentError_ where it is not installed."""
    try:
        import torchaudio
    except ImportError as error:
        fix = "pip install torchaudio, of the same version as torch"
        raise EnvironmentError_("torchaudio", str(error), "the extra `speech`", fix) from None
    return torchaudio


@lru_cache(maxsize=8)
def filters(recipe: MelRecipe) -> Tensor:
    """(n_fft / 2 + 1, n_mels) triangles of unit area on Slaney's scale."""
    return audio_library().functional.melscale_fbanks(
        recipe.n_fft // 2 + 1,
        f_min=recipe.fmin,
        f_max=recipe.fmax,
        n_mels=recipe.n_mels,
        sample_rate=recipe.sample_rate,
        norm="slaney",
        mel_scale="slaney",
    )


@lru_cache(maxsize=8)
def _window(size: int) -> Tensor:
    return torch.hann_window(size)


def mel(samples: Tensor, recipe: MelRecipe) -> Tensor:
    """(frames, n_mels) log mel spectrogram of (samples,)."""
    side = recipe.n_fft // 2 if recipe.centre else (recipe.n_fft - recipe.hop) // 2
    padded = F.pad(samples.float()[None, None], (side, side), mode="reflect")[0, 0]
    spectrum = torch.stft(
        padded, recipe.n_fft, recipe.hop, recipe.win, _window(recipe.win), center=False, return_complex=True
    )
    energy = (spectrum.abs().square() + 1e-9).sqrt().T @ filters(recipe)
    energy = energy.clamp(min=recipe.floor)
    return energy.log() if recipe.log == "natural" else energy.log10()


def pitch(samples: Tensor, recipe: MelRecipe, threshold: float = 0.25) -> Tensor:
    """(frames,) fundamental frequency in Hz, 0 where the frame is not voiced; the frames are those of `mel`.

    threshold   of the normalised difference function: its first dip below is the period
    Source      YIN, de Cheveigne and Kawahara 2002, JASA 111, steps 2 to 5
    """
    rate, count = recipe.sample_rate, recipe.frames(len(samples))
    shortest, longest = int(rate / HIGHEST), int(rate / LOWEST) + 2
    width = 2 * longest
    middle = 0 if recipe.centre else recipe.hop // 2
    samples = samples.float()
    side = F.pad(samples, (width // 2 + longest // 2 - middle, width + longest))
    frames = side.unfold(0, width + longest, recipe.hop)[:count]
    difference = _difference(frames, width, longest)
    lags = torch.arange(1, longest + 1)
    running = difference.cumsum(1) / lags
    normal = difference / running.clamp(min=1e-12)  # (frames, longest): lag 1 to longest
    low = normal[:, shortest - 1 :]
    inner = low[:, 1:-1]
    dips = (inner <= low[:, :-2]) & (inner < low[:, 2:])
    below = dips & (inner < threshold)
    first = below.to(torch.uint8).argmax(1)
    at = first + shortest  # index into `normal`
    y0, y1, y2 = (normal.gather(1, (at + k)[:, None]).squeeze(1) for k in (-1, 0, 1))
    shift = 0.5 * (y0 - y2) / (y0 - 2 * y1 + y2).clamp(min=1e-9)
    found = rate / (at + 1 + shift.clamp(-1, 1))
    loud = frames[:, :width].square().mean(1) > 1e-7  # -70 dB: silence has no pitch
    return torch.where(below.any(1) & loud, found, torch.zeros(()))


def _difference(frames: Tensor, width: int, longest: int) -> Tensor:
    """(frames, longest) sum over `width` samples of (x_t - x_{t + lag})^2 for lags 1 to `longest`, through the FFT."""
    size = 1 << (width + longest - 1).bit_length()
    left = torch.fft.rfft(frames[:, :width], size)
    whole = torch.fft.rfft(frames, size)
    cross = torch.fft.irfft(whole * left.conj(), size)[:, 1 : longest + 1]
    squares = F.pad(frames.double().square().cumsum(1), (1, 0))
    lags = torch.arange(1, longest + 1)
    moved = squares[:, lags + width] - squares[:, lags]
    return (squares[:, width : width + 1] + moved - 2 * cross).float().clamp(min=0)


def contour(f0: Tensor) -> Tensor:
    """(frames,) log2 of f0 / 150 Hz, straight between voiced frames, level before the first and after the last."""
    voiced = (f0 > 0).nonzero().squeeze(1)
    if not len(voiced):
        return torch.zeros(len(f0))
    values = (f0[voiced] / 150).log2()
    at = torch.arange(len(f0))
    right = torch.searchsorted(voiced, at).clamp(max=len(voiced) - 1)
    left = (torch.searchsorted(voiced, at, right=True) - 1).clamp(min=0)
    span = (voiced[right] - voiced[left]).clamp(min=1)
    share = ((at - voiced[left]) / span).clamp(0, 1)
    return values[left] + share * (values[right] - values[left])


def durations(phones: Sequence[tuple[str, float]], frames: int, recipe: MelRecipe) -> Tensor:
    """(phones,) int64 frames per phone, `frames` in all: every boundary goes to its nearest frame.

    phones   (symbol, seconds); what the seconds leave over or lack goes to the last phone
    """
    ends = torch.tensor([seconds for _, seconds in phones], dtype=torch.float64).cumsum(0) / recipe.hop_s
    ends = ends.round().long().clamp(max=frames)
    ends[-1] = frames
    return ends.diff(prepend=ends.new_zeros(1))


def phone_means(values: Tensor, counts: Tensor) -> Tensor:
    """(phones,) mean of a frame curve over each phone's frames; 0 for a phone without frames."""
    owner = torch.repeat_interleave(torch.arange(len(counts)), counts)
    total = torch.zeros(len(counts)).index_add(0, owner, values[: len(owner)].float())
    return total / counts.clamp(min=1)
