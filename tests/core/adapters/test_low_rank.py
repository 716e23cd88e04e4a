"""Low-rank and kindred weight methods: closed form, start, count, projections, refusals, training."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from core.adapters import attach, methods
from core.adapters.cost import saved_bytes
from core.adapters.hosts import op_for
from core.adapters.methods.bone import Bone
from core.adapters.methods.delora import DeLoRA
from core.adapters.methods.hira import HiRA
from core.adapters.methods.lora_fa import LoRAFA
from core.adapters.methods.lora_xs import LoRAXS
from core.adapters.methods.miss import MiSS
from core.adapters.methods.olora import OLoRA
from core.adapters.methods.pissa import PiSSA
from core.adapters.methods.randlora import RandLoRA
from core.adapters.methods.vera import VeRA
from tests.core.adapters.hosts_under_test import One, relative, shaken, through_output, through_weight
from tests.core.adapters.test_counts import D, F, count

# name -> options on small layers
SMALL = {
    "hira": dict(rank=3),
    "vera": dict(rank=5),
    "miss": dict(rank=4),
    "bone": dict(rank=2),
    "lora_fa": dict(rank=3),
    "pissa": dict(rank=3),
    "olora": dict(rank=3),
    "lora_xs": dict(rank=4),
    "randlora": dict(rank=4, alpha=80),
    "delora": dict(rank=3),
}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


# Definitions, entry by entry -----------------------------------------------------------------------------------------


def test_hira_scales_every_entry():
    W = torch.randn(6, 5)
    W[2, 3] = 0
    m = shaken(HiRA(W, rank=3), by=0.5)
    W1, A, B = m.weight(W).detach(), m.A.detach(), m.B.detach()
    for o in range(6):
        for i in range(5):
            assert abs(float(W1[o, i] - W[o, i] * (1 + (B[o] * A[:, i]).sum()))) <= 1e-6
    assert W1[2, 3] == 0, "the change is relative"


def test_vera_scales_a_frozen_pair():
    W = torch.randn(6, 5)
    m = shaken(VeRA(W, rank=7), by=0.5)
    expected = W + torch.diag(m.b) @ m.B @ torch.diag(m.d) @ m.A
    assert relative(m.weight(W), expected) <= 1e-6
    assert {n for n, _ in m.named_parameters()} == {"b", "d"} and set(m.state_dict()) == {"b", "d"}
    # He's uniform: fan `in` for A, fan `rank` for B
    big = VeRA(torch.empty(400, 300), rank=200)
    assert abs(float(big.A.var()) * 300 / 2 - 1) <= 0.02 and abs(float(big.B.var()) * 200 / 2 - 1) <= 0.02


@pytest.mark.parametrize("columns", [8, 10, 3])
def test_miss_repeats_one_change(columns):
    """Shards of 4 columns; the last is cut, and a matrix narrower than a shard has one."""
    W = torch.randn(6, columns)
    m = shaken(MiSS(W, rank=4), by=0.5)
    r = min(4, columns)
    assert m.D.shape == (r, 6)
    expected = torch.stack([W[:, j] + m.D[j % r] for j in range(columns)], 1)
    assert torch.equal(m.weight(W), expected)
    layer, x = nn.Linear(columns, 6), torch.randn(2, 3, columns)
    y = through_output(m, op_for(layer, "weight"), layer, x)
    assert relative(y, x @ (layer.weight + expected - W).T + layer.bias) <= 1e-6


def test_bone_works_in_blocks():
    W = torch.randn(6, 8)
    m = shaken(Bone(W, rank=2), by=0.5)
    expected = W.clone()
    for p in range(3):
        for q in range(4):
            block = W[2 * p : 2 * p + 2, 2 * q : 2 * q + 2]
            expected[2 * p : 2 * p + 2, 2 * q : 2 * q + 2] = block + block @ m.D[p] + m.D[p]
    assert relative(m.weight(W), expected) <= 1e-6


def test_lora_fa_trains_b_alone():
    W = torch.randn(6, 5)
    m = shaken(LoRAFA(W, rank=2, alpha=6), by=0.5)
    assert [n for n, _ in m.named_parameters()] == ["B"] and set(m.state_dict()) == {"A", "B"}
    assert relative(m.weight(W), W + 3 * m.B @ m.A) <= 1e-6
    assert m.A.abs().max() <= 5**-0.5 and m.A.abs().max() > 0, "LoRA's start"


def test_lora_fa_keeps_no_input():
    """LoRA keeps the input of a layer, LoRA-FA the product of rank r."""
    kept = {}
    for name in ("lora", "lora_fa"):
        net, x = One(nn.Linear(64, 48)), torch.randn(32, 64)
        attach(net, name, targets=["fc"], roles={"fc": "layer"}, example=((x,), {}), rank=2)
        kept[name] = saved_bytes(lambda net=net, x=x: net(x), net)
    assert kept == {"lora": 4 * 32 * 64, "lora_fa": 4 * 32 * 2}


@pytest.mark.parametrize("niter", [0, 8])
def test_pissa_takes_the_principal_part(niter):
    W = torch.randn(40, 30)
    m = PiSSA(W, rank=3, alpha=6, niter=niter)
    start = 2 * m.B0 @ m.A0
    S = torch.linalg.svdvals(W)
    assert abs(float((W - start).norm() / S[3:].norm()) - 1) <= 1e-4, "the best approximation of rank 3"
    assert (
        relative(m.A0 @ m.A0.T, torch.diag(S[:3] / 2)) <= 1e-4
        and relative(m.B0.T @ m.B0, torch.diag(S[:3] / 2)) <= 1e-4
    )
    shaken(m, by=0.5)
    assert relative(m.weight(W), W + 2 * (m.B @ m.A - m.B0 @ m.A0)) <= 1e-6


def test_olora_takes_the_first_columns():
    W = torch.randn(6, 8)
    m = OLoRA(W, rank=3, alpha=6)
    assert relative(m.B0.T @ m.B0, torch.eye(3)) <= 1e-6
    assert relative((m.B0 @ m.A0)[:, :3], W[:, :3]) <= 1e-6, "R is triangular"
    shaken(m, by=0.5)
    assert relative(m.weight(W), W + 2 * (m.B @ m.A - m.B0 @ m.A0)) <= 1e-6


@pytest.mark.parametrize("niter", [0, 8])
def test_lora_xs_works_between_singular_vectors(niter):
    W = torch.randn(40, 30)
    m = shaken(LoRAXS(W, rank=4, alpha=8, niter=niter), by=0.5)
    U, S, Vt = torch.linalg.svd(W)
    signs = (m.A * Vt[:4]).sum(1).sign()  # a decomposition is unique but for signs
    R = signs[:, None] * m.R * signs
    assert relative(m.weight(W), W + 2 * U[:, :4] @ torch.diag(S[:4]) @ R @ Vt[:4]) <= 1e-3
    assert [n for n, _ in m.named_parameters()] == ["R"]


@pytest.mark.parametrize("shape", [(9, 7), (7, 9), (8, 8)])
def test_randlora_sums_scaled_bases(shape):
    W = torch.randn(shape)
    m = shaken(RandLoRA(W, rank=3, alpha=6), by=0.5)
    n, short = -(-min(shape) // 3), min(shape)
    assert m.l.shape == (n, 3) and m.g.shape == (n, short)
    expected = sum(m.B[:, j] @ torch.diag(m.l[j]) @ m.A @ torch.diag(m.g[j]) for j in range(n))
    expected = expected if expected.shape == shape else expected.T
    assert relative(m.weight(W), W + 2 * expected) <= 1e-6
    assert torch.linalg.matrix_rank((m.weight(W) - W).double(), rtol=1e-4) == short, "full rank from rank 3"


def test_delora_keeps_directions_and_strength_apart():
    W = torch.randn(6, 5)
    m = DeLoRA(W, rank=2, lambda_initial=3.0)

    def D(A, B, lam):
        parts = [torch.outer(B[:, k] / B[:, k].norm(), A[k] / A[k].norm()) for k in range(2)]
        return lam / 2 * sum(parts) * W.norm(dim=0)

    D0 = D(m.A0, m.B0, 3.0)
    shaken(m, by=0.5)
    assert relative(m.weight(W), W + D(m.A, m.B, m.lam) - D0) <= 1e-6
    before = m.weight(W)
    with torch.no_grad():
        m.A.mul_(7), m.B.mul_(0.1)
    assert relative(m.weight(W), before) <= 1e-6, "lengths of A and B do not count"


# Start and count -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make", [lambda: nn.Linear(8, 6), lambda: nn.Conv2d(4, 8, 2, padding=1)], ids=["linear", "conv"]
)
@pytest.mark.parametrize("name", SMALL)
def test_starts_at_the_base_to_the_bit(name, make):
    layer = make().requires_grad_(False)
    op = op_for(layer, "weight")
    M = op.matrix(layer.weight)
    m = methods.find(name)(M, **SMALL[name])
    assert torch.equal(m.weight(M), M)
    if m.output is not None:
        x = torch.randn(2, 8) if op.linear else torch.randn(2, 4, 5, 5)
        assert torch.equal(through_output(m, op, layer, x), layer(x))


LLAMA = [*[(D, D)] * 4, (F, D), (F, D), (D, F)]


@pytest.mark.parametrize(
    ("ours", "published"),
    [
        (lambda: count("vera", *[(768, 768)] * 2, rank=1024, copies=12), 43_008),  # RoBERTa-base: 0.043 M
        (lambda: count("vera", *[(1024, 1024)] * 2, rank=256, copies=24), 61_440),  # RoBERTa-large: 0.061 M
        (lambda: count("lora_xs", *[(1024, 1024)] * 4, rank=25, copies=24), 60_000),  # RoBERTa-large: 60 K
        (lambda: count("miss", *LLAMA, rank=64, copies=32), 87_031_808),  # LLaMA-2-7B: 87.0 M
    ],
    ids=lambda v: str(v) if isinstance(v, int) else "",
)  # fmt: skip
def test_published_counts(ours, published):
    assert ours() == published


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("hira", lambda o, i, r: r * (o + i)),
        ("vera", lambda o, i, r: r + o),
        ("miss", lambda o, i, r: r * o),
        ("bone", lambda o, i, r: r * o),
        ("lora_fa", lambda o, i, r: r * o),
        ("pissa", lambda o, i, r: r * (o + i)),
        ("olora", lambda o, i, r: r * (o + i)),
        ("lora_xs", lambda o, i, r: r * r),
        ("randlora", lambda o, i, r: 4 * (r + 24)),
        ("delora", lambda o, i, r: r * (o + i) + 1),
    ],
)
def test_counts(name, formula):
    """On shapes alone, by power iterations too."""
    for o, i in ((24, 36), (36, 24)):
        for more in [{}, {"niter": 4}] if "niter" in methods.options(methods.find(name)) else [{}]:
            assert count(name, (o, i), rank=6, **more) == formula(o, i, 6)


# Random projections --------------------------------------------------------------------------------------------------

PROJECTED = {"vera": dict(rank=5), "randlora": dict(rank=3)}


def buffers(m):
    return dict(m.named_buffers())


@pytest.mark.parametrize("name", PROJECTED)
def test_a_projection_is_shared_and_follows_its_seed(name):
    cls, W = methods.find(name), torch.randn(8, 6)
    one, two = cls(W, **PROJECTED[name]), cls(torch.randn(8, 6), **PROJECTED[name])
    other = cls(W, **PROJECTED[name], projection_seed=1)
    assert buffers(one) and set(one.state_dict()) == {n for n, _ in one.named_parameters()}, "projections are not saved"
    for key, tensor in buffers(one).items():
        assert tensor is buffers(two)[key], "sites of one shape share memory"
        assert not torch.equal(tensor, buffers(other)[key])
    pair = nn.ModuleList([one, two]).double()
    for key, tensor in buffers(pair[0]).items():
        assert tensor.dtype == torch.float64 and tensor is buffers(pair[1])[key], "after a move, too"
    pair.half().float()  # values are drawn anew, not rounded back
    for again in (pair[0], copy.deepcopy(pair)[1], pickle.loads(pickle.dumps(pair))[1], cls(W, **PROJECTED[name])):
        assert all(torch.equal(t, buffers(cls(W, **PROJECTED[name]))[k]) for k, t in buffers(again).items())


@pytest.mark.parametrize("name", PROJECTED)
def test_one_projection_for_all_shapes(name):
    """As HF has it: every site takes its part of the largest, here through two layers of two shapes."""
    cls, shape = methods.find(name), [10, 9]
    peft, kind = pytest.importorskip("peft"), {"vera": "Vera", "randlora": "RandLora"}[name]
    net, x = nn.Sequential(nn.Linear(9, 6), nn.Linear(6, 10)), torch.randn(3, 9)
    config = getattr(peft, f"{kind}Config")(target_modules=["0", "1"], r=PROJECTED[name]["rank"])
    theirs, expected = peft.get_peft_model(copy.deepcopy(net), config), x
    for number, layer in enumerate(net):
        m = cls(layer.weight, **PROJECTED[name], projection_shape=shape)
        with torch.no_grad():
            hf = theirs.base_model.model[number]
            pairs = [("b", "vera_lambda_b"), ("d", "vera_lambda_d")]
            pairs = pairs if name == "vera" else [("l", "randlora_lambda"), ("g", "randlora_gamma")]
            for ours, name_of_theirs in pairs:
                parameter = getattr(m, ours)
                parameter.normal_()
                other = getattr(hf, name_of_theirs)["default"]
                other.copy_(parameter.T if ours == "l" else parameter)
            expected = through_weight(m, op_for(layer, "weight"), layer, expected)
    assert relative(theirs(x), expected) <= 5e-6
    given = {**methods.options(cls), **PROJECTED[name], "projection_shape": shape}
    assert cls.refuses("Linear", (8, 6), given) == ""
    assert "at least (11, 6)" in cls.refuses("Linear", (11, 6), given)


def test_seeds_keep_their_meaning():
    """Saved adapters name a seed: what it draws may never change."""
    m = VeRA(torch.empty(3, 4), rank=2)
    assert torch.allclose(m.A[0], torch.tensor([-0.0092, 0.6570, -1.0080, -0.9013]), atol=1e-4)
    m = RandLoRA(torch.empty(3, 4), rank=2)
    assert torch.allclose(m.A[0], torch.tensor([-0.0136, 0.9766, -1.4922]), atol=1e-4)
    assert torch.allclose(m.B[:2, 0], torch.tensor([[-0.0369, -0.7656], [-0.1650, 0.7344]]), atol=1e-4)


# Refusals and training -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "host", "shape", "options", "said"),
    [
        ("hira", "Embedding", (8, 90), {}, "90 x 8"),
        ("hira", "Linear", (8, 9), dict(rank=0), "rank 0"),
        ("vera", "Embedding", (8, 90), {}, "use lora"),
        ("lora_fa", "Embedding", (8, 90), {}, "use lora"),
        ("lora_xs", "Embedding", (8, 90), {}, "use lora"),
        ("randlora", "Embedding", (8, 90), {}, "use lora"),
        ("pissa", "Linear", (8, 9), dict(alpha=0.0), "alpha 0.0: a positive number"),
        ("pissa", "Linear", (8, 9), dict(niter=-1), "0 for the exact decomposition"),
        ("lora_xs", "Linear", (8, 9), dict(niter=-1), "0 for the exact decomposition"),
        ("delora", "Linear", (8, 9), dict(lambda_initial=0.0), "lambda_initial 0.0: a positive number"),
        ("miss", "Embedding", (8, 90), {}, "use lora"),
        ("bone", "Embedding", (8, 90), {}, "use lora"),
        ("bone", "Linear", (8, 12), dict(rank=3), "does not divide (8, 12) into blocks: use miss, or a divisor of 4"),
    ],
)
def test_refusals_say_why_and_what_to_use(name, host, shape, options, said):
    cls = methods.find(name)
    assert said in cls.refuses(host, shape, {**methods.options(cls), **options})


class Small(nn.Module):
    """Two layers and a convolution."""

    roles = {"fc": "fc*", "conv": "conv"}

    def __init__(self):
        super().__init__()
        self.fc1, self.conv, self.fc2 = nn.Linear(8, 12), nn.Conv1d(12, 12, 3, padding=1), nn.Linear(12, 6)

    def forward(self, x):
        h = torch.tanh(self.fc1(x)).transpose(1, 2)
        return self.fc2(torch.tanh(self.conv(h)).transpose(1, 2))


@pytest.mark.parametrize("name", SMALL)
def test_a_small_network_learns(name):
    """Half of the squared error to another network's output is gone after 150 steps."""
    net, x = Small(), torch.randn(8, 5, 8)
    with torch.no_grad():
        goal = copy.deepcopy(net)
        for p in goal.parameters():
            p += 0.15 * torch.randn_like(p)
        y = goal(x)
    options = {**SMALL[name], "rank": {"vera": 32}.get(name, 4 if name != "bone" else 2)}
    attach(net, name, targets=["fc", "conv"], roles=net.roles, example=((x,), {}), seed=0, **options)
    optimiser = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.02, weight_decay=0)
    losses = []
    for _ in range(150):
        loss = (net(x) - y).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0], (losses[0], losses[-1])
