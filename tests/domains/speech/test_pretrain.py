"""Pretraining: resumable to the bit, cards true to their files, shipped weights worth something."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file

from core import weights
from domains.speech import pretrain
from domains.speech.backbones.fastspeech import EMBEDDED, FastSpeech
from domains.speech.backbones.listener import Listener
from domains.speech.pretraining import corpus, listening, loop


@pytest.fixture(scope="module")
def twin():
    return corpus.twin(utterances=2, held=1)


@pytest.fixture
def small(monkeypatch):
    shape = {"width": 16, "inner": 16, "heads": 2, "encoder": 1, "decoder": 1, "predictor": 8}
    monkeypatch.setattr(loop, "SHAPE", shape)


def test_a_stopped_run_ends_with_the_same_bits(twin, small, tmp_path):
    recipe = loop.Recipe("x", steps=4, batch=4, warmup=2)
    whole, _ = loop.train(recipe, *twin, tmp_path / "whole.safetensors")
    _, facts = loop.train(recipe, *twin, tmp_path / "parts.safetensors", budget=0.0)
    assert facts["step"] == 1 and not facts["done"]
    parts, facts = loop.train(recipe, *twin, tmp_path / "parts.safetensors")
    assert facts["done"]
    assert all(torch.equal(v, parts.net.state_dict()[k]) for k, v in whole.net.state_dict().items())


def test_the_command_writes_weights_that_speak(twin, small, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "twin", lambda: twin)
    monkeypatch.chdir(tmp_path)
    assert pretrain.main(["mini", "--steps", "2", "--out", "out", "--state", "state"]) == 0
    card = (tmp_path / "out" / "acoustic_mini.md").read_text()
    digest = hashlib.sha256((tmp_path / "out" / "acoustic_mini.safetensors").read_bytes()).hexdigest()
    assert digest in card and "mel, each phone's mean frame (nat)" in card
    model = FastSpeech(str(tmp_path / "out"))
    assert model.speakers == tuple(f"base{i}" for i in range(8)) and model.recipe.sample_rate == 16000


def test_the_mean_frame_of_each_phone_is_what_it_says(twin):
    train, _ = twin
    own = loop.mean_frame(train, train)
    other = loop.mean_frame(*twin)
    assert 0 < own < other * 1.2


def test_noise_and_tilt_change_the_sound_and_not_the_answers(tmp_path):
    from domains.speech.data.world import World

    world = World(0)
    heard = listening.Heard(("base0",))
    for item in world.sample("held", world.base()[0], 2):
        heard.add(item)
    import numpy as np

    plain = listening.batch_of(heard, [0, 1], None, None)
    noisy = listening.batch_of(heard, [0, 1], 10_000, np.random.default_rng(0))
    again = listening.batch_of(heard, [0, 1], 10_000, np.random.default_rng(0))
    assert torch.equal(plain["phone"], noisy["phone"]) and torch.equal(noisy["mel"], again["mel"])
    assert (plain["mel"] - noisy["mel"]).abs().mean() > 0.1
    short = listening.batch_of(heard, [0, 1], 30, np.random.default_rng(0))
    assert short["mel"].shape[1] == short["phone"].shape[1] == 30
    model = listening.Pretraining(listening.Recipe(), 1)
    loss = listening.loss(model.parts(noisy))
    loss.backward()
    assert torch.isfinite(loss) and all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", weights.shipped(EMBEDDED))
def test_shipped_weights_are_those_of_their_card(name):
    file = EMBEDDED / f"{name}.safetensors"
    assert file.stat().st_size <= 4_000_000
    assert hashlib.sha256(file.read_bytes()).hexdigest() in (EMBEDDED / f"{name}.md").read_text()
    model = Listener(name) if name == "listener" else FastSpeech(name)
    assert all(torch.equal(v, load_file(file)[k]) for k, v in model.net.state_dict().items())
    json.loads((EMBEDDED / f"{name}.json").read_text())


def test_the_mini_weights_speak_sentences_that_they_have_not_read(twin):
    """Forced mel error on held-out sentences: a third of what each phone's mean frame has; a fresh network is off."""
    _, held = twin
    trivial = loop.mean_frame(*twin)
    assert loop.evaluate(FastSpeech("acoustic_mini"), held)["mel"] < 0.5 * trivial  # measured 0.27 against 0.78
    assert loop.evaluate(FastSpeech("acoustic_mini", pretrained=False), held)["mel"] > 1.5
