"""An item as a speaking model needs it: phones with their frames, mel spectrogram, pitch and energy.

item   {id, read() -> (samples, sample rate), phones [(symbol, seconds)], speaker}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from core.errors import DataError, Problem
from domains.speech import features
from domains.speech.features import MelRecipe


class Utterance(NamedTuple):
    """durations (T,) int64 frames; pitch (T,) octaves above 150 Hz; energy (T,) mean log mel; mel (F, n_mels)"""

    durations: Tensor
    pitch: Tensor
    energy: Tensor
    mel: Tensor


def samples_of(item: dict[str, Any], rate: int) -> Tensor:
    """(samples,) fp32. ConfigError: another sample rate; DataError: no samples, or not numbers."""
    samples, found = item["read"]()
    features.same_rate(found, rate, f"{item['id']}: sample rate")
    samples = torch.as_tensor(samples, dtype=torch.float32)
    if samples.ndim != 1 or not len(samples) or not bool(torch.isfinite(samples).all()):
        got = f"shape {tuple(samples.shape)}" + ("" if samples.isfinite().all() else ", not finite")
        raise DataError(f"{item['id']}: samples", got, "one channel of finite numbers")
    return samples


def utterance(item: dict[str, Any], recipe: MelRecipe) -> Utterance:
    samples = samples_of(item, recipe.sample_rate)
    if len(samples) < recipe.n_fft:
        raise DataError(f"{item['id']}: samples", len(samples), f"at least {recipe.n_fft}, one window")
    mel = features.mel(samples, recipe)
    if not item.get("phones"):  # a model that reads letters needs the mel alone
        empty = torch.zeros(0)
        return Utterance(empty.long(), empty, empty, mel)
    counts = features.durations(item["phones"], len(mel), recipe)
    heard = features.contour(features.pitch(samples, recipe))
    return Utterance(counts, features.phone_means(heard, counts), features.phone_means(mel.mean(1), counts), mel)


def padded(found: Sequence[Utterance]) -> dict[str, Tensor]:
    """durations (B, T) int64, pitch and energy (B, T), mel (B, F, n_mels), mel_mask (B, F) bool."""
    batch = {
        name: pad_sequence([getattr(one, name) for one in found], batch_first=True)
        for name in ("durations", "pitch", "energy", "mel")
    }
    lengths = torch.tensor([len(one.mel) for one in found])
    return batch | {"mel_mask": torch.arange(batch["mel"].shape[1]) < lengths[:, None]}


def check(items: Sequence[dict[str, Any]], split: str, reads: str) -> None:
    """DataError lists every item without what a speaking task needs.

    reads   phones or text: what the model speaks from
    """
    problems = []
    for item in items:
        where = f"{item['id']} ({split})"
        if reads == "text" and not item.get("text"):
            problems.append(Problem(f"{where}: text", "none", "what is said in this utterance"))
        if reads == "phones" and not item.get("phones"):
            fix = "data.phones=flite aligns recordings with their text"
            problems.append(Problem(f"{where}: phones", "none", "[(symbol, seconds), ...], at least one", fix))
        elif bad := [p for p in item.get("phones") or () if not p[1] >= 0]:
            problems.append(Problem(f"{where}: phones", str(bad[0]), "seconds of 0 or more"))
        if not item.get("speaker"):
            problems.append(Problem(f"{where}: speaker", repr(item.get("speaker")), "a name"))
    if problems:
        more = [Problem(f"split {split}", f"{len(problems) - 20} more")] if len(problems) > 20 else []
        raise DataError(problems=[*problems[:20], *more])
