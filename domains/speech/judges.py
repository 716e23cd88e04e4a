"""Models that listen to synthetic speech in people's stead: what was said, by whom, how clean it sounds.

They are other people's models with limits of their own: beside a judge's value stands what it gives for true recordings
(`Recogniser.floor`, `Listener.bounds`). Each needs a package that the project does not install by itself.

samples   (samples,) fp32 mono in [-1, 1] at any rate; resampled to the 16 kHz that all three were trained at
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import DataError, EnvironmentError_
from domains.speech import metrics
from domains.speech.data.audio import frame_levels, resample

RATE = 16_000


class Recogniser:
    """PocketSphinx's English model (package pocketsphinx 5.1): words as it hears them. It errs on true speech, too."""

    name = "PocketSphinx en-US"

    @cached_property
    def _decoder(self) -> Any:
        try:
            from pocketsphinx import Decoder
        except ImportError as error:
            raise _missing("pocketsphinx", error, "pip install pocketsphinx==5.1.1") from None
        return Decoder(samprate=RATE, loglevel="FATAL")

    def hear(self, samples: np.ndarray, rate: int) -> str:
        """Lower-case words between spaces, '' where nothing was heard."""
        wave = (np.clip(resample(samples, rate, RATE), -1, 1) * 32767).astype(np.int16)
        decoder = self._decoder
        decoder.reinit_feat()  # what it learned of the last speaker's loudness must not colour the next one's score
        decoder.start_utt()
        decoder.process_raw(wave.tobytes(), full_utt=True)
        decoder.end_utt()
        found = decoder.hyp()
        return found.hypstr if found is not None else ""

    def rates(self, texts: Sequence[str], sounds: Iterable[tuple[np.ndarray, int]]) -> dict[str, float]:
        """cer and wer of (samples, rate) against their texts, as metrics.error_rates has them."""
        return metrics.error_rates(texts, [self.hear(samples, rate) for samples, rate in sounds])

    def floor(self, items: Sequence[dict[str, Any]]) -> dict[str, float]:
        """cer and wer on the true recordings of items with a text: no synthesis can be expected to get below it."""
        said = [item for item in items if item.get("text")]
        return self.rates([item["text"] for item in said], (item["read"]() for item in said))


class Listener:
    """Resemblyzer's speaker encoder (package resemblyzer 0.1.4): cosines between voices, 1 the same.

    Weights    read from the package without importing it; the network is three LSTM layers over 40 mel channels
    Differs    pauses are found by level, 40 dB below the loudest 10 ms, not by WebRTC's detector
    Source     Wan et al. 2018, arXiv 1710.10467
    """

    name = "Resemblyzer"
    FRAMES, STEP = 160, 80  # of a part of an utterance: 1.6 s, every 0.8 s

    @cached_property
    def _net(self) -> Any:
        import torch
        from torch import nn

        from domains.speech.features import audio_library

        fix = "pip install --no-deps resemblyzer==0.1.4"
        weights = torch.load(_inside("resemblyzer", "pretrained.pt", fix), map_location="cpu", weights_only=True)
        net = nn.ModuleDict({"lstm": nn.LSTM(40, 256, 3, batch_first=True), "linear": nn.Linear(256, 256)})
        net.load_state_dict({key: value for key, value in weights["model_state"].items() if key in net.state_dict()})
        settings = {"n_fft": 400, "hop_length": 160, "n_mels": 40, "norm": "slaney", "mel_scale": "slaney"}
        mel = audio_library().transforms.MelSpectrogram(RATE, pad_mode="constant", **settings)
        return net.eval().requires_grad_(False), mel

    def embed(self, samples: np.ndarray, rate: int) -> np.ndarray:
        """(256,) unit vector of who speaks: the mean over parts of 1.6 s. DataError: nothing is heard."""
        import torch

        sound = _louder(_without_pauses(resample(samples, rate, RATE)), -30.0)
        net, mel = self._net
        frames = mel(torch.from_numpy(sound)).T
        short = self.FRAMES - len(frames)
        if short > 0:
            frames = torch.nn.functional.pad(frames, (0, 0, 0, short))
        parts = frames.unfold(0, self.FRAMES, self.STEP).transpose(1, 2)
        _, (hidden, _) = net["lstm"](parts)
        each = torch.nn.functional.normalize(net["linear"](hidden[-1]).relu(), dim=1)
        return torch.nn.functional.normalize(each.mean(0), dim=0).numpy()

    def similarity(self, one: np.ndarray, other: np.ndarray) -> float:
        """Cosine of two unit vectors, or of one with the mean of several (voices, 256)."""
        other = np.atleast_2d(other).mean(0)
        return float(one @ other / max(np.linalg.norm(other), 1e-12))

    def bounds(self, voices: Mapping[str, np.ndarray]) -> tuple[float, float]:
        """(mean cosine of two utterances of one speaker, of two speakers): what a similarity lies between.

        voices   speaker -> (utterances, 256)          DataError   one speaker only, or one utterance each
        """
        same = [one @ other for many in voices.values() for i, one in enumerate(many) for other in many[i + 1 :]]
        names = list(voices)
        different = [
            one @ other
            for i, first in enumerate(names)
            for second in names[i + 1 :]
            for one in voices[first]
            for other in voices[second]
        ]
        if not same or not different:
            raise DataError("voices", f"{len(voices)} speakers", "two speakers, one of them with two utterances")
        return float(np.mean(same)), float(np.mean(different))


