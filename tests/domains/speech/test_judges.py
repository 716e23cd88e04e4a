"""Judges say what is missing; where their packages are, they tell voices and words apart."""

import importlib.util
import shutil
import sys

import numpy as np
import pytest

from core.errors import DataError, EnvironmentError_
from domains.speech.data import flite
from domains.speech.data.audio import Audio
from domains.speech.judges import Listener, Quality, Recogniser

needs = {
    name: pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed")
    for name in ("pocketsphinx", "resemblyzer", "speechmos", "onnxruntime")
}
needs_flite = pytest.mark.skipif(shutil.which("flite") is None, reason="flite is not installed")
NOISE = np.random.default_rng(0).normal(0, 0.05, 8000).astype(np.float32)


@pytest.fixture(scope="module")
def say(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flite")
    return lambda text, voice, rate=None: Audio(str(flite.speak(text, voice, folder).path), sample_rate=rate)()


@pytest.mark.parametrize(
    "package, ask, fix",
    [
        ("pocketsphinx", lambda: Recogniser().hear(NOISE, 16_000), "pip install pocketsphinx"),
        ("resemblyzer", lambda: Listener().embed(NOISE, 16_000), "pip install --no-deps resemblyzer"),
        ("onnxruntime", lambda: Quality().opinion(NOISE, 16_000), "pip install onnxruntime"),
        ("speechmos", lambda: Quality().opinion(NOISE, 16_000), "pip install --no-deps speechmos"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else "",
)
def test_a_missing_package_is_named_with_its_command(package, ask, fix, monkeypatch):
    if package == "speechmos":
        pytest.importorskip("onnxruntime")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EnvironmentError_) as caught:
        ask()
    assert caught.value.code == 6 and fix in str(caught.value)


@needs["pocketsphinx"]
@needs_flite
def test_the_recogniser_hears_plain_words_at_any_rate(say):
    judge = Recogniser()
    text = "the teacher opened the window"
    for rate in (None, 22_050):
        assert judge.rates([text], [say(text, "slt", rate)])["wer"] <= 0.4
    assert judge.rates([text], [(NOISE, 16_000)])["wer"] >= 0.8


@needs["resemblyzer"]
@needs_flite
def test_the_listener_tells_voices_apart(say):
    judge = Listener()
    texts = ("The teacher opened the window near the harbour.", "Yesterday, the king found a small wooden boat.")
    voices = {name: np.array([judge.embed(*say(text, name)) for text in texts]) for name in ("slt", "awb")}
    same, different = judge.bounds(voices)
    assert same > different + 0.15  # measured 0.83 and 0.46
    assert judge.similarity(voices["slt"][0], voices["slt"]) > judge.similarity(voices["slt"][0], voices["awb"])
    at_other_rate = judge.embed(*say(texts[0], "slt", 22_050))
    assert at_other_rate @ voices["slt"][0] > 0.98
    with pytest.raises(DataError, match="two speakers"):
        judge.bounds({"slt": voices["slt"]})
    with pytest.raises(DataError, match="silence"):
        judge.embed(np.zeros(16_000, np.float32), 16_000)


@needs["speechmos"]
@needs["onnxruntime"]
@needs_flite
def test_quality_falls_with_noise(say):
    samples, rate = say("The teacher opened the window near the harbour.", "slt")
    noisy = samples + np.random.default_rng(0).normal(0, 0.05, len(samples)).astype(np.float32)
    clean, rough = (Quality().opinion(sound, rate) for sound in (samples, noisy))
    assert 1 <= rough < clean - 0.3 and clean <= 5
