"""Arithmetic on saved adapters: sums against closed forms and examples by hand, through files, on one base alone."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from torch import nn

from core import cli
from core.adapters import (
    adapters,
    attach,
    combine_adapters,
    detach,
    load_adapter,
    save_adapter,
    search_weights,
    set_active,
    trainable,
    use,
)
from core.adapters.arithmetic import dare, linear, low_rank, ties, trim
from core.compose import compose
from core.errors import AdapterError, ConfigError, FingerprintError, PeftError, UnsupportedError
from core.ship import open_run
from core.training.run import run

ROLES = {"attn.q": "qkv[0/3]", "attn.v": "qkv[2/3]", "mlp.in": "up", "mlp": "up", "conv": "conv", "embed": "embed"}
TARGETS = ["attn.q", "mlp.in", "conv", "embed"]


class Net(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.embed, self.conv = nn.Embedding(11, 8), nn.Conv1d(8, 8, 3, padding=1)
        self.qkv, self.up, self.norm = nn.Linear(8, 24), nn.Linear(8, 12), nn.LayerNorm(12)
        self.eval()

    def forward(self, ids):
        q, k, v = self.qkv(self.conv(self.embed(ids).mT).mT).chunk(3, -1)
        return self.norm(self.up(torch.softmax(q @ k.mT, -1) @ v))


IDS = torch.arange(18).reshape(3, 6) % 11
WHERE = {"roles": ROLES, "example": ((IDS,), {})}


def out(net):
    with torch.no_grad():
        return net(IDS)


def saved(folder, method="lora", seed=0, by=0.3, net=None, head=None, **options):
    """A folder with an adapter, moved away from its start."""
    options = {"targets": TARGETS, **options}
    net = attach(net or Net(), method, seed=seed, head=head, **WHERE, **options)
    generator = torch.Generator().manual_seed(seed)
    for p in trainable(net).values():
        p.data += torch.randn(p.shape, generator=generator) * by
    save_adapter(net, folder)
    return folder


def together(net, folders, weights):
    """Both loaded, active with these weights: what their linear sum has to be."""
    for i, folder in enumerate(folders):
        load_adapter(net, folder, name=f"k{i}", example=WHERE["example"])
    with use(net, {f"k{i}": w for i, w in enumerate(weights)}):
        found = out(net)
    detach(net)
    return found


def base() -> Net:
    """A plain module is asked for its example where nothing is attached yet."""
    net = Net()
    net.example, net.roles = lambda: WHERE["example"], ROLES
    return net


def close(a, b, to=1e-5):
    assert float((a - b).abs().max() / b.abs().max()) <= to


# ---------------------------------------------------------------------- by hand


def test_ties_by_hand():
    """keep 1/2 of four entries each; signs by the sum; the mean of those that agree."""
    a = {"x": torch.tensor([[4.0, -3.0, 1.0, 0.5]])}  # trimmed: 4 -3 0 0
    b = {"x": torch.tensor([[-2.0, -1.0, 3.0, 0.1]])}  # trimmed: -2 0 3 0
    c = {"x": torch.tensor([[2.0, 0.0, -4.0, 0.0]])}  # trimmed: 2 0 -4 0
    # elected by 4 - 2 + 2 = 4, -3, 3 - 4 = -1, 0:   + - - .     means: (4 + 2) / 2, -3, -4, 0
    assert ties([a, b, c], [1, 1, 1], keep=0.5)["x"].tolist() == [[3.0, -3.0, -4.0, 0.0]]
    assert ties([a, b, c], [1, 1, 1], keep=0.5, scale=2.0)["x"].tolist() == [[6.0, -6.0, -8.0, 0.0]]
    # weights 1, 1, 1/2: elected by 4 - 2 + 1 = 3, -3, 3 - 2 = 1, 0;   (4 + 2 / 2) / 1.5
    assert torch.allclose(ties([a, b, c], [1, 1, 0.5], keep=0.5)["x"], torch.tensor([[10 / 3, -3.0, 3.0, 0.0]]))


def test_trim_is_of_the_whole_adapter():
    """The largest entries wherever they are: a layer may lose all of its own."""
    found = trim({"x": torch.tensor([[1.0, -2.0]]), "y": torch.tensor([[30.0, 4.0]])}, 0.5)
    assert (found["x"].tolist(), found["y"].tolist()) == ([[0.0, 0.0]], [[30.0, 4.0]])


def test_dare_keeps_the_mean_and_repeats_itself():
    delta = {"x": torch.ones(200, 300), "y": torch.full((100, 100), -2.0)}
    one, again = (dare(delta, 0.9, torch.Generator().manual_seed(3)) for _ in range(2))
    other = dare(delta, 0.9, torch.Generator().manual_seed(4))
    assert all(torch.equal(one[k], again[k]) and not torch.equal(one[k], other[k]) for k in delta)
    assert one["x"].unique().tolist() == pytest.approx([0.0, 10.0])
    assert abs(float((one["x"] != 0).float().mean()) - 0.1) < 0.005 and abs(float(one["x"].mean()) - 1) < 0.05
    assert torch.equal(dare(delta, 0.0, torch.Generator())["y"], delta["y"])


def test_the_nearest_matrix_of_a_rank():
    D = torch.randn(7, 5)
    B, A = low_rank(D, 2)
    lost = torch.linalg.svdvals(D)[2:].norm()
    assert (B.shape, A.shape) == ((7, 2), (2, 5))
    assert torch.allclose((D - B @ A).norm(), lost, rtol=1e-5)


def test_linear_by_hand():
    assert linear([{"x": torch.tensor([[1.0, 2.0]])}, {"x": torch.tensor([[3.0, -1.0]])}], [0.5, 2])["x"].tolist() == [
        [6.5, -1.0]
    ]


# ---------------------------------------------------------------------- through files


def test_a_linear_sum_of_loras_loses_nothing(tmp_path):
    """Ranks 2 and 3 make a LoRA of rank 5 that computes what both do with their weights."""
    folders = saved(tmp_path / "a", rank=2), saved(tmp_path / "b", seed=1, rank=3)
    net = base()
    before, plain = out(net), {k: v.clone() for k, v in net.state_dict().items()}
    done = combine_adapters(net, folders, tmp_path / "c", weights=[0.7, -0.4])
    assert (done.method, done.rank, done.sites) == ("lora", 5, 4) and done.residual < 1e-6
    assert torch.equal(out(net), before) and adapters(net) == {}
    assert all(torch.equal(v, plain[k]) for k, v in net.state_dict().items()), "the base has not moved"
    expected = together(net, folders, [0.7, -0.4])
    close(out(load_adapter(Net(), tmp_path / "c", example=WHERE["example"])), expected)
    content = json.loads((tmp_path / "c" / "adapter.json").read_text())
    assert (content["name"], content["options"]["rank"], content["options"]["alpha"]) == ("default", 5, 5.0)


@pytest.mark.parametrize("method", ["dora", "ia3", "loha", "oft", "delta"])
def test_any_weight_method(tmp_path, method):
    """Not low-rank as they stand: their sum is kept whole, or cut to a rank that says what it lost."""
    options = {"oft": {"block": 2}, "loha": {"rank": 2}, "dora": {"rank": 2}}.get(method, {})
    folders = [
        saved(tmp_path / name, method, seed, targets=["attn.q", "mlp.in"], **options) for seed, name in enumerate("ab")
    ]
    net = base()
    expected = together(net, folders, [0.5, 0.5])
    done = combine_adapters(net, folders, tmp_path / "c")
    assert (done.method, done.rank, done.residual) == ("delta", None, 0.0)
    close(out(load_adapter(Net(), tmp_path / "c", example=WHERE["example"])), expected)
    cut = combine_adapters(net, folders, tmp_path / "r1", rank=1)
    whole = combine_adapters(net, folders, tmp_path / "r8", rank=8)
    assert cut.method == "lora" and 0.05 < cut.residual < 1 and whole.residual < 1e-6
    close(out(load_adapter(Net(), tmp_path / "r8", example=WHERE["example"])), expected)


@pytest.mark.parametrize("how", ["ties", "dare", "dare_ties", "hub"])
def test_the_others_through_files(tmp_path, how):
    """What is written is what the sum on the deltas says, whole and cut to the rank that holds it."""
    folders = [saved(tmp_path / name, seed=seed, rank=2) for seed, name in enumerate("ab")]
    net, weights = base(), [0.6, 0.4]
    deltas, factors = [], []
    for folder in folders:
        load_adapter(net, folder)
        slots = {bound.site.key: net._peft.method(bound) for bound in net._peft.adapters["default"].bound}
        deltas.append({k: (m.scale * m.B @ m.A).detach() for k, m in slots.items()})
        factors.append({k: (m.A.detach(), m.B.detach(), m.scale) for k, m in slots.items()})
        detach(net)
    if how.startswith("dare"):
        generator = torch.Generator().manual_seed(7)
        deltas = [dare(d, 0.3, generator) for d in deltas]
    if how == "hub":
        mixed = [
            {k: sum(w * f[k][i] for w, f in zip(weights, factors, strict=True)) for k in deltas[0]} for i in (0, 1)
        ]
        expected = {k: factors[0][k][2] * mixed[1][k] @ mixed[0][k] for k in deltas[0]}
    elif how == "dare":
        expected = linear(deltas, weights)
    else:
        expected = ties(deltas, weights, keep=0.4)
    for rank in ("full", 8):
        more = {"keep": 0.4} if "ties" in how else {}
        done = combine_adapters(
            net, folders, tmp_path / "c", how=how, weights=weights, rank=rank, drop=0.3, seed=7, **more
        )
        assert done.residual < 1e-5 and done.rank == (8 if rank == 8 else None)
        load_adapter(net, tmp_path / "c")
        for bound in net._peft.adapters["default"].bound:
            m = net._peft.method(bound)
            D = m.D if rank == "full" else m.scale * m.B @ m.A
            close(D.detach(), expected[bound.site.key])
        detach(net)
    if how == "hub":
        done = combine_adapters(net, folders, tmp_path / "h", how="hub", weights=weights)
        assert (done.rank, done.residual < 1e-6) == (2, True)


def test_selections_stay_selections(tmp_path):
    folders = [saved(tmp_path / n, "norm", seed, targets=None) for seed, n in enumerate("ab")]
    net = base()
    expected = together(net, folders, [1.0, -0.5])
    assert combine_adapters(net, folders, tmp_path / "c", weights=[1.0, -0.5]).method == "norm"
    close(out(load_adapter(Net(), tmp_path / "c", example=WHERE["example"])), expected)


def test_heads_and_what_is_attached_stay(tmp_path):
    """The first adapter's head is kept, another's where asked; adapters of the model stay active as they were."""
    heads = [nn.Linear(12, 2), nn.Linear(12, 2)]
    folders = [saved(tmp_path / n, seed=i, rank=2, head=heads[i]) for i, n in enumerate("ab")]
    net = load_adapter(base(), folders[0], name="mine")
    set_active(net, {"mine": 0.5})
    before = out(net)
    for choice, kept in ((0, 0), (1, 1), (-1, None)):
        combine_adapters(net, folders, tmp_path / "c", head=choice)
        head = nn.Linear(12, 2)
        again = load_adapter(Net(), tmp_path / "c", example=WHERE["example"], head=head if kept is not None else None)
        if kept is None:
            assert not json.loads((tmp_path / "c" / "adapter.json").read_text())["head"]
        else:
            assert torch.equal(head.weight, heads[kept].weight)
        assert adapters(again)["default"].parameters
    assert torch.equal(out(net), before) and list(adapters(net)) == ["mine"]


def test_other_bases_sites_and_kinds_are_refused(tmp_path):
    a = saved(tmp_path / "a", rank=2)
    net, out_of = base(), tmp_path / "c"
    with pytest.raises(FingerprintError):
        combine_adapters(net, [a, saved(tmp_path / "other", rank=2, net=Net(seed=5))], out_of)
    fewer = saved(tmp_path / "fewer", rank=2, targets=["attn.q", "attn.v"])
    with pytest.raises(
        AdapterError, match=r"3 missing, such as conv:weight.conv; 1 of its own, such as qkv:weight.attn.v"
    ):
        combine_adapters(net, [a, fewer], out_of)
    with pytest.raises(UnsupportedError, match="acts on an output"):
        combine_adapters(net, [a, saved(tmp_path / "h", "houlsby", size=2, targets=["mlp"])], out_of)
    with pytest.raises(UnsupportedError, match="trained in place"):
        combine_adapters(net, [a, saved(tmp_path / "full", "full", targets=None)], out_of)
    with pytest.raises(UnsupportedError, match="not a LoRA of the same rank"):
        combine_adapters(net, [a, saved(tmp_path / "r3", rank=3)], out_of, how="hub")
    with pytest.raises(AdapterError):
        combine_adapters(net, [a, tmp_path / "nowhere"], out_of)
    assert not out_of.exists() and adapters(net) == {}


@pytest.mark.parametrize(
    ("more", "where"),
    [
        ({"how": "tise"}, "how"),
        ({"weights": [1.0]}, "weights"),
        ({"weights": [1.0, float("nan")]}, "weights"),
        ({"rank": 0}, "rank"),
        ({"rank": "half"}, "rank"),
        ({"keep": 0.0}, "keep"),
        ({"drop": 1.0}, "drop"),
        ({"head": 2}, "head"),
    ],
)
def test_bad_options(tmp_path, more, where):
    with pytest.raises(ConfigError) as caught:
        combine_adapters(base(), [tmp_path / "a", tmp_path / "b"], tmp_path / "c", **more)
    assert [p.where for p in caught.value.problems] == [where]


def test_the_search_finds_known_weights(tmp_path):
    """The score is nearness to the output at (0.8, -0.5); the same seed finds the same weights."""
    net = base()
    for i, name in enumerate("ab"):
        load_adapter(net, saved(tmp_path / name, seed=i, rank=2, by=0.1), name=name)
    with use(net, {"a": 0.8, "b": -0.5}):
        wanted = out(net)
    with use(net, None):
        start = -float((out(net) - wanted).norm())
    set_active(net, "b")
    score = lambda model: -float((out(model) - wanted).norm())  # noqa: E731
    weights, best = search_weights(net, ["a", "b"], score, steps=200, penalty=0.0)
    assert best > 0.1 * start and abs(weights["a"] - 0.8) < 0.15 and abs(weights["b"] + 0.5) < 0.15
    assert search_weights(net, ["a", "b"], score, steps=200, penalty=0.0) == (weights, best)
    assert net._peft.routing.active == {"b": 1.0}
    bounded, _ = search_weights(net, ["a", "b"], lambda m: sum(m._peft.routing.active.values()), bound=0.3)
    assert bounded == {"a": 0.3, "b": 0.3}
    with pytest.raises(PeftError, match="did you mean"):
        search_weights(net, ["aa"], score)


# ---------------------------------------------------------------------- atlas combine


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs on one base, and one on another."""
    folder = tmp_path_factory.mktemp("runs")
    tiny = ["backbone=esm2_tiny", "data.train=6", "data.val=4", "data.test=5", "trainer.max_steps=2", "adapter.rank=2"]
    for name, more in (("a", []), ("b", ["optim.lr=1e-2"]), ("other", ["backbone=esm2_mini"])):
        run(compose("protein", [*tiny, *more]), folder / name)
    (folder / "new.fasta").write_text(">second\nMKTAYIAKQRQ\n>first\nMKV\n")
    return folder


