"""Starts that look at data (EVA, LoRA-GA) and AdaLoRA's budget: against collected inputs, gradients, formulas, HF."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from core.adapters import attach, load_adapter, save_adapter, summary, together, trainable
from core.adapters.calibrate import calibrate, second_moment
from core.adapters.hosts import op_for
from core.adapters.methods.adalora import AdaLoRA, budget
from core.adapters.methods.eva import ranks
from core.errors import UnsupportedError
from tests.core.adapters.hosts_under_test import HOSTS, relative, shaken, through_output, through_weight

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


class Net(nn.Module):
    """A linear layer, an attention and a convolution; inputs with directions of very unequal weight."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(6, 8)
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.conv = nn.Conv2d(1, 5, 3, stride=2, padding=1, dilation=2)
        self.norm = nn.BatchNorm2d(5)
        self.rnn = nn.LSTM(8, 8, batch_first=True)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        h = self.drop(self.mix(x))
        h = self.rnn(h + self.attn(h, h, h)[0])[0]
        return self.norm(self.conv(h[:, None])).tanh()


ROLES = {"mlp": "mix", "attn.q": "attn:in_proj_weight[0/3]", "attn.v": "attn:in_proj_weight[2/3]", "conv": "conv"}
ROLES |= {"attn.out": "attn.out_proj", "rnn": "rnn:weight_hh_l0"}


def batches(count=3):
    scale = torch.tensor([5.0, 3.0, 2.0, 1.0, 0.5, 0.1])
    return [torch.randn(2, 9, 6, generator=torch.Generator().manual_seed(i)) * scale for i in range(count)]


def started(method, targets, **options):
    torch.manual_seed(0)
    net = Net()
    attach(net, method, targets=targets, roles=ROLES, example=((batches(1)[0],), {}), seed=1, **options)
    return net


def loss(net):
    return lambda x: net(x).square().sum()


def method_at(net, role):
    return next(m for bound, m in together.bound_methods(net, "default") if bound.site.role == role)


