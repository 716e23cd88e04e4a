"""Adapter files: equal in a new process, never half-written, never on another base."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from core.adapters import attach, detach, files, head, merge, projection, set_active, trainable, unmerge
from core.adapters.io import fingerprint, load_adapter, save_adapter
from core.adapters.methods import vera
from core.errors import AdapterError, ConfigError, FingerprintError, TrainingError

ROLES = {"attn.q": "layers.*.self_attn:in_proj_weight[0/3]", "mlp.in": "layers.*.linear1", "mlp": "layers.*.linear2"}


class Net(nn.Module):
    """Two encoder layers and a batch norm: a buffer with statistics, a parameter that is read outside its host."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 2, 24, dropout=0.0, batch_first=True) for _ in range(2)
        )
        self.norm = nn.BatchNorm1d(16)
        self.norm.running_mean.normal_()
        self.eval()

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.norm(x.mean(1))


def example():
    return (torch.linspace(-1, 1, 2 * 5 * 16).view(2, 5, 16),), {}


def adapted(method="lora", targets=("attn.q", "mlp.in"), by=0.1, net=None, **options):
    net = attach(net or Net(), method, targets=targets, roles=ROLES, example=example(), seed=0, **options)
    torch.manual_seed(1)
    for p in trainable(net, options.get("name", "default")).values():
        p.data.add_(torch.randn_like(p) * by)
    return net


def outputs(net):
    with torch.no_grad():
        return net(*example()[0])


def test_a_new_process_gives_the_same_bits(tmp_path):
    net = adapted(head=nn.Linear(16, 3))
    save_adapter(net, tmp_path)
    torch.save([outputs(net), head(net)(outputs(net))], tmp_path / "expected.pt")
    code = f"""
import torch
from torch import nn
from tests.core.adapters.test_io import Net, example, outputs
from core.adapters import head, load_adapter
net = load_adapter(Net(), {str(tmp_path)!r}, example=example(), head=nn.Linear(16, 3))
y, z = torch.load({str(tmp_path / "expected.pt")!r}, weights_only=True)
assert torch.equal(outputs(net), y) and torch.equal(head(net)(outputs(net)), z)
"""
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "houlsby", "bitfit", "norm", "full", "none"])
def test_every_face_comes_back(method, tmp_path):
    targets = {"houlsby": ["mlp"], "bitfit": None, "norm": None, "full": None, "none": None}.get(method, ["mlp.in"])
    net = adapted(method, targets=targets, head=nn.Linear(16, 3))
    save_adapter(net, tmp_path)
    other = Net(seed=0 if method != "full" else 5)  # full replaces every value, statistics included
    load_adapter(other, tmp_path, example=example(), head=nn.Linear(16, 3), roles=ROLES)
    assert torch.equal(outputs(other), outputs(net))
    assert torch.equal(head(other).weight, head(net).weight)
    assert set(trainable(other)) == set(trainable(net))


def test_a_call_path_file_loads_on_the_weight_path(tmp_path):
    net = adapted(targets=["mlp.in"])
    save_adapter(net, tmp_path)
    other = load_adapter(Net(), tmp_path, example=example(), path="weight", name="other")
    assert {b.path for b in other._peft.adapters["other"].bound} == {"weight"}
    torch.testing.assert_close(outputs(other), outputs(net), rtol=1e-5, atol=1e-6)


def test_a_head_without_its_module_waits_and_is_saved_again(tmp_path):
    save_adapter(adapted(head=nn.Sequential(nn.Linear(16, 3), nn.BatchNorm1d(3))), tmp_path / "a")
    net = load_adapter(Net(), tmp_path / "a", example=example())
    with pytest.raises(ConfigError, match="head=module"):
        head(net)(outputs(net))
    save_adapter(net, tmp_path / "b")
    a, b = (files.read(tmp_path / name)[1] for name in "ab")
    assert set(a) == set(b) and all(torch.equal(a[key], b[key]) for key in a)
    assert {"head|0.weight", "head|1.num_batches_tracked"} <= set(a)


