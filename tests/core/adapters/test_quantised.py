"""4-bit bases: their levels, what they lose, and adapters beside them: as beside plain layers of the same values, to
the bit and without a copy of W."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from core.adapters import (
    attach,
    cost,
    dequantise,
    detach,
    export_peft,
    import_peft,
    load_adapter,
    merge,
    plan,
    quantise,
    save_adapter,
    summary,
)
from core.adapters.cost import saved_bytes
from core.adapters.quantised import BLOCK, LEVELS, QuantisedLinear, decode, encode
from core.errors import AdapterError, ConfigError, MergeError, UnsupportedError
from tests.core.adapters.hosts_under_test import relative

METHODS = {
    "lora": ("lora", {"rank": 4}), "dropout": ("lora", {"rank": 4, "dropout": 0.25}), "dora": ("dora", {"rank": 4}),
    "read elsewhere": ("lora", {"rank": 4, "path": "weight"}), "ia3": ("ia3", {}), "oft": ("oft", {"block": 4}),
    "shira": ("shira", {"rank": 2}), "lokr": ("lokr", {}), "bias": ("bias", {"targets": ["attn.q"]}),
}  # fmt: skip


class Net(nn.Module):
    """A fused projection, a layer without bias, one that no role names, and a tied one."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.qkv, self.out = nn.Embedding(11, 24), nn.Linear(24, 48), nn.Linear(16, 24, bias=False)
        self.last, self.tied = nn.Linear(24, 5), nn.Linear(24, 11, bias=False)
        self.tied.weight = self.embed.weight
        self.roles = {
            "attn.q": "qkv[0/3]", "attn.k": "qkv[1/3]", "attn.v": "qkv[2/3]", "attn.out": "out", "mlp.out": "tied",
        }  # fmt: skip
        self.example = (torch.arange(14).view(2, 7) % 11,), {}

    def forward(self, x):
        q, k, v = self.qkv(self.embed(x)).chunk(3, -1)
        h = self.out(q.tanh() * k + v)
        return self.last(h) + self.tied(h).mean(-1, keepdim=True)


def pair(method: str | None = None, **options) -> tuple[nn.Module, nn.Module]:
    """(a 4-bit network, its plain twin), one adapter on each, shaken alike."""
    coded = Net()
    quantise(coded)
    both = coded, dequantise(copy.deepcopy(coded))
    for model in both if method else ():
        attach(model, method, **{"targets": ["attn.q", "attn.v", "attn.out"], "seed": 0, **options})
        torch.manual_seed(1)
        with torch.no_grad():
            for p in model._peft.parameters():
                p += 0.1 * torch.randn_like(p)
    return both


@pytest.fixture
def x():
    return torch.randint(11, (40, 7), generator=torch.Generator().manual_seed(2))


def test_levels_are_quantiles_of_the_normal_distribution():
    """Eight probabilities above one half and seven below, equally spaced from one half to `most`, which is the mean of
    1 - 1 / 32 and 1 - 1 / 30, half a step from 1 at 16 and at 15 levels."""
    most = 1 - (1 / 32 + 1 / 30) / 2
    above = torch.special.ndtri(torch.linspace(0.5, most, 9, dtype=torch.float64))
    below = -torch.special.ndtri(torch.linspace(0.5, most, 8, dtype=torch.float64))
    expected = torch.cat([below[1:].flip(0), above]) / above[-1]
    assert torch.allclose(LEVELS.double(), expected, atol=1e-6, rtol=0)