# What is seen ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", [h for h in HOSTS if not h.vocabulary], ids=str)
def test_patches_are_what_the_matrix_is_applied_to(host):
    """The matrix's own second moment: with y = M patch, sum |y|^2 = tr(M S M^T) for every matrix M."""
    layer, op, x = host.build()
    moment = second_moment(op, x, op.matrix(layer.weight).shape[1])
    assert relative(moment, moment.T) <= 1e-6
    W = torch.randn(layer.weight.shape)
    groups = op.groups if op.kind in ("Conv1d", "Conv2d", "Conv3d") else 1
    W = W[: len(W) // groups].repeat(groups, *[1] * (W.ndim - 1))  # the same rows in every group
    layer.weight.data = W
    if layer.bias is not None:
        layer.bias.data.zero_()
    M = op_for(layer, "weight").matrix(W)
    M = M[: len(M) // groups]
    assert float(layer(x).square().sum()) == pytest.approx(float((M @ moment * M).sum()), rel=1e-4)


def test_patches_in_blocks_are_the_same(monkeypatch):
    layer, op, x = next(h for h in HOSTS if h.name == "conv2d_grouped").build()
    whole = second_moment(op, x, op.matrix(layer.weight).shape[1])
    monkeypatch.setattr("core.adapters.calibrate.PATCHES", 5 * 2 * 3 * 2)
    assert relative(second_moment(op, x, len(whole)), whole) <= 1e-6


# EVA ------------------------------------------------------------------------------------------------------------------


def collected(net, role):
    """Inputs of a layer, one per row, by a forward pass written out. Eval mode: no dropout."""
    found = []
    for x in batches():
        h = net.mix(x)
        if role == "mlp":
            found.append(x.flatten(0, 1))
        elif role in ("attn.q", "attn.v"):
            found.append(h.flatten(0, 1))
        else:
            h = net.rnn(h + net.attn(h, h, h)[0])[0]
            columns = F.unfold(h[:, None], 3, dilation=2, padding=1, stride=2)
            found.append(columns.transpose(1, 2).flatten(0, 1))
    return torch.cat(found).detach()


@pytest.mark.parametrize("role", ["mlp", "attn.q", "attn.v", "conv"])
def test_eva_starts_from_the_top_singular_directions(role):
    """A linear layer, slices of a fused weight that no module is called for, a strided and dilated convolution."""
    net = started("eva", [role], rank=2, rho=1)
    expected = torch.linalg.svd(collected(net.eval(), role), full_matrices=False).Vh[:2]
    kaiming = method_at(net, role).A.detach().clone()
    calibrate(net, "default", batches(), loss(net))
    A = method_at(net, role).A.detach()
    assert (A @ expected.T).abs().diagonal().tolist() == pytest.approx([1, 1], abs=1e-4)
    assert (F.normalize(kaiming) @ expected.T).abs().diagonal().min() < 0.9  # it was not so by chance
    assert relative(A @ A.T, torch.eye(2)) <= 1e-5


def test_eva_spends_ranks_where_inputs_need_them():
    """Shares by hand: after one each, .4 and .2 of site 1 and .3 of site 2 come before .15 of site 0."""
    shares = [torch.tensor([0.8, 0.15, 0.05]), torch.tensor([0.4, 0.4, 0.2]), torch.tensor([0.5, 0.3])]
    assert ranks(shares, 6) == [1, 3, 2]
    assert ranks(shares, 3) == [1, 1, 1]
    assert ranks(shares, 8) == [3, 3, 2]
    net = started("eva", ["mlp", "conv"], rank=2, rho=2)
    sizes = [p.shape for p in trainable(net).values()]
    one_direction = [x * torch.tensor([30.0, 1, 1, 1, 1, 1]) for x in batches()]
    calibrate(net, "default", one_direction, loss(net))
    found = [len(m.A) for _, m in together.bound_methods(net, "default")]
    assert found == [1, 3]
    assert [p.shape for p in trainable(net).values()] != sizes
    assert summary(net).parameters == sum(p.numel() for p in trainable(net).values())


def test_eva_is_refused_where_inputs_are_not_seen():
    net = started("eva", ["rnn"], rank=2)
    with pytest.raises(UnsupportedError, match="its input is not seen from outside"):
        calibrate(net, "default", batches(), loss(net))


def test_a_saved_eva_comes_back_with_its_ranks(tmp_path):
    net = started("eva", ["mlp", "conv"], rank=2, rho=2)
    calibrate(net, "default", [x * torch.tensor([30.0, 1, 1, 1, 1, 1]) for x in batches()], loss(net))
    for _, method in together.bound_methods(net, "default"):
        shaken(method)
    save_adapter(net, tmp_path)
    torch.manual_seed(0)
    fresh = Net()
    load_adapter(fresh, tmp_path, roles=ROLES, example=((batches(1)[0],), {}))
    assert torch.equal(net.eval()(batches(1)[0]), fresh.eval()(batches(1)[0]))


# LoRA-GA --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["mlp", "attn.v", "conv", "rnn", "attn.out"])
def test_the_first_step_of_lora_ga_is_the_gradient_cut_to_rank_2r(role):
    """-lr s^2 c^2 times the best approximation of G of rank 2r, for a step of plain SGD; G from the bare network."""
    bare = Net()
    torch.manual_seed(0)
    bare = Net().eval()
    sum(loss(bare)(x) for x in batches()).backward()
    net = started("lora_ga", [role], rank=1, alpha=0.5)
    site = together.bound_methods(net, "default")[0][0].site
    G = op_for(bare.get_submodule(site.path), site.parameter, site.rows).matrix(
        bare.get_submodule(site.path)._parameters[site.parameter].grad
    )
    before = net.eval()(batches(1)[0])
    calibrate(net, "default", batches(), loss(net))
    method = method_at(net, role)
    W = torch.zeros(G.shape)
    assert torch.equal(method.weight(W), W) and method.A.abs().max() > 0 and method.B.abs().max() > 0
    assert relative(net.eval()(batches(1)[0]), before) <= 1e-6
    net.eval()
    sum(loss(net)(x) for x in batches()).backward()
    with torch.no_grad():
        for p in method.parameters():
            p -= 1e-4 * p.grad
        step = method.weight(W) - W
    U, S, Vt = torch.linalg.svd(G, full_matrices=False)
    best = (U[:, :2] * S[:2]) @ Vt[:2]
    assert relative(step, -1e-4 * method.scale**2 * method.c**2 * best) <= 1e-2  # measured 2e-3: the step is finite
    assert relative(G, best) > 0.05  # a cut that cuts


def test_calibration_leaves_the_rest_alone():
    """Base, buffers, flags, random numbers, other adapters; and it repeats to the bit."""
    found = []
    for _ in range(2):
        net = started("lora_ga", ["mlp", "rnn"], rank=1)
        net.train()
        before = {k: t.clone() for k, t in net.state_dict().items() if not k.startswith("_peft")}
        flags, state = [m.training for m in net.modules()], torch.get_rng_state()
        calibrate(net, "default", batches(), loss(net))
        assert torch.equal(state, torch.get_rng_state()) and flags == [m.training for m in net.modules()]
        assert all(torch.equal(t, net.state_dict()[k]) for k, t in before.items())
        assert all(p.grad is None for p in net.parameters())
        assert not any(p.requires_grad for n, p in net.named_parameters() if not n.startswith("_peft"))
        found.append([p.detach().clone() for p in trainable(net).values()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


# AdaLoRA --------------------------------------------------------------------------------------------------------------


def test_adalora_equals_hf():
    peft = pytest.importorskip("peft")

    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 8)

        def forward(self, x):
            return self.fc(x)

    plain, x = nn.Linear(6, 8), torch.randn(3, 6)
    config = peft.AdaLoraConfig(init_r=3, target_r=2, lora_alpha=6, total_step=10, target_modules=["fc"])
    theirs = peft.get_peft_model(One(), config).eval().base_model.model.fc
    for tensors in (theirs.lora_A, theirs.lora_B, theirs.lora_E):
        shaken(tensors, 0.3)
    plain.load_state_dict(theirs.base_layer.state_dict())
    ours = AdaLoRA(plain.weight.detach(), rank=3, target_rank=2, alpha=6)
    ours.P.data, ours.Q.data = theirs.lora_B["default"].data, theirs.lora_A["default"].data
    ours.l.data = theirs.lora_E["default"].data.flatten()
    op, expected = op_for(plain, "weight"), theirs(x).detach()
    assert relative(through_weight(ours, op, plain, x), expected) <= 1e-5  # HF divides by r + 1e-5
    assert relative(through_output(ours, op, plain, x), expected) <= 1e-5
    assert relative(plain(x), expected) > 1e-2


def test_adalora_penalty_by_hand():
    method = AdaLoRA(torch.zeros(2, 2), rank=1, target_rank=1, gamma=0.5)
    method.P.data, method.Q.data = torch.tensor([[3.0], [0.0]]), torch.tensor([[0.0, 2.0]])
    assert method.penalty().item() == 0.5 * ((9 - 1) ** 2 + (4 - 1) ** 2)
    method.P.data, method.Q.data = torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0, 1.0]])
    assert method.penalty().item() == 0


