"""`atlas`, on what exists and on one real run: trained in a process of its own, then used through its directory."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from core import catalog, cli

ROOT = Path(__file__).resolve().parents[2]
TINY = ["backbone=esm2_tiny", "data.train=6", "data.val=4", "data.test=5", "trainer.max_steps=2"]


def atlas(capsys, *words) -> tuple[int, str, str]:
    code = cli.main(list(map(str, words)))
    return code, *capsys.readouterr()


def test_methods_lists_every_method(capsys):
    code, out, _ = atlas(capsys, "methods")
    assert code == 0
    listed, *matrices = out.split("\n\n")
    assert [line.split()[0] for line in listed.splitlines()[1:] if line[:1].strip()] == catalog.methods()
    (head, *rows), *_ = [block.splitlines() for block in matrices if block.startswith("weight ")]
    cells = {name: dict(zip(head.split()[1:], works, strict=True)) for name, *works in map(str.split, rows)}
    assert list(cells) == catalog.methods("weight")
    assert set(cells["lora"].values()) == {"yes"}, "LoRA works on every layer"
    assert cells["hira"]["embedding"] == cells["dora"]["standardised"] == "no"


def test_a_method_says_what_it_is(capsys):
    code, out, _ = atlas(capsys, "methods", "rslora")
    assert code == 0
    assert "preset rslora" in out and "W' = W + s B A" in out and "arXiv 2106.09685" in out
    row = next(line.split() for line in out.splitlines() if line.startswith("rank "))
    assert row == ["rank", "32", "8", "int"]
    _, out, _ = atlas(capsys, "methods", "hira")
    assert (
        "works on linear, rows, 4-bit, conv," in out and "not on embedding: B A would be as large as the table" in out
    )


def test_a_preset_of_every_kind_is_described(capsys):
    for name in [*catalog.methods(), *catalog.groups("protein")["adapter"]]:
        assert atlas(capsys, "methods", name)[0] == 0, name


@pytest.mark.parametrize(
    ("words", "near"),
    [(("methods", "lroa"), "lora"), (("backbones", "protien"), "protein"), (("plan", "protien"), "protein"),
     (("plan", "protein", "adapter=dorra"), "dora"), (("plan", "protein", "optim.ler=1"), "lr")],
)  # fmt: skip
def test_near_misses(capsys, words, near):
    code, out, err = atlas(capsys, *words)
    assert (code, out) == (2, "")
    assert f"did you mean `{near}`?" in err


def test_backbones_and_their_roles(capsys):
    code, out, _ = atlas(capsys, "backbones", "protein")
    assert code == 0
    assert {line.split()[0] for line in out.split("\n\n")[0].splitlines()[1:] if line[:1].strip()} == set(
        catalog.groups("protein")["backbone"]
    )
    assert "attn.q" in out


def test_doctor_names_the_preset_that_is_not_sound(capsys, monkeypatch):
    """That every preset is sound is test_config's question."""
    monkeypatch.setattr("core.doctor.extras", dict)  # their imports take half a minute
    sound = [("protein", []), ("protein", ["adapter=dora"]), ("protein", ["data=csv"])]
    monkeypatch.setattr("core.doctor.combinations", lambda: sound)
    code, out, err = atlas(capsys, "doctor")
    assert (code, err) == (0, "")
    assert "presets    3 composed and checked in" in out and ": sound" in out and "devices    cpu" in out
    monkeypatch.setattr("core.doctor.combinations", lambda: [*sound, ("protein", ["optim.ler=1"])])
    code, out, err = atlas(capsys, "doctor")
    assert code == 2
    assert "train optim.ler=1\n" in err and "did you mean `lr`?" in err


def test_doctor_names_a_missing_package(capsys, monkeypatch):
    monkeypatch.setattr("core.doctor.NEEDED", ("torch", "no-such-package"))
    code, _, err = atlas(capsys, "doctor")
    assert code == 6
    assert "where    no-such-package" in err


def test_plan_counts_before_training(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = atlas(
        capsys, "plan", "protein", "adapter.targets=[attn.q,attn.v]", "adapter.rank=3", "--sites", *TINY
    )
    assert code == 0, err
    sites = [line.split() for line in out.splitlines() if ":weight|attn." in line]
    assert len(sites) == 4  # 2 layers, q and v
    total = next(line for line in out.splitlines() if line.strip().startswith("total"))
    assert f"{4 * 3 * (32 + 32):,}" in total
    assert "for the backward pass of the first batch, 6 items" in out
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------- one run


def train(work: Path, *words: str) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "domains.protein.train", *words]
    done = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    work = tmp_path_factory.mktemp("atlas")
    train(work, *TINY, "hydra.run.dir=run")
    (work / "new.fasta").write_text(">second\nMKTAYIAKQRQ\n>first\nMKV\n>third\nACDEFGHIKLMNPQRSTVWY\n")
    return work / "run"


