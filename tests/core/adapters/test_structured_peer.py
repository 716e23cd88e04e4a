"""Kronecker, Hadamard, spectral, sparse and orthogonal methods beside Hugging Face peft, where both mean the same."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from core.adapters.hosts import op_for
from core.adapters.methods.boft import BOFT
from core.adapters.methods.fourierft import FourierFT
from core.adapters.methods.hra import HRA
from core.adapters.methods.loha import LoHa
from core.adapters.methods.lokr import LoKr
from core.adapters.methods.oft import OFT
from core.adapters.methods.shira import SHiRA
from tests.core.adapters.hosts_under_test import relative
from tests.core.adapters.test_structured import Net


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def theirs(config: str, host: nn.Module, x, by: float = 0.1, **options):
    """(outputs of HF's adapter on a copy of `host`, shaken; its module)"""
    peft = pytest.importorskip("peft")
    wrapped = Net(copy.deepcopy(host))
    model = peft.get_peft_model(wrapped, getattr(peft, config)(target_modules=["fc"], **options))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += by * torch.randn(p.shape, generator=generator)
    return model.eval()(x).detach(), model.base_model.model.fc


def assert_equal(m, host: nn.Module, x, expected):
    op = op_for(host, "weight")
    assert relative(op.apply(x, m.weight(op.matrix(host.weight)), host.bias), expected) <= 1e-5
    assert relative(host(x), expected) > 1e-3  # the adapter did something


HOSTS = {
    "linear": (lambda: nn.Linear(24, 16), torch.randn(3, 24)),
    "conv2d": (lambda: nn.Conv2d(8, 16, 3, stride=2, padding=1), torch.randn(2, 8, 6, 6)),
    "conv2d_1x1": (lambda: nn.Conv2d(24, 16, 1), torch.randn(2, 24, 3, 3)),
}
EVERY, POINTWISE = list(HOSTS), ["linear", "conv2d_1x1"]


def host_of(kind: str):
    """(host, its matrix, an input)"""
    make, x = HOSTS[kind]
    host = make().requires_grad_(False)
    return host, host.weight.flatten(1), x


@pytest.mark.parametrize("kind", EVERY)
def test_loha_equals_hf(kind):
    host, W, x = host_of(kind)
    expected, hf = theirs("LoHaConfig", host, x, r=4, alpha=6)
    m = LoHa(W, rank=4, alpha=6)
    for name, pair in {"B1": "w1_a", "A1": "w1_b", "B2": "w2_a", "A2": "w2_b"}.items():
        getattr(m, name).data = getattr(hf, f"hada_{pair}")["default"].data
    assert_equal(m, host, x, expected)


@pytest.mark.parametrize("kind", EVERY)
@pytest.mark.parametrize("rank", [2, 18])
def test_lokr_equals_hf(kind, rank):
    """HF divides the channels of a 3 x 3 kernel, here 8 = 2 x 4: `factor` 2 divides their taps in the same way."""
    host, W, x = host_of(kind)
    expected, hf = theirs("LoKrConfig", host, x, r=rank, alpha=6, decompose_factor=2)
    m = LoKr(W, rank=rank, alpha=6, factor=2)
    m.C.data = hf.lokr_w1["default"].data
    if m.thin:
        m.B.data, m.A.data = hf.lokr_w2_a["default"].data, hf.lokr_w2_b["default"].data
    else:
        m.D.data = hf.lokr_w2["default"].data.flatten(1)
    assert_equal(m, host, x, expected)


def test_fourierft_equals_hf():
    """Places too, from the same seed; alpha is theirs over sqrt(out in)."""
    host, W, x = host_of("linear")
    expected, hf = theirs("FourierFTConfig", host, x, n_frequency=50, scaling=30.0, random_loc_seed=7)
    m = FourierFT(W, frequencies=50, alpha=30.0 / (24 * 16) ** 0.5, projection_seed=7)
    m.s.data = hf.fourierft_spectrum["default"].data
    assert_equal(m, host, x, expected)


def test_shira_equals_hf():
    """Places too, from the same seed."""
    host, W, x = host_of("linear")
    expected, hf = theirs("ShiraConfig", host, x, r=2, random_seed=7)
    m = SHiRA(W, rank=2, projection_seed=7)
    m.v.data = hf.shira_weight["default"].data
    assert_equal(m, host, x, expected)


@pytest.mark.parametrize("kind", POINTWISE)
@pytest.mark.parametrize("cayley", ["exact", "neumann"])
def test_oft_equals_hf(kind, cayley):
    """HF's series turns the other way than its exact formula; its 3 x 3 kernels are not the identity at the start."""
    host, W, x = host_of(kind)
    series = cayley == "neumann"
    expected, hf = theirs("OFTConfig", host, x, oft_block_size=4, use_cayley_neumann=series)
    m = OFT(W, block=4, cayley=cayley)
    m.Q.data = hf.oft_R["default"].weight.data * (-1 if series else 1)
    assert_equal(m, host, x, expected)


def test_oft_turns_embeddings_as_hf():
    host, x = nn.Embedding(9, 8).requires_grad_(False), torch.arange(9)
    expected, hf = theirs("OFTConfig", host, x, oft_block_size=4, use_cayley_neumann=False)
    m = OFT(host.weight.T, block=4, side="out")
    m.Q.data = hf.oft_embedding_R["default"].weight.data
    assert relative(m.weight(host.weight.T).T[x], expected) <= 1e-5


@pytest.mark.filterwarnings("ignore")  # of the missing CUDA compiler
@pytest.mark.parametrize("kind", EVERY)
def test_boft_equals_hf_with_one_factor(kind):
    """HF has no more than one without a CUDA compiler."""
    host, W, x = host_of(kind)
    expected, hf = theirs("BOFTConfig", host, x, boft_block_size=4)
    m = BOFT(W, block=4, factors=1)
    square = hf.boft_R["default"].data[0]
    rows, columns = torch.triu_indices(4, 4, 1)
    m.Q.data = ((square - square.mT) / 2)[None, :, rows, columns]
    m.c.data = hf.boft_s["default"].data.flatten()
    assert_equal(m, host, x, expected)


@pytest.mark.parametrize("factors", [2, 3])
def test_boft_pairs_the_places_that_hf_pairs(factors):
    layer = pytest.importorskip("peft.tuners.boft.layer")
    m = BOFT(torch.randn(3, 32), block=4, factors=factors)
    for j in range(factors):
        expected = layer.BOFTLayer.block_butterfly_perm(None, 32, 8 >> j, 2, factors - 1)
        window = 4 << factors - 1
        mine = torch.cat([m.places(j, window) + start for start in range(0, 32, window)])
        assert torch.equal(mine, expected.argsort())  # HF's are those of P^T


@pytest.mark.parametrize("kind", EVERY)
def test_hra_equals_hf(kind):
    host, W, x = host_of(kind)
    expected, hf = theirs("HRAConfig", host, x, r=4)
    m = HRA(W, rank=4)
    m.U.data = hf.hra_u["default"].data.T
    assert_equal(m, host, x, expected)
