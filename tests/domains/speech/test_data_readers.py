"""Readers: what becomes an item, splits and limits, flite's phones, alignment, the real folders."""

import pickle
import shutil

import numpy as np
import pytest
import soundfile

from core.data.splits import assert_disjoint
from core.paths import data_dir
from domains.speech.data import alignment, audit, flite, phones
from domains.speech.data.audio import Audio, resample, sounding
from domains.speech.data.fsdd import Fsdd
from domains.speech.data.ljspeech import LJSpeech
from domains.speech.data.sentences import sentences
from domains.speech.data.table import Csv
from domains.speech.data.voices import Flite
from tests.domains.speech import folders

needs_flite = pytest.mark.skipif(shutil.which("flite") is None, reason="flite is not installed")
SPLITS = ("train", "val", "test")


@pytest.fixture(scope="session")
def spoken(tmp_path_factory):
    return str(tmp_path_factory.mktemp("flite"))


def test_quotes_are_letters_in_lj_speechs_layout(tmp_path):
    rows = tuple(f'u{n}|"{text}|"{text}" he said' for n, text in enumerate(folders.TEXTS))
    data = LJSpeech(str(folders.ljspeech(tmp_path, rows)), phones="none", split="random")
    data.setup()
    texts = {item["text"] for split in SPLITS for item in data.items(split)}
    assert texts == {f'"{text}" he said' for text in folders.TEXTS}


def test_an_item_reads_and_travels(tmp_path):
    folders.table(tmp_path, splits="rrrrvvtt")
    data = Csv(str(tmp_path / "t.csv"), speaker="speaker", label="label", sample_rate=8000, trim=30.0, loudness=-30.0)
    data.setup()
    item = pickle.loads(pickle.dumps(data.items("test")[0]))
    samples, rate = item["read"]()
    assert rate == 8000 and samples.dtype == np.float32 and item["seconds"] == len(samples) / rate
    assert 10 * np.log10(np.square(samples).mean()) == pytest.approx(-30, abs=0.1)
    assert {key: item[key] for key in ("id", "group", "speaker", "label")} == {
        "id": "s6.wav", "group": "s6.wav", "speaker": "d", "label": "x"
    }  # fmt: skip


def test_a_smaller_draw_of_minutes_is_part_of_a_larger_one(tmp_path):
    folders.table(tmp_path, speakers="abcdefghijkl", splits="rrrrrrrrrrvt")
    kept = []
    for minutes in (1 / 60, 2 / 60, None):
        data = Csv(str(tmp_path / "t.csv"), speaker="speaker", minutes=minutes)
        data.setup()
        kept.append({item["id"] for item in data.items("train")})
        assert len(data.items("val")) == len(data.items("test")) == 1
    assert [len(ids) for ids in kept] == [2, 4, 10] and kept[0] < kept[1] < kept[2]


def test_repeated_texts_stay_together(tmp_path):
    rows = tuple(f"u{n}|{text}|{text}" for n, text in enumerate(("same", "b", "same", "d", "same", "f")))
    data = LJSpeech(str(folders.ljspeech(tmp_path, rows)), phones="none", split="random", val=0.2, test=0.2)
    data.setup()
    assert_disjoint({split: data.items(split) for split in SPLITS}, ("group", "id"))


def test_resampling_keeps_a_tone_and_takes_what_the_new_rate_cannot_hold():
    kept = resample(folders.tone(1.0, 22_050, 1000), 22_050, 16_000)
    gone = resample(folders.tone(1.0, 22_050, 9500), 22_050, 16_000)
    wanted = folders.tone(1.0, 16_000, 1000)
    assert len(kept) == 16_000 and np.abs(kept - wanted)[500:-500].max() < 1e-3
    assert np.abs(gone[500:-500]).max() < 3e-3  # measured 5e-4


def test_parts_of_a_file_and_several_channels(tmp_path):
    left = folders.tone(1.0, 8000, 200)
    soundfile.write(tmp_path / "two.wav", np.stack([left, np.zeros_like(left)], 1), 8000, subtype="FLOAT")
    samples, rate = Audio(str(tmp_path / "two.wav"), 100, 900)()
    assert rate == 8000 and np.allclose(samples, left[100:900] / 2)