@given(
    shape=st.lists(st.integers(1, 40), min_size=1, max_size=3).map(tuple),
    scale=st.sampled_from([0.0, 1e-20, 1e-3, 1.0, 1e6]),
    seed=st.integers(0, 99),
)
def test_every_weight_goes_to_its_nearest_level(shape, scale, seed):
    W = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale
    codes, scales = encode(W)
    blocks = -(-W.numel() // BLOCK)
    assert (codes.dtype, codes.shape, scales.shape) == (torch.uint8, (32 * blocks,), (blocks,))
    found = decode(codes, scales, shape)
    own = scales.repeat_interleave(BLOCK)[: W.numel()]
    best = (W.flatten()[:, None] - own[:, None] * LEVELS).abs().amin(1)
    assert torch.allclose((W - found).flatten().abs(), best, atol=1e-6 * scale, rtol=0)
    again = decode(*encode(found), shape)
    assert torch.equal(again, found)


def test_a_normal_weight_loses_nine_per_cent_in_four_and_a_half_bits():
    W = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    codes, scales = encode(W)
    assert 8 * (codes.nbytes + scales.nbytes) == 4.5 * W.numel()
    assert 0.08 < (decode(codes, scales, W.shape) - W).norm() / W.norm() < 0.1  # 4-bit integers: 0.13


def test_plain_layers_of_the_body_alone_change():
    model = Net()
    assert quantise(model) == ["qkv", "out"]
    assert type(model.last) is type(model.tied) is nn.Linear and type(model.qkv) is QuantisedLinear
    assert {
        "qkv.codes",
        "qkv.scales",
        "qkv.bias",
    } <= model.state_dict().keys() and "qkv.weight" not in model.state_dict()


@pytest.mark.parametrize("case", METHODS)
def test_an_adapter_beside_four_bits_is_that_beside_their_values(case, x):
    method, options = METHODS[case]
    coded, plain_ = pair(method, **options)
    assert [r.order for r in summary(coded).rows] == [r.order for r in summary(plain_).rows]
    found = []
    for model in (coded, plain_):
        model.train()
        torch.manual_seed(3)
        y = model(x)
        found.append([y, *torch.autograd.grad(y.square().sum(), list(model._peft.parameters()))])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert saved_bytes(lambda: coded(x), coded) <= saved_bytes(lambda: plain_(x), plain_)  # no copy of W is kept
    assert cost(coded).total == cost(plain_).total == sum(p.numel() for p in Net().parameters())


def test_copies_and_pickles_and_detaching(x):
    coded, plain_ = pair("lora", rank=4)
    for model in (copy.deepcopy(coded), pickle.loads(pickle.dumps(coded))):
        assert torch.equal(model(x), coded(x))
    detach(coded), detach(plain_)
    assert type(coded.qkv) is QuantisedLinear and torch.equal(coded(x), plain_(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_to_another_dtype_is_the_weights_alone(dtype, x):
    coded, plain_ = (model.to(dtype) for model in pair("lora", rank=4))
    assert coded.qkv.scales.dtype == torch.float32 and coded.qkv.weight.dtype == dtype
    assert torch.equal(coded.float().qkv.weight, pair()[0].qkv.weight)
    assert relative(coded.to(dtype)(x), plain_(x)) <= 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("case", METHODS)
def test_autocast(case, x):
    method, options = METHODS[case]
    found = []
    for model in pair(method, **options):
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16):
            y = model(x)
        found.append([y, *torch.autograd.grad(y.float().square().sum(), list(model._peft.parameters()))])
    assert all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_checkpointing(x):
    from torch.utils.checkpoint import checkpoint

    coded, _ = pair("lora", rank=4)
    grads = []
    for run in (coded, lambda x: checkpoint(coded, x, use_reentrant=False)):
        grads.append(torch.autograd.grad(run(x).square().sum(), list(coded._peft.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_compile(x):
    coded, _ = pair("lora", rank=4)
    assert relative(torch.compile(coded, fullgraph=True)(x), coded(x)) <= 1e-5


def test_merging_wants_plain_layers_and_gets_them_with_the_adapter_on(x):
    coded, _ = pair("lora", rank=4)
    coded.eval()
    before, state = coded(x), {k: t.clone() for k, t in coded.state_dict().items()}
    with pytest.raises(MergeError, match="dequantise"):
        merge(coded)
    assert all(torch.equal(t, state[k]) for k, t in coded.state_dict().items())
    assert torch.equal(dequantise(coded)(x), before)
    assert merge(coded).max_error <= 1e-5 and relative(coded(x), before) <= 1e-5


def test_files_know_their_base(tmp_path, x):
    coded, _ = pair("lora", rank=4)
    save_adapter(coded, tmp_path / "own")
    fresh, _ = pair()
    load_adapter(fresh, tmp_path / "own")
    assert torch.equal(fresh(x), coded(x))
    with pytest.raises(AdapterError):
        load_adapter(dequantise(pair()[0]), tmp_path / "own")
    export_peft(coded, tmp_path / "peft")
    other, _ = pair()
    import_peft(other, tmp_path / "peft")
    assert relative(other(x), coded(x)) <= 1e-5


@pytest.mark.parametrize("method", ["full", "last_k", "attention_only"])
def test_selections_of_matrices_are_refused(method):
    coded, _ = pair()
    coded.roles = {**coded.roles, "block": "out"}
    with pytest.raises(UnsupportedError, match="4-bit"):
        attach(coded, method)
    assert "_peft" not in coded._modules


def test_biases_train_beside_four_bits():
    coded, _ = pair()
    attach(coded, "bitfit")
    assert cost(coded).trainable == 48 + 5


def test_what_cannot_be_quantised_is_refused_before_anything_changes():
    model = Net()
    attach(model, "lora", targets=["attn.out"], rank=2)
    with pytest.raises(ConfigError, match="before attach"):
        quantise(model)
    broken = Net()
    with torch.no_grad():
        broken.out.weight[0, 0] = float("nan")
    with pytest.raises(ConfigError, match="out"):
        quantise(broken)
    assert type(broken.qkv) is type(broken.out) is nn.Linear
    images = nn.Module()
    images.conv, images.roles = nn.Conv2d(3, 3, 3), {"conv": "conv"}
    with pytest.raises(UnsupportedError, match="Conv2d"):
        quantise(images)


def test_the_plan_counts_weights_and_not_codes():
    coded, plain_ = pair()
    assert plan(coded, "lora", rank=2).base == plan(plain_, "lora", rank=2).base
