"""The twin says what it claims: phones, durations, pitch, speakers and emotions, from a seed alone."""

import pickle

import numpy as np
import pytest
import torch

from core.data.splits import assert_disjoint
from core.errors import DataError
from domains.speech import features
from domains.speech.data.phones import PHONES
from domains.speech.data.synthesiser import SOUNDS, Voice, speak
from domains.speech.data.twin import Twin
from domains.speech.data.world import EMOTIONS, World, spelled
from domains.speech.features import MelRecipe

SPLITS = ("train", "val", "test")
RECIPE = MelRecipe(sample_rate=16_000)


@pytest.fixture(scope="module")
def world():
    return World()


def spectrum(symbol: str, **voice) -> tuple[np.ndarray, np.ndarray]:
    """(Hz, mean magnitude) of one phone held for a second at 60 Hz."""
    samples = speak([(symbol, 1.0, 60.0)], Voice("v", breath=-80, **voice), seed=0)[2000:14_000]
    return np.fft.rfftfreq(len(samples), 1 / 16_000), np.abs(np.fft.rfft(samples * np.hanning(len(samples))))


@pytest.mark.parametrize("symbol", ["iy", "aa", "uw", "eh"])
@pytest.mark.parametrize("tract", [1.0, 1.2])
def test_the_loudest_harmonics_lie_at_the_formants(symbol, tract):
    hertz, found = spectrum(symbol, tract=tract)
    for formant in SOUNDS[symbol].formants[:2]:
        near = np.abs(hertz - tract * formant) < 150
        assert abs(hertz[near][np.argmax(found[near])] - tract * formant) <= 60  # a harmonic away at most


def test_noise_lies_where_the_consonant_has_it():
    for symbol in ("s", "sh"):
        hertz, found = spectrum(symbol)
        centre = (hertz * found**2).sum() / (found**2).sum()
        assert abs(centre / SOUNDS[symbol].centre - 1) < 0.15


def test_stops_are_silent_before_their_burst():
    samples = speak([("aa", 0.2, 100), ("t", 0.2, 0), ("aa", 0.2, 100)], Voice("v"), seed=0)
    level = [10 * np.log10(np.square(samples[int(a * 16_000) : int(b * 16_000)]).mean()) for a, b in
             ((0.1, 0.18), (0.24, 0.29), (0.33, 0.39))]  # fmt: skip
    assert level[1] < level[0] - 35 and level[2] > level[1] + 20


def test_utterances_are_as_long_as_their_phones_and_voiced_where_they_say(world):
    for item in world.sample("test", world.voice("new"), 3):
        samples, rate = item["read"]()
        assert len(samples) == round(item["seconds"] * rate) and np.abs(samples).max() < 0.95
        counts = features.durations(item["phones"], RECIPE.frames(len(samples)), RECIPE)
        exact = torch.repeat_interleave(torch.tensor(item["f0"]), counts).numpy()
        found = features.pitch(torch.from_numpy(samples), RECIPE).numpy()
        both = (exact > 0) & (found > 0)
        assert ((exact > 0) == (found > 0)).mean() > 0.8
        assert np.median(np.abs(found[both] / exact[both] - 1)) < 0.04  # the exact curve glides between phones
        assert {symbol for symbol, _ in item["phones"]} <= set(PHONES)


def test_a_seed_names_a_world_and_a_draw(world):
    one, again = (Twin(seed=3, train=4, val=2, test=2) for _ in range(2))
    other = Twin(seed=4, train=6, val=2, test=2)
    for data in (one, again, other):
        data.setup()
        assert_disjoint({split: data.items(split) for split in SPLITS})
    read = [data.items("train")[0]["read"]()[0] for data in (one, again)]
    assert np.array_equal(*read)
    assert {i["text"] for i in one.items("train")}.isdisjoint(i["text"] for i in other.items("train"))
    assert [i["id"] for i in one.items("test")] == [i["id"] for i in other.items("test")]
    assert World(1).words != world.words
    item = pickle.loads(pickle.dumps(one.items("train")[0]))
    assert np.array_equal(item["read"]()[0], read[0])


def test_a_small_draw_is_the_beginning_of_a_large_one(world):
    voice = world.voice("base0")
    assert [i["text"] for i in world.sample("pretrain", voice, 3)] == [
        i["text"] for i in world.sample("pretrain", voice, 5)
    ][:3]


def test_the_new_speaker_rises_where_the_base_falls(world):
    assert max(voice.fall for voice in world.base()) <= 0 < world.voice("new").fall
    assert len({voice.f0 for voice in world.base()}) == 8


def test_emotions_are_relative_to_the_speaker_and_speakers_are_apart():
    data = Twin("emotion", train=2, val=1, test=1)
    data.setup()
    assert_disjoint({split: data.items(split) for split in SPLITS})
    assert {item["label"] for item in data.items("train")} == set(EMOTIONS)
    assert all(item["group"] == item["speaker"] for item in data.items("test"))
    level = {
        name: np.mean([np.mean([f for f in item["f0"] if f]) for item in data.items("train") if item["label"] == name])
        for name in EMOTIONS
    }
    assert level["sad"] < level["neutral"] < level["happy"]
    assert not data.audit().errors


def test_the_spelling_can_be_read_back(world):
    for n in range(100):
        text, phones = world.sentence(world.rng("spelling", n))
        assert [symbol for symbol, _ in spelled(text)] == phones
    with pytest.raises(DataError, match="`hello`"):
        spelled("seema hello")
