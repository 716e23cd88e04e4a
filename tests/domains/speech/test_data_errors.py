"""Bad input through the configuration that people type: the class, the exit code, the words; nothing is written."""

import shutil
import subprocess
import sys

import pytest
import soundfile

from core.compose import compose
from core.errors import ConfigError, DataError, EnvironmentError_
from core.training import assemble
from tests.domains.speech import folders

LJ = ["backbone=fastspeech_tiny", "data=ljspeech", "data.path={root}/voice", "data.phones=none"]
CSV = ["backbone=fastspeech_tiny", "data=csv", "data.path={root}/t.csv", "data.speaker=speaker", "data.label=label"]
RANDOM = "data.split=random"


def setup(root, overrides):
    """Read and split, as a run does first."""
    data = assemble.make(compose("speech", [o.format(root=root) for o in overrides]), "data", 0)
    data.setup()
    return data


def missing_folder(root):
    folders.ljspeech(root / "voices")
    return LJ, "no such folder", "did you mean `voices`?"


def no_metadata(root):
    folders.ljspeech(root / "voice")
    (root / "voice" / "metadata.csv").rename(root / "voice" / "metadat.csv")
    return LJ, "metadata.csv", "did you mean `metadat.csv`?"


def wrong_number_of_cells(root):
    folders.ljspeech(root / "voice", ("u0|one|one", "u1|two", 'u2|say "|" aloud|three'))
    return LJ, "metadata.csv:2", "2 cells", "metadata.csv:3", "4 cells"


def audio_missing_and_corrupt(root):
    folders.ljspeech(root / "voice")
    (root / "voice" / "wavs" / "u1.wav").unlink()
    (root / "voice" / "wavs" / "u2.wav").write_bytes(b"RIFF of nothing")
    (root / "voice" / "wavs" / "u3.wav").write_bytes(b"")
    return LJ, "3 problems", "metadata.csv:2, audio", "no such file", "not readable as sound"


def empty_text(root):
    folders.ljspeech(root / "voice", ("u0|one|one", "u1||", "|three|three"))
    return LJ, "metadata.csv:2", "no text", "metadata.csv:3, id"


def the_same_id_twice(root):
    folders.ljspeech(root / "voice", ("u0|one|one", "u1|two|two", "u0|three|three"))
    return LJ, "`u0` again", "first in line 1"


def no_split_column(root):
    folders.ljspeech(root / "voice")
    return [*LJ, "data.split=given"], "no column `split`", "data.split=random"


def letters_that_cannot_be_said(root):
    folders.ljspeech(root / "voice", ("u0|one|one", "u1|привет|привет", "u2|café|café"))
    return [*LJ[:3], "data.phones=flite"], "1 problem", "metadata.csv:2", "Latin letters"


def mixed_sample_rates(root):
    folders.ljspeech(root / "voice")
    folders.sound(root / "voice" / "wavs" / "u5.wav", rate=22_050)
    return LJ, "a mix: 5 at 16000 Hz, 1 at 22050 Hz", "data.sample_rate=16000"


def too_short_and_too_long(root):
    folders.ljspeech(root / "voice")
    folders.sound(root / "voice" / "wavs" / "u0.wav", seconds=0.15)
    folders.sound(root / "voice" / "wavs" / "u1.wav", seconds=3)
    return [*LJ, "data.longest=2.0"], "at least 0.3 s", "at most 2 s", "data.too_long=drop"


def too_few_to_split(root):
    folders.ljspeech(root / "voice", ("u0|one|one",))
    return LJ, "leaves", "empty"


def table_without_column(root):
    folders.table(root, header="path,speakers,label,split")
    return [*CSV, RANDOM], "no column `speaker`", "did you mean `speakers`?"


def table_with_empty_cells(root):
    path = folders.table(root)
    path.write_text(path.read_text().replace("s1.wav,a,y", "s1.wav,a,").replace("s2.wav", ""))
    return [*CSV, RANDOM], "t.csv:3, label", "t.csv:4, path"


def unknown_split(root):
    path = folders.table(root, splits="rrrrvvtt")
    path.write_text(path.read_text().replace("val", "vall"))
    return CSV, "t.csv:6, split", "'vall'"


def samples_outside_the_file(root):
    folders.sound(root / "ann.flac")
    header = "speaker,digit,take,start,end,split"
    (root / "index.csv").write_text(f"{header}\nann,1,0,0,900000,train\nann,ten,0,0,9,train\n")
    return ["data=fsdd_digits", "data.path={root}"], "index.csv:3", "a digit and two numbers"


