"""Every score against what it must be by its definition."""

import numpy as np
import pytest
import torch

from core.errors import DataError
from domains.speech import features, metrics
from domains.speech.data.synthesiser import Voice, pitch, speak
from domains.speech.features import MelRecipe

RECIPE = MelRecipe(sample_rate=16000)


@pytest.fixture(scope="module")
def said() -> np.ndarray:
    """(samples,) of a voice with a glide, at 16 kHz."""
    phones = [("pau", 0.1, 0), ("s", 0.1, 0), ("aa", 0.4, 110), ("m", 0.1, 120), ("iy", 0.4, 180), ("pau", 0.1, 0)]
    return speak(phones, Voice("one"), seed=0)


def mel(samples: np.ndarray) -> np.ndarray:
    return features.mel(torch.from_numpy(samples), RECIPE).numpy()


def test_distortion_of_a_ripple_is_its_root_mean_square():
    """A spectral difference of a cos(3 pi (j + 1/2) / N) nepers is 20 / ln 10 * a / sqrt 2 dB rms over the bands."""
    bands = np.arange(80) + 0.5
    flat, ripple = np.zeros((5, 80)), np.tile(0.7 * np.cos(np.pi * 3 * bands / 80), (5, 1))
    found = metrics.mel_cepstral_distortion(metrics.cepstra(flat), metrics.cepstra(ripple), warp=False)
    rms = np.sqrt(np.square(20 / np.log(10) * ripple).mean())
    assert found == pytest.approx(rms, rel=1e-9)
    one = np.zeros((1, 13)), np.eye(1, 13)
    assert metrics.mel_cepstral_distortion(*one) == pytest.approx(6.1419, abs=1e-4)  # dB per unit of one coefficient


def test_distortion_leaves_loudness_out(said):
    c = metrics.cepstra(mel(said))
    assert metrics.mel_cepstral_distortion(c, c) == 0
    assert np.allclose(metrics.cepstra(mel(said) + 1.3), c, atol=1e-5)  # c0 takes it
    assert np.allclose(metrics.cepstra(mel(said) / np.log(10), log="decimal"), c, atol=1e-5)


def test_a_time_stretch_changes_the_plain_distance_alone(said):
    c = metrics.cepstra(mel(said))
    stretched = np.repeat(c, 2, axis=0)
    assert metrics.mel_cepstral_distortion(c, stretched) == pytest.approx(0, abs=1e-6)
    assert metrics.mel_cepstral_distortion(c, stretched[: len(c)], warp=False) > 3
    with pytest.raises(DataError, match="equal numbers"):
        metrics.mel_cepstral_distortion(c, stretched, warp=False)


def test_pitch_of_a_glide_is_found():
    """The twin's own F0 is exact: the tracker's median error is below 1 % (measured 0.1 %)."""
    phones = [("pau", 0.1, 0), ("aa", 0.5, 90), ("m", 0.1, 130), ("iy", 0.5, 220), ("pau", 0.1, 0)]
    samples = speak(phones, Voice("one"), seed=0)
    found = features.pitch(torch.from_numpy(samples), RECIPE).numpy()
    exact = pitch(phones, (np.arange(len(found)) + 0.5) * RECIPE.hop_s)
    errors = metrics.pitch_errors(exact, found)
    both = (exact > 0) & (found > 0)
    assert np.median(np.abs(found[both] / exact[both] - 1)) < 0.01
    assert errors["vuv"] < 0.1 and errors["gross"] == 0


def test_pitch_errors_by_hand():
    truth, guess = np.array([100.0, 200, 0, 0]), np.array([200.0, 200, 150, 0])
    found = metrics.pitch_errors(truth, guess)
    assert found["f0_rmse"] == pytest.approx(np.sqrt(100**2 / 2))
    assert found["f0_cents"] == pytest.approx(1200 / np.sqrt(2))
    assert found["gross"] == 0.5 and found["vuv"] == 0.25
    unvoiced = metrics.pitch_errors(np.zeros(3), guess[:3])
    assert np.isnan(unvoiced["f0_rmse"]) and unvoiced["vuv"] == 1


def test_durations():
    assert metrics.duration_error([3, 5, 2], [3, 4, 4]) == 1
    with pytest.raises(DataError, match="the same phones"):
        metrics.duration_error([3], [3, 4])


def test_an_utterance_against_itself_and_another(said):
    other = speak([("pau", 0.1, 0), ("uw", 0.6, 200), ("sh", 0.2, 0), ("pau", 0.1, 0)], Voice("two", tract=1.2), seed=0)
    f0 = [features.pitch(torch.from_numpy(x), RECIPE).numpy() for x in (said, other)]
    same = metrics.utterance(mel(said), mel(said), f0[0], f0[0])
    far = metrics.utterance(mel(said), mel(other), f0[0], f0[1])
    assert same == {"mcd": 0, "mel_l1": 0, "f0_rmse": 0, "f0_cents": 0, "gross": 0, "vuv": 0}
    assert far["mcd"] > 5 and far["f0_cents"] > 100


def test_error_rates_by_hand():
    found = metrics.error_rates(["The well-known cat's hat."], ["the well known bat's hats"])
    assert found["wer"] == pytest.approx(2 / 5)
    assert found["cer"] == pytest.approx(2 / len("the well known cat's hat"))
    assert metrics.spoken_form("\u201cCaf\u00e9\u2019s\u201d \u2013 NO. 7!") == "cafe's no 7"
    with pytest.raises(DataError, match="no words"):
        metrics.error_rates(["..."], ["anything"])