def test_adalora_budget_is_cubic():
    at = [budget(t, 10, 90, 120, 80) for t in (0, 9, 10, 50, 89, 90, 200)]
    assert at == [120, 120, 120, 80 + 40 // 8, 80, 80, 80]


def test_adalora_budget_equals_hf():
    peft = pytest.importorskip("peft")
    sizes = dict(init_r=7, target_r=2, tinit=5, tfinal=11, total_step=60)
    config = peft.AdaLoraConfig(target_modules=["0", "1", "2"], **sizes)
    theirs = peft.get_peft_model(nn.Sequential(*(nn.Linear(8, 8) for _ in range(3))), config).base_model.rankallocator
    expected = [theirs.budget_schedule(t)[0] for t in range(60)]
    assert [budget(t, 5, 60 - 11, 3 * 7, 3 * 2) for t in range(60)] == expected and len(set(expected)) > 10


def test_adalora_keeps_the_most_important_triplets():
    """Two sites of two triplets, budget 4 -> 2: importance by hand; what is left out loses its l, and may come back."""
    sites = [AdaLoRA(torch.zeros(3, 3), rank=2, target_rank=1, warmup=0, settled=0.5, every=2) for _ in range(2)]
    sizes = torch.tensor([[4.0, 1.0], [3.0, 2.0]])  # |l g|: triplets 0 of both sites matter most
    for method in sites:
        method.l.data = torch.ones(2)

    def step(t, gradients):
        for method, g in zip(sites, gradients, strict=True):
            method.P.grad, method.Q.grad, method.l.grad = torch.zeros(3, 2), torch.zeros(2, 3), g.clone()
        with torch.no_grad():
            AdaLoRA.adjust(sites, t, 20)
        return torch.stack([method.m for method in sites]).tolist()

    seen = [step(t, sizes) for t in range(11)]
    rows = [sum(map(sum, m)) for m in seen]
    assert rows == [budget(t, 0, 10, 4, 2) if t % 2 == 0 else 4 for t in range(11)] and rows[-1] == 2
    assert seen[-1] == [[1, 0], [1, 0]]
    fresh = AdaLoRA(torch.zeros(3, 3), rank=2, target_rank=1)
    fresh.l.data, fresh.l.grad = torch.ones(2), sizes[0].clone()
    fresh.note()
    average = 0.15 * sizes[0]
    assert torch.allclose(fresh.importance(), average * 0.15 * (sizes[0] - average).abs())
    method = sites[0]
    assert step(11, sizes) == seen[-1] and method.l.tolist() == [1, 0]  # settled: the choice stays
    value = method.weight(torch.zeros(3, 3))
    assert torch.equal(value, method.scale * method.P[:, :1] @ method.Q[:1])  # only the kept triplet acts
