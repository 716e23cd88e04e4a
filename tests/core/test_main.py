"""The command line as a user meets it: exit codes, what is written and what is not, sweeps, repeats.

The run itself is a stand-in that fails on demand (its own tests are in tests/core/training): here Hydra, the check, the
run directory and the exit code are the real ones, in real processes.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DRIVER = """
import sys, types
from types import SimpleNamespace
import core.bench.result as result
from core.errors import AdapterError, DataError, EnvironmentError_, TrainingError

def run(cfg, directory):
    failures = {3: DataError("a.csv:3", "nan"), 4: AdapterError("base", "another"), 5: TrainingError("loss", "nan"),
                6: EnvironmentError_("esm", "not installed"), 11: ValueError("a bug"), 13: KeyboardInterrupt(),
                14: OSError(28, "No space left on device", "x"), 16: ModuleNotFoundError("No esm", name="esm")}
    if cfg.seed == 5:
        (directory / "checkpoints").mkdir()
    if cfg.seed in failures:
        raise failures[cfg.seed]
    print("ran", cfg.choices.adapter, cfg.adapter.rank, cfg.seed)
    result.write(directory, result.Record(run_id=directory.name, status="done"))
    return SimpleNamespace(primary=None)

stand_in = types.ModuleType("core.training.run")
stand_in.run = run
import core.training
core.training.run = sys.modules["core.training.run"] = stand_in
from core.main import main
assert "torch" not in sys.modules
main("protein")
"""


@pytest.fixture
def train(tmp_path):
    """Runs the command line in an empty folder: (exit code, stdout, stderr)."""
    (tmp_path / "driver.py").write_text(DRIVER)
    work = tmp_path / "work"
    work.mkdir()

    def command(*words: str, driver: bool = True, **environment: str):
        start = [str(tmp_path / "driver.py")] if driver else ["-m", "domains.protein.train"]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
        done = subprocess.run([sys.executable, *start, *words], cwd=work, env=env, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    command.work = work
    return command


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def test_help_lists_the_groups_and_one_example(train):
    code, out, _ = train("--help", driver=False)
    assert code == 0
    assert "python -m domains.protein.train adapter=lora" in out
    for group in ("adapter", "backbone", "data", "task", "optim", "trainer"):
        assert f"\n  {group} " in out
    assert "protein/backbone" not in out
    assert max(map(len, out.splitlines())) <= 100


def test_all_problems_of_a_command_line_and_nothing_written(train):
    code, out, err = train("adapter.rnak=4", "trainer.max_step=1", "run.resume=atuo", driver=False)
    assert (code, out) == (2, "")
    assert err == CONFIG_ERROR
    code, _, err = train("adapter=lorra", "backbone=esm2_mimi", driver=False)
    assert code == 2
    assert "did you mean `lora`?" in err and "did you mean `esm2_mini`?" in err
    assert files(train.work) == []


CONFIG_ERROR = """\
error[config]: 3 problems
  1. where    adapter.rnak
     got      4
     allowed  alpha, budget, dropout, name, path, rank, scaling, targets, thin, verify
     fix      did you mean `rank`?
  2. where    trainer.max_step
     got      1
     allowed  max_steps, max_time, min_steps, max_epochs, num_sanity_val_steps, min_epochs ... (41 names in all)
     fix      did you mean `max_steps`?
  3. where    run.resume
     got      'atuo' (str)
     allowed  auto, never, weights
     fix      did you mean `auto`?