def test_predict_keeps_the_order_and_the_lengths(capsys, finished):
    work = finished.parent
    for name in ("new.csv", "new.jsonl"):
        code, out, err = atlas(capsys, "predict", finished, "--input", work / "new.fasta", "--out", work / name)
        assert code == 0, err
        assert "3 predictions" in out
    rows = list(csv.DictReader((work / "new.csv").open()))
    assert [(r["id"], len(r["prediction"])) for r in rows] == [("second", 11), ("first", 3), ("third", 20)]
    assert [json.loads(line) for line in (work / "new.jsonl").read_text().splitlines()] == rows


def test_predict_is_what_the_run_predicted(capsys, finished):
    from core.compose import compose
    from core.training.assemble import make

    data = make(compose("protein", TINY), "data", 0)
    data.setup()
    source = finished.parent / "test.fasta"
    source.write_text("".join(f">{i['id']}\n{i['sequence']}\n" for i in data.items("test")))
    out = finished.parent / "test.jsonl"
    assert atlas(capsys, "predict", finished, "--input", source, "--out", out, "--batch-size", 2)[0] == 0
    ours = {r["id"]: r["prediction"] for r in map(json.loads, out.read_text().splitlines())}
    theirs = map(json.loads, (finished / "predictions.jsonl").read_text().splitlines())
    assert ours == {r["id"]: r["prediction"] for r in theirs}


def test_merge_writes_the_network_that_the_adapter_makes(capsys, finished):
    import torch
    from safetensors.torch import load_file

    from core.adapters import network, use
    from core.ship import open_run

    out = finished.parent / "merged"
    code, _, err = atlas(capsys, "merge", finished, "--out", out)
    assert code == 0, err
    assert json.loads((out / "merge.json").read_text())["max_error"] < 1e-5
    run = open_run(finished)
    args, kwargs = run.model.example()
    with torch.no_grad():
        expected = run.model(*args, **kwargs).hidden
        with use(run.model, None):
            base = run.model(*args, **kwargs).hidden
            _, unexpected = network(run.model).load_state_dict(load_file(out / "model.safetensors"), strict=False)
            merged = run.model(*args, **kwargs).hidden
    assert unexpected == []
    scale = expected.abs().max()
    assert (merged - expected).abs().max() / scale < 1e-5
    assert (merged - base).abs().max() / scale > 1e-4  # the adapter did something
    code, _, err = atlas(capsys, "merge", finished, "--out", out)
    assert code == 2 and "exists and is not empty" in err


def test_export_writes_the_layout_of_peft(capsys, finished):
    out = finished.parent / "exported"
    code, _, err = atlas(capsys, "export", finished, "--out", out)
    assert code == 0, err
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"]) == ("LORA", 8)


def test_report_of_a_folder(capsys, finished):
    code, out, err = atlas(capsys, "report", finished.parent)
    assert code == 0, err
    assert Path(out.splitlines()[-1].split()[-1]).exists()


def test_a_repeat_from_config_yaml_gives_the_same_predictions(finished):
    train(finished.parent, "--config-dir", "run", "--config-name", "config", "hydra.run.dir=again")
    again = finished.parent / "again"
    assert (again / "predictions.jsonl").read_bytes() == (finished / "predictions.jsonl").read_bytes()
    records = [json.loads((folder / "result.json").read_text()) for folder in (finished, again)]
    assert records[0]["config_hash"] == records[1]["config_hash"]


def test_a_run_predicts_without_its_training_data(capsys, finished, tmp_path):
    """Names of classes come from the labels: they travel with the run."""
    from core.compose import compose
    from core.training.run import run

    words = [*TINY, "data=twin_signal", "task=protein_classification"]
    run(compose("protein", words), tmp_path / "signal")
    config = tmp_path / "signal" / "config.yaml"
    config.write_text(config.read_text().replace("world: 0", "world: 99"))  # another world: its labels are not read
    source, out = finished.parent / "new.fasta", tmp_path / "out.jsonl"
    code, _, err = atlas(capsys, "predict", tmp_path / "signal", "--input", source, "--out", out)
    assert code == 0, err
    assert len(json.loads(out.read_text().splitlines()[0])["probabilities"]) >= 2


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("predict", "nowhere", "--input", "new.fasta", "--out", "x.csv"), 3, "the config.yaml of a run"),
        (("predict", "run", "--input", "new.fasta", "--out", "x.txt"), 2, "ends in .csv or .jsonl"),
        (("predict", "run", "--input", "none.fasta", "--out", "x.csv"), 3, "none.fasta"),
        (("predict", "run", "--input", "new.fasta", "--out", "x.csv", "--batch-size", "0"), 2, "1 or more"),
        (("report", "nowhere"), 2, "a folder with runs"),
    ],
)
def test_bad_input(capsys, finished, monkeypatch, words, code, text):
    monkeypatch.chdir(finished.parent)
    before = sorted(finished.parent.rglob("*"))
    got, out, err = atlas(capsys, *words)
    assert (got, out) == (code, "")
    assert text in err
    assert sorted(finished.parent.rglob("*")) == before
