"""The record: whole or absent on disk, strict when read, null where nothing is known."""

import json
import os
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from core.bench import result
from core.bench.result import MetricRecord, Record
from core.contracts import Metric
from core.errors import ConfigError, DataError, TrainingError

# architecture.md section 11, the fields that every record has
FIELDS = """
schema run_id status error started ended wall_s domain task data data_kind split_hash backbone
base_fingerprint base_parameters method options targets paths trainable head_trainable fraction adapter_bytes
saved_activation_bytes peak_memory_bytes memory_kind flops_forward flops_backward step_time_s examples_per_s
steps epochs examples_seen batch_size precision devices seed tuning_group tuning_budget metrics primary
forgetting merge_error versions git hardware config_hash
""".split()


def test_every_field_is_written_and_unknown_is_null(tmp_path):
    path = result.write(tmp_path / "new folder", Record(run_id="a"))
    data = json.loads(path.read_text())
    assert set(FIELDS) <= set(data) and data["schema"] == 1 and data["status"] == "running"
    known = {"schema", "run_id", "status", "options", "targets", "paths", "metrics", "versions"}
    assert [name for name in data if data[name] is not None and name not in known] == []
    assert 0 not in data.values()


def test_it_reads_what_it_wrote(tmp_path):
    score = MetricRecord.of(Metric(0.5, "", True, 40, (0.4, 0.6)))
    error = result.ErrorRecord.of(ConfigError("adapter.rnak", 8, ["rank"], "did you mean `rank`?"))
    record = Record(run_id="a", metrics={"test": {"q3": score}}, primary={"name": "q3", "split": "test", "value": 0.5},
                    error=error, certificate={"live": (8, 8)}, status="failed", **result.environment())  # fmt: skip
    result.write(tmp_path, record)
    assert result.read(tmp_path) == record and record.headline() == score
    assert json.loads((tmp_path / "result.json").read_text())["error"]["class"] == "ConfigError"


def test_not_a_number_is_unknown(tmp_path):
    nan = float("nan")
    record = Record(
        run_id="a", wall_s=float("inf"), metrics={"test": {"rho": MetricRecord.of(Metric(nan, ci95=(nan, 1)))}}
    )
    result.write(tmp_path, record)
    assert "NaN" not in (tmp_path / "result.json").read_text()
    read = result.read(tmp_path)
    assert (
        read.wall_s is None and read.metrics["test"]["rho"].value is None and read.metrics["test"]["rho"].ci95 is None
    )


@pytest.mark.parametrize(
    "text, words",
    [
        ("{", ["not JSON"]),
        ('{"schema": 1}', ["run_id", "missing"]),
        ('{"schema": 2, "run_id": "a"}', ["schema", "2"]),
        (
            '{"schema": 1, "run_id": "a", "status": "fine", "seed": "x"}',
            ["status", "'fine'", "seed", "'x'", "2 problems"],
        ),
        (
            '{"schema": 1, "run_id": "a", "metrics": {"test": {"q3": {"value": "high"}}}}',
            ["metrics.test.q3.value", "'high'"],
        ),
        ('{"schema": 1, "run_id": "a", "trainable": -1}', ["trainable", "-1"]),
        ('{"schema": 1, "run_id": "a", "trainabel": 1}', ["trainabel"]),
    ],
)
def test_a_wrong_file_is_named_with_every_wrong_field(tmp_path, text, words):
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(DataError) as caught:
        result.read(tmp_path)
    assert all(word in str(caught.value) for word in [str(tmp_path / "result.json"), *words])


def test_no_file(tmp_path):
    with pytest.raises(DataError, match=r"result\.json"):
        result.read(tmp_path)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_writer_that_fails_leaves_the_old_record(tmp_path, monkeypatch, call):
    result.write(tmp_path, Record(run_id="old"))

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(TrainingError, match="No space left"):
        result.write(tmp_path, Record(run_id="new"))
    assert result.read(tmp_path).run_id == "old" and [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_unwritable_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match="Not a directory"):
        result.write(tmp_path / "file" / "run", Record(run_id="a"))


def test_the_hash_is_of_what_is_computed():
    cfg = {"seed": 0, "optim": {"lr": 1e-3}, "run": {"resume": "auto", "fit": True}}
    same = OmegaConf.create(
        {"run": {"fit": True, "resume": "never"}, "optim": {"lr": "${rate}"}, "seed": 0, "rate": 1e-3}
    )
    del cfg["run"]["resume"]
    assert result.config_hash({**cfg, "rate": 1e-3}) == result.config_hash(same)
    assert result.config_hash(cfg) != result.config_hash({**cfg, "seed": 1})
    assert result.config_hash(cfg) == result.config_hash(
        {**cfg, "tuning": {"budget": 4}, "run": {"test": False, "fit": True}}
    )
    assert result.config_hash(cfg) != result.config_hash({**cfg, "run": {"fit": True, "limit": 10}})
    assert len(result.config_hash(cfg)) == 64


def test_the_command_is_what_was_typed(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/x/domains/protein/train.py", "adapter=lora", "++seed=1", "data.path=a b.csv"])
    assert result.command("protein") == "python -m domains.protein.train adapter=lora seed=1 'data.path=a b.csv'"
    assert result.command("speech") == "train.py adapter=lora seed=1 'data.path=a b.csv'"


def test_environment_loads_nothing_heavy():
    code = "import sys; from core.bench import result; e = result.environment(); assert e['versions']['torch'], e;"
    code += "print([m for m in ('torch', 'numpy', 'scipy', 'matplotlib', 'lightning') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