def atlas(capsys, *words):
    return cli.main([str(word) for word in words]), *capsys.readouterr()


def test_a_combination_of_runs_is_a_run(capsys, runs):
    a, b, c = runs / "a", runs / "b", runs / "c"
    code, text, err = atlas(capsys, "combine", a, b, "--weights", "1,0", "--out", c)
    assert code == 0, err
    assert text.startswith("linear of 2 adapters: lora of rank 4 at ") and "relative residual" in text
    answers = []
    for one in (a, c):
        code, _, err = atlas(capsys, "predict", one, "--input", runs / "new.fasta", "--out", runs / f"{one.name}.csv")
        assert code == 0, err
        answers.append(list(csv.DictReader((runs / f"{one.name}.csv").open())))
    assert answers[0] == answers[1], "all of the first and nothing of the second"
    code, _, err = atlas(capsys, "merge", c, "--out", runs / "merged")
    assert code == 0, err
    code, text, err = atlas(capsys, "combine", a, b, "--how", "dare_ties", "--rank", "full", "--out", runs / "d")
    assert code == 0 and "dare_ties of 2 adapters: delta at " in text, err
    assert open_run(runs / "d").name == "default"


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["a", "other"], 4, "base"),
        (["a", "nowhere"], 3, "no adapter/"),
        (["a", "b", "--weights", "1;0"], 2, "numbers with commas"),
        (["a", "b", "--weights", "1"], 2, "one per adapter"),
        (["a", "b", "--rank", "few"], 2, "a whole number, or full"),
        (["a", "b", "--how", "tise"], 2, "did you mean `ties`?"),
    ],
)
def test_what_the_command_refuses(capsys, runs, monkeypatch, words, code, text):
    monkeypatch.chdir(runs)
    got, shown, err = atlas(capsys, "combine", *words, "--out", "refused")
    assert (got, shown) == (code, "") and text in err
    assert not (runs / "refused").exists()
