"""The evaluation orders: each taken where the rule says, each against finite differences, each keeping what it says."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from core.adapters import attach, plan, set_active, summary
from core.adapters.base import Factors, WeightMethod, kaiming
from core.adapters.cost import flops, saved_bytes
from core.adapters.methods.boft import BOFT
from core.adapters.methods.dora import DoRA
from core.adapters.methods.ia3 import IA3
from core.adapters.methods.lora import LoRA
from core.adapters.methods.miss import MiSS
from core.adapters.methods.oft import OFT
from core.adapters.methods.randlora import RandLoRA
from core.adapters.methods.shira import SHiRA
from core.adapters.sparse import BLOCK, sampled
from tests.core.adapters.hosts_under_test import One, relative

N, D, O, R = 40, 24, 32, 2


class FrozenA(WeightMethod):
    """LoRA of which B alone is trained."""

    def __init__(self, W, *, rank: int = R, dropout: float = 0.0):
        super().__init__()
        self.register_buffer("A", kaiming(rank, W.shape[1]).to(W))
        self.B = nn.Parameter(torch.randn(W.shape[0], rank).to(W) * 0.3)
        self.dropout = dropout

    def weight(self, W):
        return W + 2 * self.B @ self.A

    def factors(self):
        return Factors(self.A, self.B, 2.0, self.dropout if self.training else 0.0)

    def output(self, x, y, op, W, b):
        raise AssertionError("never the output form: both orders have thin gradients")

    def needs_output(self):
        return self.training and self.dropout > 0


class FrozenB(FrozenA):
    def __init__(self, W, *, rank: int = R):
        super().__init__(W, rank=rank)
        A, B = self.A, self.B.detach()
        del self.A, self.B
        self.A = nn.Parameter(A)
        self.register_buffer("B", B)


class Mirror(WeightMethod):
    """W (I - 2 v v^T / |v|^2): a change of the input alone."""

    def __init__(self, W):
        super().__init__()
        self.v = nn.Parameter(torch.randn(W.shape[1]).to(W))

    def into(self, x):
        u = self.v / self.v.norm()
        return x - 2 * (x @ u)[..., None] * u

    def weight(self, W):
        return self.into(W)


class Square(WeightMethod):
    """W * (1 + v v^T): nothing but a weight form."""

    def __init__(self, W):
        super().__init__()
        self.v = nn.Parameter(torch.randn(W.shape[0], 1).to(W))

    def weight(self, W):
        return W * (1 + 0.1 * self.v.square())


class Points(WeightMethod):
    """Numbers added at a few places."""

    def __init__(self, W):
        super().__init__()
        self.register_buffer("places", torch.randperm(W.numel())[:6].sort().values)
        self.v = nn.Parameter(torch.zeros(6).to(W))

    def weight(self, W):
        return W.flatten().index_add(0, self.places, self.v).view(W.shape)

    def sparse(self):
        return self.places, self.v


def adapted(method, layer=None, rows="layer", dtype=torch.float32, x=None, **options):
    """(model with one adapter, a batch); `rows` may name several ranges of one fused host."""
    torch.manual_seed(0)
    model = One((layer or nn.Linear(D, O)).to(dtype))
    x = torch.randn(N, D, dtype=dtype) if x is None else x.to(dtype)
    roles = {f"r{i}": pattern for i, pattern in enumerate([rows] if isinstance(rows, str) else rows)}
    attach(model, method, targets=list(roles), roles=roles, example=((x[:2],), {}), **options)
    with torch.no_grad():
        for slot in model._peft.slots.values():
            for p in slot.parameters():
                p += 0.1 * torch.randn_like(p)
    return model, x


FUSED = ["layer[0:8]", "layer[16:24]"]
SINGLE = {
    "merged": (LoRA, {"rank": R}, "layer", "merged > 27 rows", "LowRank"),
    "frozen A": (FrozenA, {}, "layer", "merged > 27 rows", "LowRank"),
    "frozen B": (FrozenB, {}, "layer", "merged > 27 rows", "LowRank"),
    "scaled": (IA3, {"side": "out"}, "layer", "scaled", "Addcmul"),
    "merged, scaled": (DoRA, {"rank": R}, "layer", "merged > 27 rows, scaled", "Addcmul"),
    "input": (Mirror, {}, "layer", "input", "Addmm"),
    "turned": (OFT, {"block": 4}, "layer", f"turned > {O} rows", "Turned"),
    "turned, scaled": (BOFT, {"block": 4, "factors": 2}, "layer", f"turned > {O} rows, scaled", "Addcmul"),
    "folded": (MiSS, {"rank": 5}, "layer", "merged > 27 rows", "LowRank"),
    "weight": (Square, {}, "layer", "weight", "InWeightSpace"),
    "sparse": (Points, {}, "layer", "sparse or weight", "Sparse"),
    "high rank": (LoRA, {"rank": 16}, "layer", "weight", "InWeightSpace"),
    "fused merged": (LoRA, {"rank": R}, FUSED, "merged > 27 rows", "LowRank"),
    "fused scaled": (IA3, {"side": "out"}, FUSED, "scaled", "Addcmul"),
    "fused merged, scaled": (DoRA, {"rank": R}, FUSED, "merged > 27 rows, scaled", "Addcmul"),
    "fused input": (Mirror, {}, FUSED, "input", "Cat"),
    "fused folded": (MiSS, {"rank": 2}, FUSED, "merged > 27 rows", "LowRank"),
    "fused turned": (OFT, {"block": 4}, FUSED, f"turned > {O} rows", "Turned"),
    "fused sparse": (Points, {}, FUSED, "sparse or weight", "Sparse"),
    "interleaved sparse": (Points, {}, ["layer[0:4*2]", "layer[4:8*2]"], "sparse or weight", "Sparse"),
    "fused weight": (Square, {}, FUSED, "weight", "InWeightSpace"),
}  # fmt: skip


@pytest.mark.parametrize("tokens", [4, N])  # factored, merged
@pytest.mark.parametrize("case", SINGLE)
def test_each_order_is_the_definition_in_double(case, tokens):
    method, options, rows, words, function = SINGLE[case]
    model, x = adapted(method, rows=rows, dtype=torch.float64, **options)
    assert {row.order for row in summary(model).rows} == {words}
    assert type(model(x).grad_fn).__name__.startswith(function)
    slot = next(iter(model._peft.slots.values()))
    if method is DoRA:  # its norm is a constant by definition; finite differences would see it move
        for part in slot.parts:
            one = slot.methods[part.method]
            norm = one.norm(part.op.matrix(model.layer.weight))
            one.norm = lambda W, norm=norm: norm
    x = x[:tokens].clone().requires_grad_()
    W = slot.matrix(model.layer.weight, slot.acting())
    assert relative(model(x), torch.nn.functional.linear(x, W, model.layer.bias)) <= 1e-12
    leaves = [p for p in slot.parameters() if p.requires_grad]
    assert torch.autograd.gradcheck(lambda x, *_: model(x), (x, *leaves), fast_mode=True)


@pytest.mark.parametrize("tokens", [1, BLOCK, 2 * BLOCK + 76])
def test_sampled_entries_are_those_of_the_dense_gradient(tokens):
    g, x = torch.randn(tokens, O, dtype=torch.float64), torch.randn(tokens, D, dtype=torch.float64)
    for places in (torch.tensor([0, 1, D, 5 * D + 3, O * D - 1]), torch.arange(O * D)):
        assert relative(sampled(g, x, places), (g.T @ x).flatten()[places]) <= 1e-14


def test_a_sparse_change_takes_the_products_of_its_places_and_keeps_x():
    model, x = adapted(Points)
    x.requires_grad_()
    assert saved_bytes(lambda: model(x), model) == 4 * N * D
    forward, backward = flops(lambda: model(x))
    assert (forward, backward) == (2 * N * D * O, 2 * N * D * O + 2 * N * 6)
    many, _ = adapted(SHiRA, rank=1)  # 56 of 768 places: 7 %
    few, _ = adapted(SHiRA, nn.Linear(96, 96), rank=1, x=torch.randn(N, 96))
    assert [summary(model).rows[0].order for model in (many, few)] == ["weight", "sparse or weight"]


def test_parts_of_one_host_keep_what_they_share_once():
    """MiSS folds x alike for q, k and v of one qkv."""
    model, x = adapted(MiSS, rows=FUSED, rank=R)
    assert saved_bytes(lambda: model(x), model) == 4 * N * R


@pytest.mark.parametrize("tokens", [4, N])
@pytest.mark.parametrize("method", [FrozenA, FrozenB])
def test_a_frozen_factor_gets_no_gradient_and_x_is_not_kept(method, tokens):
    """LoRA-FA's point: rank numbers per token, where LoRA keeps the input's width."""
    model, x = adapted(method)
    x = x[:tokens].clone()
    assert saved_bytes(lambda: model(x), model) == 4 * tokens * {FrozenA: R, FrozenB: D}[method]
    _, backward = flops(lambda: model(x))
    assert backward == 2 * tokens * R * {FrozenA: O, FrozenB: O + D}[method]


def test_a_wide_randlora_keeps_what_its_frozen_bases_make_of_x():
    """n r = 8 numbers a token of the 24 of x; a narrow one keeps x, and needs no product for it."""
    options = {"rank": 4, "alpha": 4.0}
    wide, x = adapted(RandLoRA, nn.Linear(D, 8), dtype=torch.float64, **options)
    narrow, _ = adapted(RandLoRA, **options)
    assert [summary(model).rows[0].order for model in (wide, narrow)] == ["merged > 12 rows", "weight"]
    assert saved_bytes(lambda: wide(x), wide) - saved_bytes(lambda: wide(x[:4]), wide) == 8 * (N - 4) * 8
    for tokens in (N, 4):
        x = x[:tokens].clone().requires_grad_()
        leaves = [p for p in wide._peft.parameters() if p.requires_grad]
        assert torch.autograd.gradcheck(lambda x, *_: wide(x), (x, *leaves), fast_mode=True)


def gradients_are_right(model, x):
    """In training, under one dropout mask, towards the input and B."""
    model.train()

    def run(x, B):
        torch.manual_seed(3)
        return model(x)

    B = next(p for p in model._peft.parameters())
    assert torch.autograd.gradcheck(run, (x.requires_grad_(), B), fast_mode=True)


def test_a_frozen_factor_under_dropout_keeps_the_mask_only_where_the_input_wants_a_gradient():
    model, x = adapted(FrozenA, dropout=0.25)
    model.train()
    assert saved_bytes(lambda: model(x), model) == 4 * N * R
    x.requires_grad_()
    assert saved_bytes(lambda: model(x), model) == 4 * N * R + N * D
    gradients_are_right(*adapted(FrozenA, dropout=0.25, dtype=torch.float64))


@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_a_frozen_factor_on_a_convolution(dropout):
    layer, x = nn.Conv2d(64, 64, 3, padding=1, bias=False), torch.randn(2, 64, 4, 4)
    model, x = adapted(FrozenA, layer, x=x, dropout=dropout)
    model.train()
    assert saved_bytes(lambda: model(x), model) == 4 * R * 2 * 16
    gradients_are_right(*adapted(FrozenA, layer, x=x, dropout=dropout, dtype=torch.float64))


def test_a_fused_host_makes_one_product_whatever_acts_on_its_rows():
    """q, k and v of one qkv: IA3 keeps the product and its own gain, nothing per role."""
    model, x = adapted(IA3, nn.Linear(D, 3 * D, bias=False), [f"layer[{i}/3]" for i in range(3)], side="out")
    assert saved_bytes(lambda: model(x), model) < 1.1 * 4 * N * 3 * D


def test_lookups_never_build_the_table():
    torch.manual_seed(0)
    model, x = One(nn.Embedding(5000, D)), torch.randint(5000, (N,))
    attach(model, LoRA, targets=["e"], roles={"e": "layer"}, example=((x,), {}), rank=R)
    assert {row.order for row in summary(model).rows} == {"output"}
    assert saved_bytes(lambda: model(x), model) < 4 * 5000 * R


def test_sums_on_the_same_rows_are_merged_or_in_weight_space():
    model, x = adapted(LoRA, rank=R)
    attach(model, IA3, targets=["r0"], name="second", side="out")
    set_active(model, ["default", "second"])
    assert type(model(x).grad_fn).__name__.startswith("InWeightSpace")
    set_active(model, {"default": 0.5})
    assert type(model(x).grad_fn).__name__.startswith("LowRank")


def test_the_plan_says_the_same_and_the_table_shows_it():
    model, x = adapted(LoRA, rank=R)
    fresh = One(nn.Linear(D, O))
    found = plan(fresh, "lora", targets=["r"], roles={"r": "layer"}, example=((x,), {}), rank=R)
    assert [row.order for row in found.rows] == [row.order for row in summary(model).rows] == ["merged > 27 rows"]
    assert "merged > 27 rows" in str(found) and "order" in str(found).splitlines()[0]