def test_what_only_listening_tells():
    tone = folders.tone(1.0, 16_000, 200)
    assert audit.clipped(tone) == 0 and audit.clipped(np.clip(4 * tone, -1, 1)) > 1000
    assert audit.clipped(np.clip(2 * tone, -0.55, 0.55)) > 1000  # a flat top below full scale
    padded = np.concatenate([np.zeros(12_000, np.float32), tone, np.zeros(3_200, np.float32)]) + np.float32(0.02)
    found = audit.listened(padded - np.float32(0.02), 16_000)
    assert found["leading"] == pytest.approx(0.75, abs=0.02) and found["closing"] == pytest.approx(0.2, abs=0.02)
    assert audit.listened(padded, 16_000)["dc"] == pytest.approx(0.02, abs=1e-3)
    assert sounding(np.zeros(0, np.float32), 16_000, 30) == (0, 0)


def test_unusual_speed_and_letters_are_told():
    read = lambda: (folders.tone(0.5, 16_000, 200), 16_000)  # noqa: E731
    items = [{"id": f"i{n}", "speaker": "s", "text": "ten letters", "seconds": 1.0, "read": read} for n in range(9)]
    items.append({**items[0], "id": "odd", "text": "far more than can be said in this time \u2020" * 3})
    found = audit.audit({"train": items, "val": [], "test": []})
    assert any("worst: odd" in warning for warning in found.warnings)
    assert any("may not be spoken: \u2020" in warning for warning in found.warnings)


@needs_flite
def test_flites_phones_fill_its_speech(spoken):
    said = flite.speak("The café\u2019s azure measure, oily boys!", "slt", spoken)
    assert sum(seconds for _, seconds in said.phones) == pytest.approx(said.frames / said.sample_rate, abs=1e-6)
    assert [symbol for symbol, _ in said.phones][:4] == ["pau", "dh", "ax", "k"]
    assert {symbol for symbol, _ in said.phones} <= set(phones.PHONES)
    assert flite.speak("The cafe's azure measure, oily boys!", "slt", spoken).path == said.path  # kept, and found again


@needs_flite
def test_items_of_flites_voices(spoken):
    data = Flite(["slt", "awb"], count=5, label="voice", val=0.2, folder=spoken, sample_rate=8000)
    data.setup()
    assert_disjoint({split: [{**i, "id": i["id"]} for i in data.items(split)] for split in SPLITS})
    item = data.items("train")[0]
    assert item["label"] == item["speaker"] and item["read"]()[1] == 8000 and item["phones"][0][0] == "pau"


@needs_flite
def test_warped_boundaries_are_near_the_true_ones(spoken):
    """Both voices' phone times are known: the median error was 13 ms, a uniform stretch's 60."""
    off = alignment.errors(("slt", "awb"), sentences(4), spoken)
    assert np.median(off["warped"]) < 20 < 35 < np.median(off["uniform"])
    assert (off["warped"] <= 50).mean() > 0.8


@needs_flite
def test_an_aligned_recording_is_filled_by_its_phones(spoken, tmp_path):
    said = flite.speak(sentences(1)[0], "rms", spoken)
    samples, rate = Audio(str(said.path), sample_rate=22_050)()
    found = alignment.phones(sentences(1)[0], samples, rate, str(tmp_path))
    assert sum(seconds for _, seconds in found) == pytest.approx(len(samples) / rate, abs=1e-6)
    assert len(list(tmp_path.glob("*.phones.json"))) == 1
    assert alignment.phones(sentences(1)[0], samples, rate, str(tmp_path)) == found


@pytest.mark.real
@pytest.mark.skipif(data_dir() is None, reason="the folder of real data is not there")
def test_the_real_folders():
    data = LJSpeech("data://speech/ljspeech", phones="none", split="given", minutes=1)
    data.setup()
    assert [len(data.items(split)) for split in SPLITS[1:]] == [34, 38] and not data.audit().errors
    assert 50 < sum(item["seconds"] for item in data.items("train")) <= 60
    digits = Fsdd("data://speech/fsdd", limit={"train": 50})
    digits.setup()
    assert [len(digits.items(split)) for split in SPLITS] == [50, 250, 250]
    assert digits.items("test")[0]["read"]()[1] == 8000
    apart = Fsdd("data://speech/fsdd", together="speaker", split="random", val=0.2, test=0.2)
    apart.setup()
    assert [len({item["speaker"] for item in apart.items(split)}) for split in SPLITS] == [3, 1, 1]
