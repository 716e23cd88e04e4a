"""A killed run ends with the same bits as an undisturbed one: last and best checkpoint, metrics.csv, predictions."""

import random

import pytest

from core.training import files
from core.training.checkpoint import find
from tests.core.training import toy

SAME = ("checkpoints/last.safetensors", "checkpoints/best.safetensors", "metrics.csv", "predictions.jsonl")


def differing(a, b):
    return [name for name in SAME if (a / name).read_bytes() != (b / name).read_bytes()]


def test_two_kills_at_random_batches(server, undisturbed, tmp_path):
    draw = random.Random()  # another place every time: that is the claim
    first, second = sorted(draw.sample(range(1, 24), 2))
    print("killed at batches", first, second)
    assert server.train(tmp_path, toy.config(tmp_path), die_at=first) == -9
    assert server.train(tmp_path, die_at=second) == -9
    assert server.train(tmp_path) == 0
    assert differing(tmp_path, undisturbed) == [], f"killed at batches {first} and {second}"


def test_kill_between_the_renames_of_a_write(server, undisturbed, tmp_path):
    assert server.train(tmp_path, toy.config(tmp_path), die_in_write=5) == -9
    assert not (tmp_path / "checkpoints/last.safetensors").exists()
    assert server.train(tmp_path) == 0
    assert differing(tmp_path, undisturbed) == []


@pytest.mark.slow
def test_twenty_kills_at_random_moments(server, tmp_path):
    """In a training step, in a validation, between the renames of a write: each counted from where the run went on."""
    draw = random.Random()
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    longer = {"trainer__max_steps": 240}
    assert server.train(whole, toy.config(whole, **longer)) == 0
    kills = [("die_in_step", draw.randint(1, 30)) for _ in range(12)]
    kills += [("die_in_validation", draw.randint(1, 3)) for _ in range(4)] + [("die_in_write", 1)] * 4
    draw.shuffle(kills)
    print(kills)
    cfg = toy.config(killed, **longer)
    assert [server.train(killed, cfg, **{name: value}) for name, value in kills] == [-9] * 20, "twenty kills landed"
    assert server.train(killed) == 0, server.log.read_text()[-3000:]
    assert differing(killed, whole) == [], kills


def test_truncated_last_falls_back_to_previous(server, undisturbed, tmp_path):
    assert server.train(tmp_path, toy.config(tmp_path), die_at=15) == -9
    last = tmp_path / "checkpoints/last.safetensors"
    last.write_bytes(last.read_bytes()[:-40])
    found = find(tmp_path / "checkpoints")
    assert found.path.name == "previous.safetensors"
    assert found.refused[0].startswith("last.safetensors: ") and "not a whole checkpoint" in found.refused[0]
    assert server.train(tmp_path) == 0
    assert differing(tmp_path, undisturbed) == []
    assert "refused  last.safetensors" in (tmp_path / "run.log").read_text()


def test_workers_change_no_bit(server, undisturbed, tmp_path):
    assert server.train(tmp_path, toy.config(tmp_path, loader__workers=2)) == 0
    assert differing(tmp_path, undisturbed) == []


def test_one_flipped_bit_is_refused(undisturbed, tmp_path):
    blob = bytearray((undisturbed / "checkpoints/last.safetensors").read_bytes())
    blob[-3] ^= 1
    (tmp_path / "last.safetensors").write_bytes(blob)
    found = find(tmp_path)
    assert found.path is None and "sha256 differs" in found.refused[0]


def test_finished_run_only_scores(server, undisturbed, tmp_path):
    """`last` says done: nothing is trained, the same predictions are written again."""
    for name in (*SAME, "config.yaml", "result.json", "checkpoints/cost.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((undisturbed / name).read_bytes())
    (tmp_path / "predictions.jsonl").unlink()
    before = (tmp_path / "checkpoints/last.safetensors").stat().st_mtime_ns
    assert server.train(tmp_path) == 0
    assert differing(tmp_path, undisturbed) == []
    assert (tmp_path / "checkpoints/last.safetensors").stat().st_mtime_ns == before


def test_other_settings_are_refused_at_the_landing(server, tmp_path):
    assert server.train(tmp_path, toy.config(tmp_path), die_at=9) == -9
    assert server.train(tmp_path, toy.config(tmp_path, optim__lr=0.01)) == 5
    said = server.log.read_text()
    assert "where    resume: optim.lr\n     got      0.01\n     allowed  0.02" in said and "run.resume=weights" in said


@pytest.mark.parametrize("value", [{"a": object()}, {"a": {(1, 2): 3}}], ids=["object", "key"])
def test_what_cannot_be_saved_is_named(value):
    with pytest.raises(TypeError, match="cannot be saved"):
        files.encode(value)
