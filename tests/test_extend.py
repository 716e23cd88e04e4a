"""A method and a backbone of somebody else, in a folder of their own: no file of the project is touched."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
METHOD = '''
"""Swell.  W' = W * exp(B A), elementwise         made up for this page: no sign of W ever changes
Parameters  r (in + out) per site.   Start  B = 0, so W' = W to the bit.   Differs  nothing.
Hosts       all.   Shapes  W (out, in)   A (r, in)   B (out, r)
"""
import torch
from torch import nn

from core.adapters.base import WeightMethod, kaiming


class Swell(WeightMethod):
    def __init__(self, W, *, rank: int = 32):
        super().__init__()
        self.A = nn.Parameter(kaiming(rank, W.shape[1]))
        self.B = nn.Parameter(torch.zeros(W.shape[0], rank))

    def weight(self, W):
        return W * torch.exp(self.B @ self.A)
'''
BACKBONE = '''
"""Two convolutions over residues.
Tokens  (batch, tokens) int64, pad 1.     Hidden  (batch, tokens, channels)
"""
import torch
from torch import nn

from core.contracts import Backbone, Output
from domains.protein.backbones.tokens import ESM_ORDER, ResidueTokenizer


class Network(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.embed = nn.Embedding(33, width)
        self.blocks = nn.ModuleList(nn.Conv1d(width, width, 5, padding="same") for _ in range(2))

    def forward(self, tokens):
        x = self.embed(tokens).transpose(1, 2)
        for block in self.blocks:
            x = x + torch.relu(block(x))
        return x.transpose(1, 2)


class Convolutions(Backbone):
    roles = {"embed": "embed", "conv": "blocks.*"}

    def __init__(self, width: int = 16, pretrained: bool = False, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.net, self.width = Network(width), width
        ids = {letter: number for number, letter in enumerate(ESM_ORDER, 4)}
        self.tokenizer = ResidueTokenizer(ids, (), (), pad=1, mask=None, unknown=3)

    def example(self):
        return (self.tokenizer(["MKTAYIAKQR"]),), {}

    def forward(self, batch):
        return Output(hidden=self.net(batch["tokens"]), mask=batch["residues"])
'''


@pytest.fixture
def mine(tmp_path):
    """The folder: two Python files and two presets."""
    (tmp_path / "swell.py").write_text(METHOD)
    (tmp_path / "convolutions.py").write_text(BACKBONE)
    for group, name, text in (
        ("adapter", "swell", "_target_: swell.Swell\ntargets: [conv]\nrank: 4\n"),
        ("backbone", "convolutions", "_target_: convolutions.Convolutions\nwidth: 16\nseed: ${seed}\n"),
    ):
        (tmp_path / "presets" / group).mkdir(parents=True)
        (tmp_path / "presets" / group / f"{name}.yaml").write_text(text)
    return tmp_path


def command(folder: Path, *words: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}", "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", *words], cwd=folder, env=env, capture_output=True, text=True)


def test_a_method_and_a_backbone_from_outside(mine):
    chosen = ["--config-dir", "presets", "adapter=swell", "backbone=convolutions"]
    small = ["data.train=6", "data.val=4", "data.test=5", "trainer.max_steps=2", "hydra.run.dir=run"]
    done = command(mine, "domains.protein.train", *chosen, *small)
    assert done.returncode == 0, done.stderr
    record = json.loads((mine / "run" / "result.json").read_text())
    assert (record["method"], record["backbone"], record["targets"]) == ("swell", "convolutions", ["conv"])
    assert record["trainable"] == 2 * 4 * (16 + 16 * 5)  # two convolutions, rank 4: A has the kernel
    assert record["certificate"]["reload_equal"] is True
    assert record["merge_error"] < 1e-5
    (mine / "new.fasta").write_text(">a\nMKTAYIAKQR\n")
    done = command(mine, "core.cli", "predict", "run", "--input", "new.fasta", "--out", "new.csv")
    assert done.returncode == 0, done.stderr
    assert len((mine / "new.csv").read_text().splitlines()) == 2


def test_its_options_are_checked_like_ours(mine):
    chosen = ["--config-dir", "presets", "adapter=swell", "backbone=convolutions"]
    done = command(
        mine, "domains.protein.train", *chosen, "adapter.rnak=2", "adapter.targets=[attn.q]", "backbone.wdth=3"
    )
    assert done.returncode == 2
    assert "did you mean `rank`?" in done.stderr and "did you mean `width`?" in done.stderr
    assert "allowed  conv, embed" in done.stderr
    done = command(mine, "domains.protein.train", "--config-dir", "presets", "adapter=swella")
    assert done.returncode == 2 and "did you mean `swell`?" in done.stderr


# By entry point: a package that is installed, found by its metadata and by nothing else -------------------------------

LIBRARY = """
import sys
import torch
from torch import nn
from core.adapters import attach, load_adapter, merge, save_adapter, summary, trainable, unmerge


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 8), nn.Conv1d(8, 4, 3)

    def forward(self, x):
        return self.second(self.first(x).transpose(1, 2))


