"""A budget of parameters: the nearest size, counted at the network's own sites."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from core.adapters import adapters, attach, detach, load_adapter, methods, save_adapter, summary, trainable
from core.adapters.budget import nearest, wanted
from core.bench import compare
from core.compose import compose
from core.config import check
from core.errors import ConfigError, PeftError
from core.plan import plan
from core.training.run import run

ROLES = {"attn.q": "q", "attn.v": "v", "mlp.out": "down", "mlp": "down", "conv": "conv"}


class Net(nn.Module):
    """Two square layers, a wide one, and a convolution with a single input channel."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv1d(1, 16, 3, padding=1)
        self.q, self.v, self.down = nn.Linear(16, 16), nn.Linear(16, 16, bias=False), nn.Linear(16, 40)

    def forward(self, x):
        h = self.conv(x).movedim(1, 2)
        return self.down(self.q(h) * self.v(h))


def put(method="lora", **more):
    net = Net()
    return attach(net, method, roles=ROLES, example=((torch.randn(2, 1, 6),), {}), seed=0, **more)


def own(net) -> int:
    return sum(p.numel() for key, p in trainable(net).items() if not key.startswith("head|"))


@pytest.mark.parametrize(
    ("budget", "base", "expected"),
    [("1%", 12_345, 123), ("0.5 %", 1_000, 5), (50_000, 1, 50_000), (1e5, 1, 100_000), ("1e5", 1, 100_000),
     ("50_000", 1, 50_000), ("100%", 77, 77)],
)  # fmt: skip
def test_what_a_budget_says(budget, base, expected):
    assert wanted(budget, base) == expected


@pytest.mark.parametrize("budget", ["", "a lot", "0.01", 0.5, 0, -3, True, "-1%", "0.001%", float("nan"), float("inf")])
def test_what_is_no_budget(budget):
    with pytest.raises(ConfigError, match="a share of the base"):
        wanted(budget, 10_000)


@pytest.mark.parametrize("parameters", range(3, 400))
def test_the_nearest_size(parameters):
    """Against a look at every size: a line, a line that ends, one that is level from 24 on, sizes that divide 48."""
    for sizes, count in (
        (range(1, 200), lambda s: 3 * s),
        (range(1, 25), lambda s: 3 * s if s <= 24 else refuse()),
        (range(1, 200), lambda s: 3 * min(s, 24)),
        ([s for s in range(1, 49) if 48 % s == 0], lambda s: 3 * s if s <= 48 and 48 % s == 0 else refuse()),
    ):
        best = min(sizes, key=lambda s: (abs(count(s) - parameters), s))
        if abs(count(best) - parameters) > 0.1 * parameters:
            with pytest.raises(ConfigError) as caught:
                nearest(count, parameters, "rank {}".format, parameters)
            assert f"rank {best} has {count(best):,}" in caught.value.problems[0].got
        else:
            assert nearest(count, parameters, "rank {}".format, parameters) == best


def refuse():
    raise ConfigError("adapter.rank", "refused")


def test_the_budget_is_held_at_real_sites():
    """LoRA on q, v and a convolution with one input channel: r 64 and min(r, 3) 19."""
    net = put(targets=["attn.q", "attn.v", "conv"], budget=700)
    info = adapters(net)["default"]
    assert info.options["rank"] == 10 and own(net) == 10 * 64 + 3 * 19 == 697 == info.parameters
    assert "budget  700: rank 10 has 697, 99.6 % of it; head apart" in str(summary(net))


def test_a_share_is_of_the_base():
    net = Net()
    base = sum(p.numel() for p in net.parameters())
    net = put(targets=["attn.q", "attn.v"], budget="26%", head=nn.Linear(40, 500))
    assert own(net) == 320 and f"budget  26% = {base * 26 // 100:,}: rank 5" in str(summary(net))


def test_every_method_with_a_size():
    """Found by looking. Where the budget is what a size needs, that size is the answer: to the parameter."""
    solved = 0
    for name in methods.names():
        cls = methods.find(name)
        sized = cls.size and type(methods.options(cls).get(cls.size)) is (float if cls.divides else int)
        if cls.face == "token" or (sized and name == "last_k"):
            continue  # networks of their own
        if not sized:
            with pytest.raises(ConfigError, match="which has no size"):
                put(name, budget=500)
            continue
        targets = [cls.targets[0] if cls.targets[0] in ROLES else "mlp"] if cls.face == "activation" else ["attn.q"]
        try:
            by_hand = put(name, targets=targets, **{cls.size: 2})
        except PeftError:  # it refuses size 2 here
            continue
        count = own(by_hand)
        net = put(name, targets=targets, budget=count)
        assert (
            own(net)
            == count
            == own(put(name, targets=targets, **{cls.size: adapters(net)["default"].options[cls.size]}))
        ), name
        solved += 1
    assert solved >= 4


