"""Mel pictures and players: small, readable by others, right about what they show."""

import io

import numpy as np
import pytest
import soundfile
import torch

from core.bench import measures
from domains.speech import baselines, features, metrics, pictures
from domains.speech.data.twin import Twin
from domains.speech.features import MelRecipe

RECIPE = MelRecipe(sample_rate=16_000)


@pytest.fixture(scope="module")
def data():
    data = Twin(train=3, val=1, test=2)
    data.setup()
    return data


def mel(item):
    return features.mel(torch.from_numpy(item["read"]()[0]), RECIPE).numpy()


def test_a_take_gives_a_picture_and_players(data, tmp_path):
    item, other = data.items("test")
    take = {"id": item["id"], "text": item["text"], "mel": mel(item), "samples": item["read"]()[0]}
    take |= {"truth_mel": mel(item), "truth_samples": item["read"]()[0], "before_mel": mel(other)}
    names = pictures.takes([take], tmp_path, RECIPE)
    assert names == ["utterance_1.svg", "utterance_1a_recorded.ogg", "utterance_1c_after.ogg"]
    svg = (tmp_path / names[0]).read_text()
    distance = metrics.utterance(mel(item), mel(other))["mcd"]
    assert svg.count("<image") == 3 and item["text"] in svg
    assert "MCD 0.0 dB" in svg and f"MCD {distance:.1f} dB" in svg and len(svg) < 100_000
    samples, rate = soundfile.read(tmp_path / names[1])
    assert rate == 16_000 and len(samples) == len(item["read"]()[0])
    assert np.corrcoef(samples, item["read"]()[0])[0, 1] > 0.8


def test_long_and_loud_clips_stay_small(tmp_path):
    noise = np.random.default_rng(0).normal(0, 0.5, 22_050 * 9).astype(np.float32)
    pictures.clip(noise, 22_050, tmp_path / "noise.ogg")
    content = (tmp_path / "noise.ogg").read_bytes()
    samples, rate = soundfile.read(io.BytesIO(content))
    assert len(content) <= pictures.CLIP_BYTES and len(samples) == 6 * rate and abs(samples[-1]) < 0.05


def test_thinning_keeps_means():
    table = np.arange(500 * 80, dtype=float).reshape(500, 80)
    thin = pictures.thinned(table)
    assert thin.shape == (167, 40) and thin[0, 0] == table[:3, :2].mean()
    assert pictures.thinned(table[:10, :13]).shape == (10, 13)


def test_baselines_for_speaking(data):
    rows = baselines.spoken(data, mel)
    assert [row["id"] for row in rows["mean_mel"]] == [item["id"] for item in data.items("test")]
    assert all(row["score"] == row["mcd"] > 1 for part in rows.values() for row in part)

    class Copied(Twin):
        def items(self, split):
            return data.items("train")

    assert all(row["mcd"] == pytest.approx(0, abs=1e-6) for row in baselines.spoken(Copied(), mel)["nearest_copy"])


def test_baselines_for_classes():
    data = Twin("emotion", train=1, val=1, test=1)
    data.setup()
    names = ["angry", "happy", "neutral", "sad"]
    found = baselines.classes(data, names)
    truth = [names.index(item["label"]) for item in data.items("test")]
    recall = {name: measures.classification(truth, table, 4)["balanced_accuracy"] for name, table in found.items()}
    assert recall["prior"] == 0.25 < recall["mfcc_logistic"]  # one class always: 1 / classes
    assert all(np.allclose(table.sum(1), 1) for table in found.values())
