"""The field's own pictures and players: what was recorded, what the base says, what the adapted model says.

take   {id, text, mel, samples, and truth_mel, truth_samples, before_mel, before_samples where there are, mcd}: what
       tasks/tts.py keeps of an utterance; mel (frames, n_mels), samples (samples,)
Every function returns the names of the files that it wrote into `directory`.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.bench.plots import INK, new_figure, save
from domains.speech import metrics
from domains.speech.data.audio import resample, sound_library
from domains.speech.features import MelRecipe

SEEN = {"truth_": "recorded", "before_": "before", "": "after"}  # prefix in a take -> what it is, in their order
CLIP_RATE, CLIP_SECONDS, CLIP_BYTES = 16_000, 6.0, 27_000
FADE = 0.05  # s, where a clip is cut
RANGE = 9.0  # nats below the loudest that a picture shows


def takes(taken: Sequence[dict[str, Any]], directory: Path, recipe: MelRecipe) -> list[str]:
    """One picture of mel spectrograms, and one player each for truth, before and after, per utterance."""
    names = []
    for number, take in enumerate(taken, 1):
        stem = f"utterance_{number}"
        names.append(mels(take, Path(directory) / f"{stem}.svg", recipe))
        for letter, (prefix, what) in zip("abc", SEEN.items(), strict=True):
            if f"{prefix}samples" in take:
                path = Path(directory) / f"{stem}{letter}_{what}.ogg"
                names.append(clip(take[f"{prefix}samples"], recipe.sample_rate, path))
    return names


def mels(take: dict[str, Any], picture: Path, recipe: MelRecipe) -> str:
    """The spectrograms under each other, on one time axis; the title has the text and the distance from the truth."""
    import matplotlib

    shown = [(prefix, what) for prefix, what in SEEN.items() if f"{prefix}mel" in take]
    longest = max(len(take[f"{prefix}mel"]) for prefix, _ in shown) * recipe.hop_s
    colours = matplotlib.colormaps["magma"].resampled(48)  # few enough for small files
    figure, axes = new_figure(7.4, 0.8 + 0.95 * len(shown), rows=len(shown), margins=(0.75, 0.15, 0.5, 0.35))
    scale = np.log(10) if recipe.log == "decimal" else 1.0
    top = max(float(take[f"{prefix}mel"].max()) for prefix, _ in shown) * scale
    for axis, (prefix, what) in zip(axes, shown, strict=True):
        mel = take[f"{prefix}mel"] * scale
        axis.imshow(
            thinned(mel).T,
            origin="lower",
            aspect="auto",
            cmap=colours,
            vmin=top - RANGE,
            vmax=top,
            extent=(0, len(mel) * recipe.hop_s, 0, mel.shape[1]),
            interpolation="none",  # embedded as it is, a pixel per bin
        )
        axis.set_ylabel(what, fontsize=9)
        axis.set_yticks([])
        axis.grid(False)
        axis.set_xlim(0, longest)
        axis.text(0.995, 0.95, _distance(take, prefix), transform=axis.transAxes, ha="right", va="top", fontsize=8,
                  color=INK, bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5})  # fmt: skip
    axes[-1].set_xlabel("s", fontsize=9)
    title = textwrap.shorten(take["text"] or str(take["id"]), 78, placeholder=" ...")
    axes[0].set_title(title, fontsize=10, loc="left")
    save(figure, picture)
    return picture.name


def thinned(mel: np.ndarray, columns: int = 240, rows: int = 40) -> np.ndarray:
    """At most (columns, rows) means of neighbouring frames and bins: what a picture of this size can show."""
    frames, bins = mel.shape
    across, up = -(-frames // columns), -(-bins // rows)
    padded = np.pad(mel, ((0, -frames % across), (0, -bins % up)), mode="edge")
    return padded.reshape(len(padded) // across, across, -1, up).mean((1, 3))


def _distance(take: dict[str, Any], prefix: str) -> str:
    if prefix == "truth_" or "truth_mel" not in take:
        return ""
    value = metrics.utterance(take["truth_mel"], take[f"{prefix}mel"])["mcd"]
    return f"MCD {value:.1f} dB"


def clip(samples: np.ndarray, rate: int, path: Path) -> str:
    """An Ogg Vorbis file of at most 6 s and 27 KB; longer speech fades out."""
    sound = resample(np.asarray(samples, np.float32), rate, CLIP_RATE)
    most, fade = int(CLIP_SECONDS * CLIP_RATE), int(FADE * CLIP_RATE)
    if len(sound) > most:
        sound = sound[:most].copy()
        sound[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
    sound = np.clip(sound, -1, 1)
    for quality in (0.6, 0.8, 0.95, 1.0):  # of compression, 1 the smallest
        content = _vorbis(sound, quality)
        if len(content) <= CLIP_BYTES:
            break
    path.write_bytes(content)
    return path.name


def _vorbis(sound: np.ndarray, compression: float) -> bytes:
    file = io.BytesIO()
    kind = {"samplerate": CLIP_RATE, "channels": 1, "format": "OGG", "subtype": "VORBIS"}
    with sound_library().SoundFile(file, "w", compression_level=compression, **kind) as writer:
        for start in range(0, len(sound), CLIP_RATE):  # libsndfile's encoder overflows its stack on long writes
            writer.write(sound[start : start + CLIP_RATE])
    return file.getvalue()
