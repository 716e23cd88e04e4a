"""Several methods as one adapter: each part keeps its sites and options; the adapter lives as one."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from core.adapters import (
    adapters,
    attach,
    detach,
    export_peft,
    load_adapter,
    merge,
    mix,
    save_adapter,
    set_active,
    summary,
    trainable,
    unmerge,
    use,
)
from core.compose import compose
from core.config import check, plain
from core.errors import ConfigError, MergeError, PeftError, UnsupportedError
from core.parts import expand
from core.ship import open_run
from core.training.run import run
from tests.core.adapters import tokens_zoo

ROLES = {"attn.q": "qkv[0/3]", "attn.k": "qkv[1/3]", "attn.v": "qkv[2/3]", "mlp.in": "up", "mlp.out": "down"}
ROLES |= {"mlp": "down", "norm": "norm"}
PARTS = {
    "lora": {"rank": 2, "targets": ["attn.q", "mlp.in"]},
    "parallel": {"size": 3, "targets": ["mlp"]},
    "bitfit": {},
    "norm": {},
}


class Net(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.norm, self.qkv = nn.LayerNorm(8), nn.Linear(8, 24)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)
        self.double().eval()

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        x = x + torch.softmax(q @ k.mT, -1) @ v
        return self.down(torch.relu(self.up(x)))


X = torch.randn(4, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
WHERE = {"roles": ROLES, "example": ((X[:2],), {}), "seed": 0}


def shake(net, name="default", by=0.2, seed=1):
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in trainable(net, name).values():
            p.add_(torch.randn(p.shape, generator=g) * by)
    return net


def put(method, net=None, name="default", **more):
    """Attached and moved, every tensor in double precision: sums are then equal to 1e-12."""
    return shake(attach(net or Net(), method, name=name, **WHERE, **more).double(), name)


def out(net, x=X):
    with torch.no_grad():
        return net(x)


def close(a, b, to=1e-12):
    assert float((a - b).abs().max() / b.abs().max()) <= to


def test_the_parts_are_what_they_are_alone():
    """Tensors, counts and the function: the parts, attached one by one with the same numbers and all active."""
    net, apart = put(PARTS), Net()
    for name, options in PARTS.items():
        attach(apart, name, name=name, **WHERE, **options).double()
        ours = {k.replace(f"|{name}|", "|"): p for k, p in trainable(net).items() if f"|{name}|" in k}
        theirs = trainable(apart, name)
        assert ours.keys() == theirs.keys() and ours
        for key, p in theirs.items():
            p.data.copy_(ours[key])
    set_active(apart, list(PARTS))
    close(out(net), out(apart))
    assert adapters(net)["default"].parameters == sum(info.parameters for info in adapters(apart).values())
    assert adapters(net)["default"].options["lora.rank"] == 2 and adapters(net)["default"].method == "+".join(PARTS)
    assert "attn.q (lora)" in str(summary(net)) and "mlp (parallel)" in str(summary(net))


def test_one_life(tmp_path):
    net = Net()
    base, state = out(net), {k: v.clone() for k, v in net.state_dict().items()}
    attach(net, PARTS, **WHERE).double()
    close(out(net), base)  # every part starts as the identity
    shake(net)
    changed = out(net)
    with use(net, None):
        close(out(net), base)
    with pytest.raises(MergeError, match="acts on an output"):
        merge(net)
    with pytest.raises(UnsupportedError, match="a combination"):
        export_peft(net, tmp_path)
    detach(net)
    assert torch.equal(out(net), base)
    assert (
        all(torch.equal(t, state[k]) for k, t in net.state_dict().items()) and net.state_dict().keys() == state.keys()
    )
    assert not torch.allclose(changed, base)


def test_a_combination_of_weights_is_merged():
    net = put({"lora": {"rank": 2, "targets": ["attn.q", "attn.v"]}, "norm": {}, "ia3": {"targets": ["attn.v"]}})
    before = {k: v.clone() for k, v in net.state_dict().items()}
    adapted = out(net)
    assert merge(net).max_error <= 1e-12
    unmerge(net)
    assert all(torch.equal(t, before[k]) for k, t in net.state_dict().items())
    close(out(net), adapted)


def test_stacked_parts_add_up():
    """Two methods on one matrix, a method twice: W + sum_i (f_i(W) - W)."""
    parts = {"a": {"method": "lora", "rank": 1}, "b": {"method": "dora", "rank": 2}, "c": {"method": "lora", "rank": 3}}
    net = put({k: {**v, "targets": ["mlp.in"]} for k, v in parts.items()})
    keys = {key.split("|")[2]: key.rsplit("|", 1)[0] for key in trainable(net)}
    assert keys == {k: f"up:weight|mlp.in|{k}" for k in parts}
    slot = next(iter(net._peft.slots.values()))
    W = net.up._parameters["weight"]
    with torch.no_grad():
        total = W + sum(m.weight(W) - W for m in slot.methods.values())
        expected = Net()
        expected.up.weight.data.copy_(total)
    close(out(net), out(expected))


def test_files(tmp_path):
    net = shake(attach(Net(), PARTS, head=nn.Linear(8, 2), **WHERE))
    save_adapter(net, tmp_path)
    content = json.loads((tmp_path / "adapter.json").read_text())
    assert [p["part"] for p in content["parts"]] == list(PARTS) and content["parts"][0]["options"]["rank"] == 2
    fresh = load_adapter(Net(), tmp_path, example=WHERE["example"], name="again")
    assert torch.equal(out(fresh), out(net))
    assert adapters(fresh)["again"].options == adapters(net)["default"].options
    detach(fresh)
    assert torch.equal(out(fresh), out(Net()))


def test_rows_of_a_batch():
    net = put({k: PARTS[k] for k in ("lora", "parallel")}, name="both")
    put({"lora": {"targets": ["mlp.in"], "rank": 2}, "ia3": {"targets": ["mlp.in"]}}, net, "stacked")
    rows = ["both", None, "stacked", "both"]
    with mix(net, rows):
        mixed = out(net)
    for i, row in enumerate(rows):
        with use(net, row):
            close(mixed[i : i + 1], out(net, X[i : i + 1]))


def test_a_list_takes_defaults_and_a_budget_is_a_parts_own():
    net = attach(Net(), ["lora", "norm"], **WHERE)
    assert adapters(net)["default"].options["lora.rank"] == 8
    net = attach(Net(), {"lora": {"budget": 60, "targets": ["mlp.in"]}, "norm": {}}, **WHERE)
    assert adapters(net)["default"].options["lora.rank"] == 3 and "lora budget  60: rank 3 has 60" in str(summary(net))


@pytest.mark.parametrize(
    ("method", "more", "where", "got"),
    [
        (["lora"], {}, "adapter.parts", "lora"),
        ([], {}, "adapter.parts", "none"),
        (["lora", "norm"], {"rank": 3}, "adapter.rank", "3"),
        (["lora", "norm"], {"targets": ["mlp"]}, "adapter.targets", "['mlp']"),
        (["lora", "norm"], {"budget": 100}, "adapter.budget", "100"),
        ({"lora": {"rnak": 3}, "norm": {}}, {}, "adapter.parts.lora.rnak", "3"),
        ({"lora": {"path": "cal"}, "norm": {}}, {}, "adapter.parts.lora.path", "cal"),
        (["lora", "full"], {}, "adapter.parts.full", "full"),
        (["lora", "nrom"], {}, "adapter", "nrom"),
        (["prompt", "prefix"], {}, "adapter.parts", "prompt, prefix"),
        ({"a b": {"method": "lora"}, "norm": {}}, {}, "adapter.parts", "'a b'"),
    ],
)
def test_what_is_no_combination(method, more, where, got):
    net = Net()
    keys = list(net.state_dict())
    with pytest.raises(ConfigError) as caught:
        attach(net, method, **WHERE, **more)
    assert [(p.where, p.got) for p in caught.value.problems][:1] == [(where, got)]
    assert list(net.state_dict()) == keys and adapters(net) == {}


def test_a_refusal_names_the_part_and_leaves_nothing():
    net = Net()
    base = out(net)
    with pytest.raises(UnsupportedError, match="part prompt: ") as caught:
        attach(net, ["lora", "prompt"], **WHERE)
    assert "no token port" in caught.value.problems[0].got
    with pytest.raises(PeftError, match="part b: "):
        attach(net, {"a": {"method": "lora"}, "b": {"method": "lora", "rank": 99}}, **WHERE)
    assert adapters(net) == {} and torch.equal(out(net), base)


# ---------------------------------------------------------------------- presets and command line


def from_config(*overrides: str) -> dict:
    """part -> options, as a run attaches them."""
    node = plain(compose("text", list(overrides)))["adapter"]
    assert all(own["_target_"].startswith("core.adapters.methods.") for own in node["parts"].values())
    return {
        part: {"method": own["_target_"].split(".")[-2]} | {k: v for k, v in own.items() if k != "_target_"}
        for part, own in node["parts"].items()
    }


D, F, L, HEADS = 32, 48, 2, (4, 2)  # the tiny Llama: width, feed-forward, layers, heads and key/value heads
KV = 2 * D * HEADS[1] // HEADS[0]  # numbers of one virtual token in one layer


@pytest.mark.parametrize(
    ("preset", "small", "count"),
    [
        ("mam", "adapter.parts.parallel.size=16", L * (30 * KV + 2 * D * 16 + D + 16)),
        (
            "unipelt",
            "adapter.parts.gated_adapter.size=4",
            L * (8 * (D + D) + D + 1 + 8 * (D + KV // 2) + D + 1)  # LoRA on q and v, and its gates
            + L * (10 * KV + HEADS[1])  # the prefix and its gates
            + L * (2 * D * 4 + D + 4 + D + 1),  # the adapter and its gate
        ),
    ],
)
def test_presets_on_a_network_with_a_port(preset, small, count, tmp_path):
    subject = tokens_zoo.build("llama", tokens_zoo.KV)
    net, call = subject.net, subject.call
    a = "model.layers.*"
    roles = {"attn.q": f"{a}.self_attn.q_proj", "attn.v": f"{a}.self_attn.v_proj", "mlp": f"{a}.mlp"}
    roles["mlp.out"] = f"{a}.mlp.down_proj"
    x, where = tokens_zoo.ids(), {"roles": roles, "example": ((), {"input_ids": tokens_zoo.ids(2)})}
    parts = from_config(f"adapter={preset}", small)
    with torch.no_grad():
        base = call(x)
        attach(net, parts, **where, seed=0)
        assert adapters(net)["default"].parameters == count
        assert torch.allclose(call(x), base, atol=1e-6) == (preset == "unipelt"), "a plain prefix is no identity"
        shake(net)
        changed = call(x)
        assert (changed - base).abs().max() > 1e-3
        save_adapter(net, tmp_path)
        with use(net, None):
            assert torch.equal(call(x), base)
        detach(net)
        assert torch.equal(call(x), base)
        assert torch.equal(load_and_call(net, tmp_path, where, call, x), changed)


def load_and_call(net, directory, where, call, x):
    load_adapter(net, directory, **where)
    return call(x)


def test_a_network_without_a_port_is_refused_by_name():
    with pytest.raises(UnsupportedError, match="part prefix: "):
        attach(Net(), from_config("adapter=mam"), **WHERE)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["adapter.parts=[lora,bitfit]"], {"lora": {"rank": 8}, "bitfit": {}}),
        (
            ["adapter.parts={lora:{rank:4,targets:[attn.q]},houlsby:{size:16}}"],
            {"lora": {"rank": 4}, "houlsby": {"size": 16}},
        ),
        (["adapter.parts={a:{preset:lora,rank:2},b:{preset:rslora}}"], {"a": {"rank": 2}, "b": {"rank": 32}}),
    ],
)  # fmt: skip
def test_parts_from_the_command_line(words, parts):
    config = compose("protein", ["adapter=combine", *words])
    check(config)
    found = plain(config)["adapter"]["parts"]
    assert found.keys() == parts.keys()
    assert all(found[part][key] == value for part, own in parts.items() for key, value in own.items())
    assert expand({"parts": found}) == ({"parts": found}, [])


@pytest.mark.parametrize(
    ("parts", "where", "fix"),
    [
        ("[lora,bitift]", "adapter.parts.bitift", "did you mean `bitfit`?"),
        ("[lora,loraplus]", "adapter.parts.loraplus", "adapter.parts.loraplus._target_=..."),
        ("[lora,mam]", "adapter.parts.mam", "name its parts here"),
        ("[lora,lora]", "adapter.parts", "a mapping: {a: {preset: lora}, b: ...}"),
        ("{lora:{rnak:2},norm:{}}", "adapter.parts.lora.rnak", "did you mean `rank`?"),
        ("{lora:{targets:[attn.qq]},norm:{}}", "adapter.parts.lora.targets[0]", "did you mean `attn.q`?"),
        ("{lora:{},ia3:{budget:100}}", "adapter.parts.ia3.budget", "leave the budget out, or this method"),
    ],
)
def test_wrong_parts(parts, where, fix):
    with pytest.raises(ConfigError) as caught:
        check(compose("protein", ["backbone=esm2_tiny", "adapter=combine", f"adapter.parts={parts}"]))
    assert (where, fix) in [(p.where, p.fix) for p in caught.value.problems]


def test_a_run_of_a_combination(tmp_path):
    """Trained, saved, loaded into a fresh base, predicted with: as any adapter."""
    tiny = ["backbone=esm2_tiny", "data.train=6", "data.val=4", "data.test=5", "trainer.max_steps=2"]
    run(compose("protein", [*tiny, "adapter=combine", "adapter.parts=[lora,norm]"]), tmp_path)
    record = json.loads((tmp_path / "result.json").read_text())
    assert record["options"]["lora.rank"] == 8 and record["method"] == "combine"
    assert record["certificate"]["reload_equal"] and record["certificate"]["base_bit_equal"]
    assert "lora" in (tmp_path / "config.yaml").read_text()
    assert open_run(tmp_path).name == "default"
