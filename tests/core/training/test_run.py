"""One run from config to record: what it leaves, what it says, and how it fails."""

import csv
import json
import os

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from core.adapters import load_adapter
from core.bench import result
from core.errors import ConfigError, DataError, TrainingError
from core.training import run
from core.training.checkpoint import find
from core.training.memory import out_of_memory, peak, reset_peak
from tests.core.training import toy
from tests.core.training.test_resume import differing


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def train(directory, **changes):
    return run.run(OmegaConf.create(toy.config(directory, **changes)), directory)


def test_record_and_files_of_a_run(undisturbed):
    record = result.read(undisturbed)
    assert record.status == "done" and record.error is None
    assert (record.method, record.paths, record.trainable, record.head_trainable) == ("lora", {"call": 2}, 96, 13)
    assert (record.steps, record.examples_seen, record.batch_size, record.epochs) == (12, 96, 8, 2.4)
    proved = record.certificate
    assert proved.live == (2, 2) and proved.base_bit_equal and proved.splits_disjoint and proved.reload_equal
    assert record.merge_error < 1e-5 and record.saved_activation_bytes > 0 and record.flops_backward > 0
    assert record.primary.value == record.metrics["test"]["error"].value and record.metrics["val"]["error"].n == 10
    rows = [json.loads(line) for line in (undisturbed / "predictions.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"test{i}" for i in range(12)]
    assert {"id", "group", "truth", "prediction", "score"} <= rows[0].keys() and rows[3]["group"] == "test1"
    assert "mean" in json.loads((undisturbed / "baselines.json").read_text())
    assert {"config.yaml", "metrics.csv", "card.html", "run.log", "adapter"} <= set(os.listdir(undisturbed))
    best = [float(r["value"]) for r in read_csv(undisturbed) if (r["split"], r["name"]) == ("val", "error")]
    assert record.metrics["val"]["error"].value == min(best)  # mode min: the best checkpoint was scored


def read_csv(directory):
    return list(csv.DictReader(open(directory / "metrics.csv")))


def test_saved_adapter_predicts_what_the_run_predicted(undisturbed):
    backbone, task, data = toy.Toy(), toy.ToyTask(), toy.ToyData()
    data.setup()
    load_adapter(backbone, undisturbed / "adapter", head=task.head(backbone))
    from core.adapters import head
    from core.data.loading import Loader, Loaders
    from core.data.seeding import derive

    loaders = Loaders(data, task, None, Loader(batch_size=4), seed=derive(0, "data"))
    backbone.eval()
    with torch.no_grad():
        found = {
            r["id"]: r["prediction"]
            for b in loaders.loader("test")
            for r in task.predict(backbone(b), b, head(backbone))
        }
    rows = [json.loads(line) for line in (undisturbed / "predictions.jsonl").read_text().splitlines()]
    assert [found[row["id"]] for row in rows] == [row["prediction"] for row in rows]


@pytest.mark.parametrize("method", ["lora.LoRA", "full.Full"])
def test_a_task_that_answers_in_more_than_one_pass(method, tmp_path):
    """Validation is watched by one metric, the test is judged by another; what the base could do is asked twice."""
    adapter = {"_target_": f"core.adapters.methods.{method}"} | ({"targets": ["mlp"]} if "lora" in method else {})
    changes = {"task": {"_target_": "tests.core.training.toy.SlowTask"}, "adapter": adapter}
    record = train(tmp_path, **changes)
    assert record.selected.name == "quick" and record.validation().value == record.selected.value
    assert set(record.metrics["test"]) == {"error"} and record.primary.name == "error"
    with torch.no_grad():
        untrained = toy.SlowTask().retention(toy.Toy().eval(), None)
    assert record.forgetting.before == pytest.approx(untrained.value, rel=1e-6)
    assert record.forgetting.after != record.forgetting.before and record.forgetting.unit == "V"
    again = train(tmp_path, **changes)  # finished: scored only, and the untrained base is remembered
    assert again.forgetting == record.forgetting
    anew = train(tmp_path, **changes, run__resume="weights")  # starts from trained weights, and asks the base first
    assert anew.forgetting.before == record.forgetting.before


def test_the_anchor_from_scratch_forgets_nothing(tmp_path):
    task = {"_target_": "tests.core.training.toy.SlowTask"}
    changes = {"choices__adapter": "scratch", "backbone__pretrained": False}
    assert train(tmp_path, task=task, **changes).forgetting is None


@pytest.mark.parametrize("method", ["none.Probe", "full.Full"])
def test_anchors(method, tmp_path, capsys):
    record = train(tmp_path, adapter={"_target_": f"core.adapters.methods.{method}"}, trainer__max_steps=4)
    said = capsys.readouterr().out
    if method == "none.Probe":
        assert record.trainable == 0 and record.certificate.base_bit_equal and "only the head trains" in said
    else:
        assert record.fraction == 1.0 and record.certificate.base_bit_equal is None and record.certificate.reload_equal
    assert "  test, 12 items" in said and "look   " in said and "next   " in said
    assert max(len(line) for line in said.splitlines() if "/" not in line) <= 100


def test_half_precision_keeps_the_adapter_in_fp32(tmp_path):
    record = train(tmp_path, trainer__precision="bf16-mixed", trainer__max_steps=3)
    assert record.status == "done" and record.precision == "bf16-mixed" and record.certificate.base_bit_equal
    tensors = load_file(tmp_path / "adapter" / "adapter.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_scoring_alone_uses_what_lies_there(undisturbed, tmp_path):
    """`run.fit=false`: with checkpoints the trained adapter is scored, in an empty folder a fresh head."""
    (tmp_path / "a/checkpoints").mkdir(parents=True)
    for name in ("last", "best"):
        path = f"checkpoints/{name}.safetensors"
        (tmp_path / "a" / path).write_bytes((undisturbed / path).read_bytes())
    trained = train(tmp_path / "a", run__fit=False)
    fresh = train(tmp_path / "b", run__fit=False)
    assert trained.primary.value == result.read(undisturbed).primary.value
    assert fresh.primary.value > trained.primary.value and fresh.steps is None and fresh.step_time_s is None


def test_weights_start_anew_from_the_saved_adapter(undisturbed, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for name in ("last", "best"):
        path = f"checkpoints/{name}.safetensors"
        (tmp_path / path).write_bytes((undisturbed / path).read_bytes())
    train(tmp_path, run__resume="weights", trainer__max_steps=2, optim__lr=1e-9)
    before = [float(r["value"]) for r in read_csv(undisturbed) if r["name"] == "error"]
    after = [float(r["value"]) for r in read_csv(tmp_path) if r["name"] == "error"]
    assert after[0] == pytest.approx(min(before), rel=1e-4) and len(after) == 2
    with pytest.raises(ConfigError, match="weights, but no checkpoint"):
        train(tmp_path / "empty", run__resume="weights")


def test_nan_stops_the_run_and_is_recorded(tmp_path):
    with pytest.raises(TrainingError, match="train7"):
        train(tmp_path, data__bad=True)
    record = result.read(tmp_path)
    assert record.status == "failed" and record.error.code == 5 and record.error.got.startswith("loss nan")


def test_an_unknown_metric_is_refused_before_training(tmp_path):
    with pytest.raises(ConfigError) as caught:
        train(tmp_path, metric={"name": "eror", "mode": "min"})
    (problem,) = caught.value.problems
    assert (problem.where, problem.got, problem.fix) == ("metric.name", "eror", "did you mean `error`?")
    assert "loss" in problem.allowed and not (tmp_path / "checkpoints").exists()


def test_audit_gate(tmp_path, monkeypatch):
    from core.contracts import Audit

    monkeypatch.setattr(toy.ToyData, "audit", lambda self: Audit(errors=["group 3 in two splits"]))
    with pytest.raises(DataError, match="group 3 in two splits"):
        train(tmp_path)
    assert not (tmp_path / "checkpoints").exists() and result.read(tmp_path).error.code == 3
    assert train(tmp_path / "b", run__audit="warn", trainer__max_steps=1).status == "done"


def test_signal_writes_a_checkpoint_and_the_run_goes_on(server, undisturbed, tmp_path):
    assert server.train(tmp_path, toy.config(tmp_path), signal_at=11) == 130
    record = result.read(tmp_path)
    assert record.status == "interrupted" and record.error.code == 130
    assert find(tmp_path / "checkpoints").path.name == "last.safetensors"
    assert server.train(tmp_path) == 0
    assert differing(tmp_path, undisturbed) == [] and result.read(tmp_path).started == record.started


def test_full_disk_leaves_the_last_good_checkpoint(server, undisturbed, tmp_path):
    assert server.train(tmp_path, toy.config(tmp_path), disk_full_at=13) == 5
    record = result.read(tmp_path)
    assert record.status == "failed" and record.error.class_ == "TrainingError"
    found = find(tmp_path / "checkpoints")
    assert found.path.name == "last.safetensors" and not found.refused
    assert not list((tmp_path / "checkpoints").glob("*.tmp"))
    assert server.train(tmp_path) == 0
    assert differing(tmp_path, undisturbed) == []


def test_two_processes_train_as_one(server, tmp_path):
    """Batches of 4 on two ranks against 8 on one: the same losses and scores (2e-7 apart)."""
    same = {
        "trainer__accumulate_grad_batches": 1,
        "task__noise": 0.0,
        "adapter__dropout": 0.0,
        "backbone__dropout": 0.0,
    }
    two = toy.config(tmp_path, **same, loader__batch_size=4, trainer__devices=2, trainer__strategy="ddp")
    assert server.train(tmp_path / "two", two) == 0, server.log.read_text()[-3000:]
    assert server.train(tmp_path / "one", toy.config(tmp_path, **same, loader__batch_size=8)) == 0
    pair = [[(r["step"], r["name"], float(r["value"])) for r in read_csv(tmp_path / n)] for n in ("one", "two")]
    assert [r[:2] for r in pair[0]] == [r[:2] for r in pair[1]]
    assert [r[2] for r in pair[0]] == pytest.approx([r[2] for r in pair[1]], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_resume_to_the_same_bits(server, tmp_path, ranks):
    cfg = toy.config(tmp_path, trainer__devices=ranks, trainer__strategy="ddp")
    assert server.train(tmp_path / "a", cfg) == 0
    assert server.train(tmp_path / "b", cfg, die_at=13) == -9
    assert server.train(tmp_path / "b") == 0
    assert differing(tmp_path / "a", tmp_path / "b") == []


def test_memory():
    with pytest.raises(TrainingError, match="out of memory: a batch"), out_of_memory("here", "a batch"):
        torch.empty(10**15)
    with pytest.raises(RuntimeError, match="something else"), out_of_memory("here", "a batch"):
        raise RuntimeError("something else")
    cpu = torch.device("cpu")
    reset_peak(cpu)
    low = peak(cpu)[0]
    block = torch.ones(30_000_000)
    assert peak(cpu)[0] >= low + 0.9 * block.nbytes