def test_what_cannot_be_had():
    where = {"targets": ["attn.q", "attn.v"]}
    for budget, has, instead in (
        (50, "50, but rank 1 has 64", "64"),
        (100, "100, but rank 1 has 64 and rank 2 has 128", "64 or 128"),
        (5000, "5000, but rank 16 has 1,024", "1024"),
    ):
        with pytest.raises(ConfigError) as caught:
            put(budget=budget, **where)
        (problem,) = caught.value.problems
        assert (problem.got, problem.fix) == (has, f"adapter.budget={instead}, or other targets")
    for method in ("ia3", "bitfit", "full", "none"):
        with pytest.raises(ConfigError, match=f"{method}, which has no size"):
            put(method, budget=500)


def test_the_file_knows(tmp_path):
    net = put(targets=["attn.q"], budget="10%")
    save_adapter(net, tmp_path)
    saved = json.loads((tmp_path / "adapter.json").read_text())
    assert saved["options"]["rank"] == adapters(net)["default"].options["rank"] == 4
    assert saved["budget"]["asked"] == "10%" and saved["budget"]["parameters"] == own(net) == 128
    detach(net)
    load_adapter(net, tmp_path, roles=ROLES, example=((torch.randn(2, 1, 6),), {}))
    assert own(net) == 128 and adapters(net)["default"].options["rank"] == 4


# ---------------------------------------------------------------------- on the command line

TINY = ["backbone=esm2_tiny", "data.train=6", "data.val=4", "data.test=5", "trainer.max_steps=1"]


@pytest.mark.parametrize(
    ("overrides", "got"),
    [
        (["adapter=ia3", "adapter.budget=1%"], "IA3 has no size to solve"),
        (["adapter=bitfit", "adapter.budget=1000"], "BitFit has no size to solve"),
        (["adapter=full", "adapter.budget=1000"], "Full has no size to solve"),
        (["adapter=lora", "adapter.budget=much"], "'much' (str)"),
    ],
)
def test_before_anything_heavy(overrides, got):
    with pytest.raises(ConfigError) as caught:
        check(compose("protein", overrides))
    assert [(p.where, p.got) for p in caught.value.problems] == [("adapter.budget", got)]


def test_a_plan_says_what_was_solved():
    text = plan("protein", [*TINY, "adapter.targets=[attn.q,attn.v]", "adapter.budget=1e3"])
    assert "budget  1000.0 = 1,000: rank 4 has 1,024, 102.4 % of it; head apart" in text
    with pytest.raises(ConfigError, match="rank 1 has 256 and rank 2 has 512"):
        plan("protein", [*TINY, "adapter.targets=[attn.q,attn.v]", "adapter.budget=300"])


def test_a_run_keeps_what_was_solved(tmp_path):
    run(compose("protein", [*TINY, "adapter.targets=[attn.q]", "adapter.budget=384"]), tmp_path)
    record = json.loads((tmp_path / "result.json").read_text())
    assert (record["options"]["rank"], record["options"]["budget"], record["trainable"]) == (3, 384, 384)
    assert json.loads((tmp_path / "adapter" / "adapter.json").read_text())["options"]["rank"] == 3
    assert "budget  384: rank 3" in (tmp_path / "run.log").read_text()


def test_a_comparison_at_one_budget(tmp_path):
    """Anchors have no size: the budget is not theirs. Methods without one are refused before anything runs."""
    words = ["sweep=compare", "adapter.budget=1000", "sweep.lr=[1e-3]", "sweep.seeds=[0]"]
    sweep = compare.Sweep(methods=["none", "lora", "houlsby", "full"], lr=[1e-3], seeds=[0])
    configs = compare._configs(compose("protein", words), sweep, words)
    budgets = {method: config["adapter"].get("budget") for method, (config, _) in configs.items()}
    assert budgets == {"none": None, "lora": 1000, "houlsby": 1000, "full": None}
    with pytest.raises(ConfigError, match=r"adapter=ia3: adapter\.budget"):
        compare._configs(compose("protein", words), compare.Sweep(methods=["lora", "ia3"], lr=[1e-3], seeds=[0]), words)