# The base ------------------------------------------------------------------------------------------------------------


def test_fingerprint_knows_values_statistics_and_dtypes_and_not_the_adapters():
    net = Net()
    before = fingerprint(net)
    assert before.startswith("sha256:") and len(before) == 7 + 16
    assert fingerprint(Net()) == before != fingerprint(Net(seed=1))
    adapted(net=net)
    adapted("houlsby", targets=["mlp"], net=net, name="second")
    assert fingerprint(net) == before
    set_active(net, "default")
    merge(net)
    assert fingerprint(net) != before
    unmerge(net)
    detach(net)
    assert fingerprint(net) == before
    net.norm.running_mean[3] += 1
    assert fingerprint(net) != before
    assert fingerprint(Net().bfloat16()) != before


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda net: net.layers[0].linear1.weight.data.add_(1e-3), "other values"),
        (lambda net: net.bfloat16(), "the same names and shapes in torch.bfloat16"),
        (lambda net: setattr(net, "more", nn.Linear(2, 2)), "other names or shapes"),
    ],
)
def test_another_base_is_refused_and_left_alone(change, text, tmp_path):
    save_adapter(adapted(), tmp_path)
    other = Net()
    change(other)
    with pytest.raises(FingerprintError, match=text) as caught:
        load_adapter(other, tmp_path, example=example())
    assert caught.value.code == 4 and "_peft" not in other._modules
    if "values" in text:
        load_adapter(other, tmp_path, example=example(), strict=False)


def test_a_merged_base_is_not_saved(tmp_path):
    net = adapted()
    merge(net)
    with pytest.raises(AdapterError, match="unmerge"):
        save_adapter(net, tmp_path / "a")
    assert not (tmp_path / "a").exists()


