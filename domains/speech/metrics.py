"""Scores of the speech field, on plain arrays. A value is comparable only with values of the same recipe.

mel     (frames, n_mels) log magnitude; `natural` logarithm unless said otherwise
f0      (frames,) Hz, 0 where a frame is not voiced
Recipe  mel-cepstra are the cosine series of the log mel spectrogram along the mel axis, scaled as the coefficients of a
        minimum-phase filter; 13 of them, c0 (loudness) left out; frames are paired by dynamic time warping on them
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Literal

import numpy as np

from core.errors import DataError, EnvironmentError_
from domains.speech import dtw

ORDER = 13
DECIBEL = 10 / np.log(10) * np.sqrt(2)  # dB per unit of distance between mel-cepstra: 6.142
GROSS = 0.2  # share of F0 beyond which an error is gross
Path = tuple[np.ndarray, np.ndarray]


def cepstra(mel: np.ndarray, order: int = ORDER, log: Literal["natural", "decimal"] = "natural") -> np.ndarray:
    """(frames, order) mel-cepstra c1..c_order: c_m = 2 / N sum_j L_j cos(pi m (j + 1/2) / N), L natural logarithms."""
    mel = np.asarray(mel, dtype=np.float64) * (np.log(10) if log == "decimal" else 1.0)
    bands = mel.shape[1]
    angle = np.pi * np.arange(1, order + 1)[None] * (np.arange(bands)[:, None] + 0.5) / bands
    return mel @ np.cos(angle) * (2 / bands)


def mel_cepstral_distortion(reference: np.ndarray, synthesis: np.ndarray, *, warp: bool = True) -> float:
    """Mean spectral distance of two utterances in dB; 0 means identical.

    reference, synthesis   (frames, coefficients) c1..cK as `cepstra` gives them
    warp       mean over the frames that dynamic time warping pairs; False: frame by frame
    DataError  without warping, frame counts differ; no frames
    Source     Kubichek 1993: 10 / ln 10 * sqrt(2 sum_k (c_k - c'_k)^2)
    """
    if not len(reference) or not len(synthesis):
        raise DataError("mel-cepstra", f"{len(reference)} and {len(synthesis)} frames", "at least one each")
    if warp:
        first, second = warped(reference, synthesis)
        reference, synthesis = reference[first], synthesis[second]
    elif len(reference) != len(synthesis):
        raise DataError("mel-cepstra", f"{len(reference)} and {len(synthesis)} frames", "equal numbers without warping")
    return float(DECIBEL * np.sqrt(np.square(reference - synthesis).sum(1)).mean())


def warped(reference: np.ndarray, synthesis: np.ndarray) -> Path:
    """Indices that pair the frames of two utterances with the least mel-cepstral distance in all."""
    return dtw.path(dtw.distances(reference, synthesis))


def mel_l1(reference: np.ndarray, synthesis: np.ndarray, pairs: Path | None = None) -> float:
    """Mean absolute difference of two log mel spectrograms, frame by frame or over paired frames.

    DataError   without pairs, frame counts differ
    """
    if pairs is not None:
        reference, synthesis = reference[pairs[0]], synthesis[pairs[1]]
    elif len(reference) != len(synthesis):
        raise DataError("mel", f"{len(reference)} and {len(synthesis)} frames", "equal numbers without pairs")
    return float(np.abs(np.asarray(reference, np.float64) - synthesis).mean())


def pitch_errors(reference: np.ndarray, synthesis: np.ndarray, pairs: Path | None = None) -> dict[str, float]:
    """f0_rmse (Hz), f0_cents (root mean square), gross (share off by over 20 %): over frames voiced in both, NaN where
    there are none; vuv: share of frames that only one of the two has voiced.

    reference, synthesis   f0 of equal length, or of paired frames
    DataError   without pairs, lengths differ
    """
    if pairs is not None:
        reference, synthesis = reference[pairs[0]], synthesis[pairs[1]]
    elif len(reference) != len(synthesis):
        raise DataError("f0", f"{len(reference)} and {len(synthesis)} frames", "equal numbers without pairs")
    reference, synthesis = np.asarray(reference, np.float64), np.asarray(synthesis, np.float64)
    both = (reference > 0) & (synthesis > 0)
    vuv = float(((reference > 0) != (synthesis > 0)).mean()) if len(reference) else float("nan")
    if not both.any():
        return {"f0_rmse": float("nan"), "f0_cents": float("nan"), "gross": float("nan"), "vuv": vuv}
    a, b = reference[both], synthesis[both]
    return {
        "f0_rmse": float(np.sqrt(np.square(a - b).mean())),
        "f0_cents": float(np.sqrt(np.square(1200 * np.log2(b / a)).mean())),
        "gross": float((np.abs(b / a - 1) > GROSS).mean()),
        "vuv": vuv,
    }


def duration_error(reference: Sequence[float], synthesis: Sequence[float]) -> float:
    """Mean absolute difference of phone durations, in their own unit. DataError: other numbers of phones."""
    if len(reference) != len(synthesis):
        raise DataError("durations", f"{len(reference)} and {len(synthesis)} phones", "the same phones")
    return float(np.abs(np.subtract(reference, synthesis)).mean())


def utterance(
    truth: np.ndarray,
    said: np.ndarray,
    truth_f0: np.ndarray | None = None,
    said_f0: np.ndarray | None = None,
    *,
    log: Literal["natural", "decimal"] = "natural",
) -> dict[str, float]:
    """mcd (dB), mel_l1 and `pitch_errors` of freely spoken against recorded speech, over the frames that warping pairs.

    truth, said   mel spectrograms of one recipe; lengths may differ
    truth_f0, said_f0   of the same frames; None leaves the pitch errors out
    """
    first, second = cepstra(truth, log=log), cepstra(said, log=log)
    pairs = warped(first, second)
    found = {"mcd": mel_cepstral_distortion(first[pairs[0]], second[pairs[1]], warp=False)}
    found["mel_l1"] = mel_l1(truth, said, pairs)
    if truth_f0 is not None and said_f0 is not None:
        found |= pitch_errors(_fitted(truth_f0, len(truth)), _fitted(said_f0, len(said)), pairs)
    return found


def _fitted(f0: np.ndarray, frames: int) -> np.ndarray:
    """Pitch trackers may give a frame more or less at the end."""
    return np.pad(np.asarray(f0, np.float64)[:frames], (0, max(0, frames - len(f0))))


def spoken_form(text: str) -> str:
    """The text as a recogniser writes it, for error rates: lower case, accents and all signs but apostrophes inside
    words taken away, hyphens and dashes as spaces, one space between words. Numbers are not spelled out."""
    text = unicodedata.normalize("NFKD", text.lower()).replace("\u2019", "'")
    text = "".join(" " if unicodedata.category(c) == "Pd" else c for c in text)
    kept = "".join(c for c in text if c.isalnum() or c.isspace() or c == "'")
    return " ".join(word for word in (word.strip("'") for word in kept.split()) if word)


def error_rates(truth: Sequence[str], said: Sequence[str]) -> dict[str, float]:
    """cer, wer over all utterances: edits / characters (words) of the truth, both in `spoken_form`.

    DataError           no words in the truth          EnvironmentError_   jiwer is not installed
    """
    try:
        import jiwer
    except ImportError as error:
        raise EnvironmentError_("jiwer", str(error), "the extra `speech`", "pip install jiwer") from None
    pairs = [(spoken_form(t), spoken_form(s)) for t, s in zip(truth, said, strict=True)]
    pairs = [(t, s) for t, s in pairs if t]
    if not pairs:
        raise DataError("texts", "no words", "at least one utterance with words")
    references, guesses = [t for t, _ in pairs], [s for _, s in pairs]
    return {"cer": float(jiwer.cer(references, guesses)), "wer": float(jiwer.wer(references, guesses))}
