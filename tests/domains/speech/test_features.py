"""Mel spectrogram, pitch and frames per phone against closed forms; recipes that do not agree are refused."""

import math
from dataclasses import replace

import pytest
import torch

from core.errors import ConfigError
from domains.speech import features
from domains.speech.backbones import vocoder
from domains.speech.features import LJSPEECH, SPEECHT5

RATE = LJSPEECH.sample_rate


def tone(hertz: torch.Tensor | float, seconds: float = 1.0, rate: int = RATE, harmonics: int = 10) -> torch.Tensor:
    count = int(seconds * rate)
    phase = 2 * math.pi * (torch.as_tensor(hertz, dtype=torch.float64).expand(count) / rate).cumsum(0)
    return sum(torch.sin(k * phase) / k for k in range(1, harmonics + 1)).float() * 0.1


def test_a_tone_lies_in_its_own_mel_bin():
    """The bin whose triangle holds 1 kHz is the loudest; twice the amplitude is log 2 more."""
    sound = tone(1000.0, harmonics=1)
    mel = features.mel(sound, LJSPEECH)
    assert mel.shape == (RATE // 256, 80)
    middle = features.filters(LJSPEECH)[round(1000 * 1024 / RATE)].argmax()
    assert mel[20].argmax() == middle
    louder = features.mel(2 * sound, LJSPEECH)
    assert (louder - mel)[20, middle] == pytest.approx(math.log(2), abs=1e-3)  # measured 2e-5
    assert torch.allclose(features.mel(torch.zeros(RATE), LJSPEECH), torch.tensor(math.log(1e-5)))


def test_decimal_recipe_counts_frames_from_the_first_sample():
    sound = tone(200.0, rate=16000)
    assert len(features.mel(sound, SPEECHT5)) == SPEECHT5.frames(len(sound)) == 63  # as transformers' own extractor


@pytest.mark.parametrize("hertz", [80.0, 150.0, 440.0])
def test_pitch_of_a_tone(hertz):
    found = features.pitch(tone(hertz), LJSPEECH)
    assert len(found) == RATE // 256
    assert (found[4:-4] / hertz - 1).abs().max() <= 0.005  # measured 5e-4


def test_pitch_follows_a_glide_and_ignores_noise_and_silence():
    count = 2 * RATE
    hertz = 100 + 50 * torch.arange(count) / RATE
    found = features.pitch(tone(hertz, 2.0), LJSPEECH)
    at = (torch.arange(len(found)) * 256 + 128) / RATE
    assert (found / (100 + 50 * at) - 1)[4:-4].abs().max() <= 0.01  # measured 0.003
    noise = torch.randn(RATE, generator=torch.Generator().manual_seed(0))
    assert (features.pitch(0.1 * noise, LJSPEECH) > 0).float().mean() < 0.02
    assert not features.pitch(torch.zeros(RATE), LJSPEECH).any()


def test_pitch_agrees_with_the_twin_that_knows_it():
    from domains.speech.data.world import World

    world = World(0)
    recipe = replace(LJSPEECH, sample_rate=16000)
    for item in world.sample("held", world.base()[1], 2):
        found = features.pitch(torch.from_numpy(item["read"]()[0]), recipe)
        counts = features.durations(item["phones"], len(found), recipe)
        truth = torch.repeat_interleave(torch.tensor(item["f0"]), counts)
        both = (truth > 0) & (found > 0)
        assert (found[both] / truth[both]).log2().abs().median() < 0.02
        assert ((truth > 0) == (found > 0)).float().mean() > 0.8


def test_the_contour_is_straight_where_there_is_no_voice():
    f0 = torch.tensor([0.0, 150.0, 0.0, 0.0, 300.0, 0.0])
    assert torch.allclose(features.contour(f0), torch.tensor([0, 0, 1 / 3, 2 / 3, 1, 1]))
    assert not features.contour(torch.zeros(4)).any()


def test_frames_of_phones_add_up():
    phones = [("a", 0.1), ("b", 0.004), ("c", 0.25), ("d", 0.05)]
    frames = LJSPEECH.frames(int(0.404 * RATE))
    counts = features.durations(phones, frames, LJSPEECH)
    assert counts.sum() == frames == 34
    assert counts.tolist() == [9, 0, 21, 4]  # ends at 8.6, 8.96, 30.5 and 34.8 frames, the last cut
    assert features.durations(phones, 20, LJSPEECH).tolist() == [9, 0, 11, 0]
    means = features.phone_means(torch.arange(34.0), counts)
    assert means.tolist() == [4.0, 0.0, 19.0, 31.5]


def test_recipes_that_differ_are_refused_number_by_number():
    other = replace(LJSPEECH, sample_rate=16000, fmax=7600.0)
    with pytest.raises(ConfigError) as caught:
        features.same_recipe(model=LJSPEECH, vocoder=other)
    assert [p.where for p in caught.value.problems] == ["vocoder: sample_rate", "vocoder: fmax"]
    features.same_recipe(model=LJSPEECH, vocoder=replace(LJSPEECH))
    with pytest.raises(ConfigError, match="16000 Hz"):
        features.same_rate(16000, 22050, "data")


@pytest.mark.parametrize("recipe", [LJSPEECH, SPEECHT5], ids=["natural", "decimal"])
def test_griffin_lim_keeps_the_spectrogram_and_the_pitch(recipe):
    hertz = 120 + 60 * torch.linspace(0, 1, recipe.sample_rate)
    sound = tone(hertz, 1.0, recipe.sample_rate)
    mel = features.mel(sound, recipe)
    speak = vocoder.GriffinLim(recipe, rounds=16)
    said = speak(mel)
    again = features.mel(said, recipe)
    assert abs(len(again) - len(mel)) <= 1
    frames = slice(5, min(len(mel), len(again)) - 5)
    unit = 1.0 if recipe.log == "natural" else math.log(10)
    loud = mel[frames] * unit > -5
    assert ((again[frames] - mel[frames]).abs() * unit)[loud].mean() < 0.35  # measured 0.16 and 0.17
    pitch = features.pitch(said, recipe)[frames] / features.pitch(sound, recipe)[frames]
    assert (pitch - 1).abs().median() < 0.01
    assert torch.equal(said, speak(mel))