"""


@pytest.mark.parametrize(("seed", "code", "kept"), [(3, 3, False), (14, 5, True), (5, 5, True), (16, 6, False)])
def test_exit_codes_of_a_run(train, seed, code, kept):
    """A run that never began leaves nothing, not even an empty folder; any other leaves its record."""
    returned, _, err = train(f"seed={seed}")
    assert returned == code
    assert err.startswith("error[") and "Traceback" not in err
    assert "1. where" in err
    (record,) = [*train.work.rglob("result.json")] or [None]
    assert (record is not None) == kept
    if kept:
        assert json.loads(record.read_text())["error"]["code"] == code
    else:
        assert files(train.work) == []


def test_a_bug_shows_where_and_names_the_run(train):
    code, _, err = train("seed=11", "hydra.run.dir=here/r1")
    assert code == 1
    assert "ValueError: a bug" in err and "Run directory: " in err and "here/r1" in err
    assert json.loads((train.work / "here/r1/result.json").read_text())["status"] == "failed"


def test_traceback_on_demand(train):
    code, _, err = train("seed=4", PEFT_TRACEBACK="1")
    assert code == 4
    assert "Traceback" in err and "error[adapter]: 1 problem" in err


def test_interrupted(train):
    code, _, err = train("seed=13")
    assert (code, err) == (130, "interrupted\n")
    (record,) = train.work.rglob("result.json")
    assert json.loads(record.read_text())["status"] == "interrupted"


def test_a_sweep_runs_every_job_and_ends_with_the_worst_code(train):
    code, out, _ = train("-m", "seed=0,3,11,2", "adapter=lora")
    assert code == 3
    assert [line for line in out.splitlines() if line.startswith("ran")] == ["ran lora 8 0", "ran lora 8 2"]
    assert "2 of 4 jobs done" in out
    records = {p.parent.name[0]: json.loads(p.read_text()) for p in train.work.rglob("result.json")}
    assert [records[k]["status"] for k in "0123"] == ["done", "failed", "failed", "done"]
    assert [(records[k]["error"]["code"], records[k]["method"]) for k in "12"] == [(3, "lora"), (1, "lora")]
    (first,) = train.work.rglob("3_*/config.yaml")
    assert first.read_text().splitlines()[0].endswith(" seed=2 adapter=lora")  # its own command, not the sweep's


def test_a_config_error_in_one_job_does_not_stop_the_others(train):
    code, out, err = train("-m", "adapter.rank=eight,4")
    assert code == 2
    assert "got      'eight' (str)" in err
    assert "ran lora 4 0" in out and "1 of 2 jobs done" in out


def test_a_run_is_repeated_from_its_config(train):
    code, out, _ = train("adapter=dora", "adapter.rank=3", "seed=1", "hydra.run.dir=first")
    assert (code, out) == (0, "ran dora 3 1\n")
    code, out, err = train("--config-dir", "first", "--config-name", "config", "hydra.run.dir=second")
    assert (code, out) == (0, "ran dora 3 1\n"), err
    bodies = [(train.work / name / "config.yaml").read_text().split("\n", 2)[2] for name in ("first", "second")]
    assert bodies[0] == bodies[1]
    assert not (train.work / "outputs").exists()


def test_a_second_run_into_the_same_folder(train):
    train("hydra.run.dir=one")
    before = {p: p.read_bytes() for p in (train.work / "one").iterdir()}
    code, out, err = train("hydra.run.dir=one")
    assert (code, out) == (2, "")
    assert "one holds a finished run" in err
    assert {p: p.read_bytes() for p in (train.work / "one").iterdir()} == before


def test_an_unfinished_run_goes_on_with_the_same_config_only(train):
    train("seed=5", "hydra.run.dir=one")
    code, _, err = train("seed=5", "adapter.rank=2", "hydra.run.dir=one")
    assert code == 2
    assert "holds a run with another adapter" in err
    code, _, err = train("seed=5", "run.resume=never", "hydra.run.dir=one")
    assert code == 2
    assert "run.resume=auto goes on with it" in err


def test_a_folder_that_cannot_be_made(train):
    (train.work / "file").write_text("")
    code, _, err = train("hydra.run.dir=file/run", driver=False)
    assert code == 2
    assert "where    hydra.run.dir" in err and "Traceback" not in err
    assert files(train.work) == ["file"]