CASES = [
    missing_folder, no_metadata, wrong_number_of_cells, audio_missing_and_corrupt, empty_text, the_same_id_twice,
    no_split_column, letters_that_cannot_be_said, mixed_sample_rates, too_short_and_too_long, too_few_to_split,
    table_without_column, table_with_empty_cells, unknown_split, samples_outside_the_file,
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__)
def test_bad_data_is_a_data_error_that_says_where(case, tmp_path):
    if case is letters_that_cannot_be_said and shutil.which("flite") is None:
        pytest.skip("flite is not installed")
    overrides, *words = case(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError) as caught:
        setup(tmp_path, overrides)
    assert caught.value.code == 3
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "overrides, where",
    [
        (["data.train=0"], "data.train"),
        (["data=ljspeech", "data.path=a", "data.minutes=0"], "data.minutes"),
        (["data=ljspeech", "data.path=a", "data.shortest=5", "data.longest=2"], "data.longest"),
        (["data=csv", "data.path=a", "data.loudness=3"], "data.loudness"),
        (["data=flite", "data.voices=[slt,rmz]"], "rmz"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_options_are_config_errors(overrides, where, tmp_path):
    with pytest.raises(ConfigError) as caught:
        setup(tmp_path, overrides)
    assert caught.value.code == 2 and where in str(caught.value)


@pytest.mark.parametrize("data", ["data=flite", "data=ljspeech"])
def test_a_missing_flite_is_said_before_anything_is_read(data, tmp_path, monkeypatch):
    folders.ljspeech(tmp_path / "voice")
    monkeypatch.setenv("PATH", str(tmp_path))
    path = [] if data == "data=flite" else ["data.path={root}/voice"]
    with pytest.raises(EnvironmentError_) as caught:
        setup(tmp_path, [data, *path])
    assert caught.value.code == 6 and "apt-get install flite" in str(caught.value)


def test_rates_may_be_mixed_where_they_are_resampled(tmp_path):
    folders.ljspeech(tmp_path / "voice")
    folders.sound(tmp_path / "voice" / "wavs" / "u5.wav", rate=22_050)
    data = setup(tmp_path, [*LJ, "data.sample_rate=8000"])
    items = [item for split in ("train", "val", "test") for item in data.items(split)]
    assert [(len(samples), rate) for samples, rate in (item["read"]() for item in items)] == [(4000, 8000)] * 6
    assert any("a mix of sample rates" in warning for warning in data.audit().warnings)


def test_long_files_may_be_left_out(tmp_path):
    folders.ljspeech(tmp_path / "voice")
    folders.sound(tmp_path / "voice" / "wavs" / "u1.wav", seconds=3)
    data = setup(tmp_path, [*LJ, "data.longest=2.0", "data.too_long=drop"])
    assert sum(len(data.items(split)) for split in ("train", "val", "test")) == 5
    assert data.audit().facts["utterances over data.longest, left out"] == 1


def test_a_speaker_in_two_splits_stops_where_the_split_claims_otherwise(tmp_path):
    folders.table(tmp_path, speakers="aabbccda", splits="rrrrvvtt")
    claimed = setup(tmp_path, [*CSV, "data.together=speaker"]).audit()
    assert len(claimed.errors) == 1 and "1 speaker in two splits: `a`" in claimed.errors[0]
    assert not setup(tmp_path, CSV).audit().errors
    drawn = setup(tmp_path, [*CSV, "data.together=speaker", RANDOM, "data.test=0.25", "data.val=0.25"])
    assert not drawn.audit().errors and drawn.audit().facts["speakers in two splits"] == 0


def test_the_command_ends_with_3_and_leaves_nothing_behind(tmp_path):
    overrides, *words = mixed_sample_rates(tmp_path)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "domains.speech.train", *(o.format(root=tmp_path) for o in overrides)]
    done = subprocess.run([*command, f"hydra.run.dir={out}"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 3, done.stderr[-2000:]
    assert words[0] in done.stdout + done.stderr and not out.exists()


def test_a_recording_in_two_splits_is_found_whatever_its_name(tmp_path):
    folders.table(tmp_path, splits="rrrrvvtt")
    soundfile.write(tmp_path / "s7.wav", *soundfile.read(tmp_path / "s0.wav", dtype="float32"))
    errors = setup(tmp_path, CSV).audit().errors
    assert errors == ["1 recording in two splits: s0.wav (train) = s7.wav (test)"]
