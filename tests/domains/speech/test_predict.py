"""New input for a run: text that it speaks, recordings that it names; what cannot be read is refused."""

import csv
import shutil

import pytest
import soundfile

from core.compose import compose
from core.errors import ConfigError, DataError
from core.ship import predict
from core.training.run import run
from domains.speech.predict import read
from tests.domains.speech import folders

TWIN = {"_target_": "domains.speech.data.twin.Twin"}
needs_flite = pytest.mark.skipif(shutil.which("flite") is None, reason="flite is not installed")


def finished(out, *overrides):
    small = ["adapter=none", "trainer.max_steps=1", "data.train=2", "data.val=1", "data.test=1", "threads=1"]
    run(compose("speech", [*small, *overrides]), out)
    return out


@pytest.fixture(scope="module")
def speaker(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "speaker"
    return finished(out, "backbone=fastspeech_tiny", "task.forgetting=0", "task.rounds=2")


@pytest.fixture(scope="module")
def hearer(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "hearer"
    return finished(out, "backbone=listener_tiny", "task=classification", "data=twin_emotion", "data.train=1")


def test_lines_become_phones_in_the_runs_own_spelling(tmp_path):
    file = tmp_path / "lines.txt"
    file.write_text("seema tookur, lan.\n\n  wadoon  \n")
    first, second = read(file, TWIN)
    assert (first["id"], second["id"], second["text"]) == ("line1", "line3", "wadoon")
    assert [s for s, _ in first["phones"]] == "pau s iy m ae t uw k er pau l ae n pau".split()
    file.write_text("seema\nhello\nworld peace\n")
    with pytest.raises(DataError) as caught:
        read(file, TWIN)
    assert "lines.txt:2" in str(caught.value) and "lines.txt:3" in str(caught.value)


@needs_flite
def test_english_lines_become_flites_phones(tmp_path):
    file = tmp_path / "lines.txt"
    file.write_text("The caf\u00e9.\n\u043f\u0440\u0438\u0432\u0435\u0442\n...\n")
    with pytest.raises(DataError) as caught:
        read(file, {"folder": str(tmp_path)})
    assert len(caught.value.problems) == 2 and "Latin letters" in str(caught.value)
    file.write_text("The cat.\n")
    said = read(file, {"folder": str(tmp_path)})[0]["phones"]
    assert [symbol for symbol, _ in said] == ["pau", "dh", "ax", "k", "ae", "t", "pau"]


def test_recordings_are_read_as_the_runs_own(tmp_path):
    path = folders.table(tmp_path, speakers="ab")
    items = read(path, {"sample_rate": 8000, "label": "emotion", "split": "given", "text": "words"})
    assert [item["id"] for item in items] == ["s0.wav", "s1.wav"] and "label" not in items[0]
    assert items[0]["read"]()[1] == 8000
    with pytest.raises(DataError, match="a column `file`"):
        read(path, {"audio": "file"})
    (tmp_path / "s1.wav").unlink()
    with pytest.raises(DataError, match=r"t.csv:3, audio"):
        read(path)


def test_a_run_speaks_a_text_file(speaker, tmp_path):
    lines = tmp_path / "lines.txt"
    lines.write_text("seema tookur.\nwadoon.\n")
    told = predict(speaker, lines, tmp_path / "spoken")
    assert told.startswith("2 utterances") and sorted(p.name for p in (tmp_path / "spoken").iterdir()) == [
        "line1.wav", "line2.wav"
    ]  # fmt: skip
    samples, rate = soundfile.read(tmp_path / "spoken" / "line1.wav")
    assert rate == 16_000 and len(samples) and abs(samples).max() <= 1
    predict(speaker, lines, tmp_path / "again")
    assert (tmp_path / "again" / "line2.wav").read_bytes() == (tmp_path / "spoken" / "line2.wav").read_bytes()
    predict(speaker, lines, tmp_path / "rows.csv")
    rows = list(csv.DictReader((tmp_path / "rows.csv").open()))
    assert [row["id"] for row in rows] == ["line1", "line2"]


def test_refused_input_leaves_no_folder(speaker, hearer, tmp_path):
    lines, table = tmp_path / "lines.txt", folders.table(tmp_path, speakers="ab")
    lines.write_text("hello\n")
    cases = ((speaker, lines, DataError), (speaker, table, ConfigError), (hearer, table, ConfigError))
    for where, source, error in cases:
        with pytest.raises(error):
            predict(where, source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_run_names_recordings(hearer, tmp_path):
    predict(hearer, folders.table(tmp_path, speakers="abc"), tmp_path / "rows.csv")
    rows = list(csv.DictReader((tmp_path / "rows.csv").open()))
    assert [row["id"] for row in rows] == ["s0.wav", "s1.wav", "s2.wav"]
    assert all(row["prediction"] in ("angry", "happy", "neutral", "sad") for row in rows)