class Quality:
    """DNSMOS P.835, overall (package speechmos 0.0.1.1): a mean opinion from 1 to 5 of how clean speech sounds.

    Made for noisy calls: it hears noise and breaks, not whether the words are right. Read from the package without
    importing it.       Source   Reddy et al. 2022, arXiv 2110.01763
    """

    name = "DNSMOS"
    SECONDS = 9.01
    CURVE = np.poly1d([-0.06766283, 1.11546468, 0.04602535])  # raw answer to opinion, the authors' fit

    @cached_property
    def _session(self) -> Any:
        try:
            import onnxruntime
        except ImportError as error:
            raise _missing("onnxruntime", error, "pip install onnxruntime") from None
        fix = "pip install --no-deps speechmos==0.0.1.1"
        path = _inside("speechmos", "dnsmos_models/sig_bak_ovr.onnx", fix)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads, settings.log_severity_level = 1, 3
        return onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])

    def opinion(self, samples: np.ndarray, rate: int) -> float:
        """Mean over windows of 9 s, one per second; shorter sounds are repeated. DataError: no samples."""
        sound = np.clip(resample(samples, rate, RATE), -1, 1).astype(np.float32)
        if not len(sound):
            raise DataError("samples", "none", "a sound")
        length = int(self.SECONDS * RATE)
        sound = np.tile(sound, -(-length // len(sound))) if len(sound) < length else sound
        starts = range(0, len(sound) - length + 1, RATE)
        raw = [self._session.run(None, {"input_1": sound[None, at : at + length]})[0][0][2] for at in starts]
        return float(np.mean(self.CURVE(np.array(raw))))


def _missing(package: str, error: Exception, fix: str) -> EnvironmentError_:
    return EnvironmentError_(package, str(error), "an optional judge's package", fix)


def _inside(package: str, name: str, fix: str) -> Path:
    """A file that a package brings; the package itself is not imported. EnvironmentError_ where it is missing."""
    found = util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise EnvironmentError_(package, "not installed", "an optional judge's package", fix)
    path = Path(next(iter(found.submodule_search_locations))) / name
    if not path.is_file():
        raise EnvironmentError_(package, f"no file {name} in it", "the version that brings it", fix)
    return path


def _without_pauses(samples: np.ndarray) -> np.ndarray:
    levels = frame_levels(samples, RATE)
    if not len(levels) or levels.max() < -80:
        raise DataError("samples", "silence", "a voice")
    near = np.convolve(levels >= levels.max() - 40, np.ones(11), mode="same") > 0  # 50 ms around it stay
    return samples[: len(levels) * (RATE // 100)].reshape(len(levels), -1)[near].ravel()


def _louder(samples: np.ndarray, wanted: float) -> np.ndarray:
    """Raised to `wanted` dB where it is softer, as the encoder was trained."""
    power = float(np.square(samples, dtype=np.float64).mean())
    return (samples * max(1.0, np.sqrt(10 ** (wanted / 10) / max(power, 1e-12)))).astype(np.float32)