where = dict(roles={"linear": "first", "conv": "second"}, example=((torch.ones(2, 5, 6),), {}))
x = torch.linspace(-1, 1, 60).view(2, 5, 6)
net = Net()
if sys.argv[1] == "train":
    from swelling.elementwise import Swell
    attach(net, Swell, targets=["linear", "conv"], rank=2, **where)  # known by the name of its entry point
    assert summary(net).rows[0].method == "swell" and summary(net).trained == 2 * (8 + 6) + 2 * (4 + 24)
    optimiser = torch.optim.Adam(trainable(net).values(), lr=0.05)
    losses = []
    for _ in range(20):
        optimiser.zero_grad()
        loss = (net(x) - 1).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(float(loss))
    assert losses[-1] < 0.9 * losses[0], losses
    save_adapter(net, "saved")
    torch.save(net(x), "expected.pt")
else:
    load_adapter(net, "saved", **where)
    y = net(x)
    assert torch.equal(y, torch.load("expected.pt"))
    assert merge(net).max_error <= 1e-5
    unmerge(net)
    assert torch.equal(net(x), y)
"""


@pytest.fixture
def installed(mine):
    """`mine`, its method moved into a package beside a dist-info folder, as an installer leaves it."""
    (mine / "swelling").mkdir()
    (mine / "swelling" / "__init__.py").touch()
    (mine / "swell.py").rename(mine / "swelling" / "elementwise.py")
    info = mine / "swelling-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: swelling\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[peft_atlas.methods]\nswell = swelling.elementwise:Swell\n")
    preset = "_target_: swelling.elementwise.Swell\ntargets: [conv]\nrank: 4\n"
    (mine / "presets" / "adapter" / "swell.yaml").write_text(preset)
    (mine / "library.py").write_text(LIBRARY)
    return mine


def test_a_method_by_entry_point_trains_reloads_and_merges(installed):
    for step in ("train", "reload"):  # two processes
        done = command(installed, "library", step)
        assert done.returncode == 0, done.stderr
    assert json.loads((installed / "saved" / "adapter.json").read_text())["method"] == "swell"
    done = command(installed, "core.cli", "methods", "swell")
    assert done.returncode == 0 and "W' = W * exp(B A)" in done.stdout and "works on linear" in done.stdout, done.stderr
    (installed / "swelling-1.0.dist-info" / "entry_points.txt").unlink()
    done = command(installed, "library", "reload")
    assert done.returncode != 0 and "swell" in done.stderr and "ConfigError" in done.stderr


def test_a_run_of_a_method_by_entry_point_is_merged(installed):
    chosen = ["--config-dir", "presets", "adapter=swell", "backbone=convolutions"]
    small = ["data.train=6", "data.val=4", "data.test=5", "trainer.max_steps=2", "hydra.run.dir=run"]
    done = command(installed, "domains.protein.train", *chosen, *small)
    assert done.returncode == 0, done.stderr
    assert json.loads((installed / "run" / "result.json").read_text())["method"] == "swell"
    done = command(installed, "core.cli", "merge", "run", "--out", "merged")
    assert done.returncode == 0, done.stderr
    assert any((installed / "merged").iterdir())