# Damage --------------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", range(5))
def test_a_kill_leaves_the_old_adapter_or_the_new_one(moment, tmp_path, monkeypatch):
    """The process stops before the first, second, ... step of writing: both files are made, then both are replaced."""
    old, new = adapted(by=0.1), adapted(by=0.3)
    save_adapter(old, tmp_path)
    steps = iter(range(100))

    def kill_in(function):
        def run(*args, **kwargs):
            if next(steps) == moment:
                raise Killed
            return function(*args, **kwargs)

        return run

    monkeypatch.setattr(files, "save_file", kill_in(files.save_file))
    monkeypatch.setattr(files, "_sync", kill_in(files._sync))
    monkeypatch.setattr(files.os, "replace", kill_in(os.replace))
    with pytest.raises(Killed):
        save_adapter(new, tmp_path)
    monkeypatch.undo()
    found = outputs(load_adapter(Net(), tmp_path, example=example()))
    assert torch.equal(found, outputs(new if moment == 4 else old))
    save_adapter(new, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter.json", "adapter.safetensors"]
    assert torch.equal(outputs(load_adapter(Net(), tmp_path, example=example())), outputs(new))


def test_every_bad_tensor_is_listed(tmp_path):
    save_adapter(adapted(targets=["mlp.in"]), tmp_path)
    record, tensors = files.read(tmp_path)
    keys = sorted(tensors)
    tensors["nobody:weight|attn.q|A"] = tensors.pop(keys[0])
    tensors[keys[1]] = torch.zeros(1, 2)
    del record["digest"]
    files.write(tmp_path, record, tensors)
    other = Net()
    with pytest.raises(AdapterError) as caught:
        load_adapter(other, tmp_path, example=example())
    text = str(caught.value)
    assert caught.value.code == 4 and len(caught.value.problems) == 3
    assert "missing in the file" in text and "extra in the file" in text and "(1, 2)" in text and keys[1] in text
    assert "_peft" not in other._modules and type(other.layers[0].linear1) is nn.Linear


def bad_files(folder: Path):
    """(name, how to spoil a saved adapter, what the message says)"""
    tensors, record = folder / files.TENSORS, folder / files.RECORD

    def edit(key, value):
        record.write_text(json.dumps({**json.loads(record.read_text()), key: value}))

    def flip():
        raw = bytearray(tensors.read_bytes())
        raw[-1] ^= 1
        tensors.write_bytes(raw)

    def foreign():
        from safetensors.torch import save_file

        save_file({"x": torch.zeros(2)}, tensors)

    yield "truncated", lambda: tensors.write_bytes(tensors.read_bytes()[:-9]), "unreadable"
    yield "one bit", flip, "digest"
    yield "pickle", lambda: tensors.write_bytes(pickle.dumps({"x": 1})), "never read"
    yield "torch.save", lambda: torch.save({"x": 1}, tensors), "never read"
    yield "foreign", foreign, "another program"
    yield "version", lambda: edit("format", 99), "99"
    yield "json", lambda: record.write_text("{"), "not JSON"
    yield "empty", lambda: (tensors.unlink(), record.unlink()), "empty folder"
    yield "method", lambda: edit("method", "lorra"), "did you mean `lora`"


@pytest.mark.parametrize("number", range(9))
def test_bad_files_are_refused_by_what_they_are(number, tmp_path):
    save_adapter(adapted(targets=["mlp.in"]), tmp_path)
    _, spoil, text = list(bad_files(tmp_path))[number]
    spoil()
    other = Net()
    with pytest.raises((AdapterError, ConfigError), match=text):
        load_adapter(other, tmp_path, example=example())
    assert "_peft" not in other._modules


def test_a_lone_safetensors_file_carries_its_record(tmp_path):
    net = adapted(targets=["mlp.in"])
    save_adapter(net, tmp_path)
    (tmp_path / files.RECORD).unlink()
    assert torch.equal(outputs(load_adapter(Net(), tmp_path, example=example())), outputs(net))


def test_unwritable_folders_and_full_disks_say_so(tmp_path, monkeypatch):
    net = adapted(targets=["mlp.in"])
    (tmp_path / "file").write_text("")
    with pytest.raises(AdapterError, match="a folder that can be written"):
        save_adapter(net, tmp_path / "file" / "adapter")
    with pytest.raises(ConfigError, match="default"):
        save_adapter(net, tmp_path / "x", name="defalt")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    save_adapter(net, tmp_path / "a")
    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(TrainingError, match="disk full"):
        save_adapter(net, tmp_path / "a")
    monkeypatch.undo()
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["adapter.json", "adapter.safetensors"]
    load_adapter(Net(), tmp_path / "a", example=example())


def test_prompts_come_back(tmp_path):
    from tests.core.adapters.tokens_zoo import build, ids

    net, tokens = build("bert").net, ids()
    attach(net, "prompt", tokens=3, roles={}, example=((), {"input_ids": tokens}), seed=3)
    save_adapter(net, tmp_path)
    other = load_adapter(build("bert").net, tmp_path, example=((), {"input_ids": tokens}), roles={})
    with torch.no_grad():
        assert torch.equal(other(tokens).logits, net(tokens).logits)


def test_what_a_seed_made_again_must_be_what_was_trained(tmp_path, monkeypatch):
    """VeRA's random pair is in no file; another generator must not pass for it."""
    net = adapted("vera", rank=4)
    save_adapter(net, tmp_path)
    seeded = json.loads((tmp_path / "adapter.json").read_text())["seeded"]
    assert set(seeded) == {"A", "B"} and not any(key.endswith(("|A", "|B")) for key in files.read(tmp_path)[1])
    load_adapter(Net(), tmp_path, roles=ROLES, example=example())
    monkeypatch.setattr(vera, "generator", lambda seed: projection.generator(seed + 1))
    projection._held.clear()  # `net` holds its own
    bare = Net()
    with pytest.raises(AdapterError, match="buffer A") as error:
        load_adapter(bare, tmp_path, roles=ROLES, example=example())
    assert len(error.value.problems) == 2 and "its seed gives other values" in str(error.value)
    assert not hasattr(bare, "_peft"), "a failed load leaves nothing behind"
    load_adapter(bare, tmp_path, roles=ROLES, example=example(), strict=False)
