"""Kronecker, Hadamard, spectral, sparse, orthogonal and scaling methods: closed forms, counts, Hugging Face peft."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from core.adapters import attach
from core.adapters.cost import saved_bytes
from core.adapters.methods.boft import BOFT
from core.adapters.methods.hra import HRA
from core.adapters.methods.oft import OFT
from tests.core.adapters.hosts_under_test import relative, shaken
from tests.core.adapters.test_counts import count


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


class Net(nn.Module):
    roles = {"fc": "fc"}

    def __init__(self, fc: nn.Module):
        super().__init__()
        self.fc = fc

    def forward(self, x):
        return self.fc(x)


def orthogonal(R) -> float:
    """max |R R^T - I|"""
    return float((R @ R.mT - torch.eye(R.shape[-1])).detach().abs().max())


# Orthogonal ----------------------------------------------------------------------------------------------------------


def skewed(v, block: int):
    """Upper triangles, number by number."""
    Q = torch.zeros(len(v), block, block)
    for k, row in enumerate(v.detach()):
        numbers = iter(row.tolist())
        for i in range(block):
            for j in range(i + 1, block):
                Q[k, i, j] = next(numbers)
                Q[k, j, i] = -Q[k, i, j]
    return Q


def rotations(v, block: int):
    """Cayley's formula with an explicit inverse."""
    Q, I = skewed(v, block), torch.eye(block)
    return torch.stack([torch.linalg.inv(I + q) @ (I - q) for q in Q])


def test_oft_is_cayleys_formula():
    W = torch.randn(5, 12)
    m = shaken(OFT(W, block=4), by=0.5)
    R = torch.block_diag(*rotations(m.Q, 4))
    assert relative(m.weight(W), W @ R.T) <= 1e-5  # measured 6e-7
    out = shaken(OFT(W.T, block=4, side="out"), by=0.5)
    R = torch.block_diag(*rotations(out.Q, 4))
    assert relative(out.weight(W.T), R.T @ W.T) <= 1e-5


def test_exact_rotations_stay_orthogonal_and_the_series_does_not():
    W = torch.randn(8, 64)
    exact = shaken(OFT(W), by=1.0)
    series = OFT(W, cayley="neumann")
    series.Q.data = exact.Q.data * 0.005
    assert orthogonal(exact.rotation()) <= 1e-4  # measured 2e-6
    assert orthogonal(series.rotation()) <= 1e-4
    near = OFT(W)
    near.Q.data = series.Q.data
    assert relative(series.rotation(), near.rotation()) <= 1e-4  # the same rotation while Q is small
    series.Q.data = exact.Q.data * 0.2
    assert orthogonal(series.rotation()) > 0.1  # HF peft's default, at the same skew


def butterfly(m: BOFT, width: int):
    """R_m ... R_1 as dense matrices with the permutations written out place by place."""
    R, half = torch.eye(width), m.block // 2
    for j, v in enumerate(m.Q):
        places = []  # the places of block 0, of block 1, ...
        for start in range(0, width // half, 2 << j):
            for k in range(1 << j):
                for h in (start + k, start + k + (1 << j)):
                    places += range(h * half, (h + 1) * half)
        P = torch.eye(width)[places]
        R = P.T @ torch.block_diag(*rotations(v, m.block)) @ P @ R
    return R


@pytest.mark.parametrize("factors", [1, 2, 3, 4])
def test_boft_is_its_product_of_sparse_rotations(factors):
    """All factors: every input reaches every output, and R stays orthogonal."""
    W = torch.randn(5, 32)
    m = shaken(BOFT(W, block=4, factors=factors), by=0.5)
    R = butterfly(m, 32)
    assert relative(m.weight(W), torch.diag(m.c) @ W @ R.T) <= 1e-5
    assert orthogonal(m.rotation()) <= 1e-5
    window = 4 << factors - 1
    assert torch.equal(R != 0, torch.block_diag(*[torch.ones(window, window)] * (32 // window)).bool())


def test_hra_is_its_chain_of_reflections():
    W = torch.randn(5, 12)
    m = shaken(HRA(W, rank=6), by=0.5)
    H = torch.eye(12)
    for u in m.U.detach():
        H = H @ (torch.eye(12) - 2 * torch.outer(u, u) / (u @ u))
    assert relative(m.weight(W), W @ H) <= 1e-5
    assert orthogonal(H) <= 1e-5
    out = HRA(W.T, rank=6, side="out")
    out.U.data = m.U.data
    assert relative(out.weight(W.T), H @ W.T) <= 1e-5


def test_hra_penalty_is_zero_for_orthogonal_planes_alone():
    m = HRA(torch.randn(3, 8), rank=4, orthogonality=0.5)
    assert torch.allclose(m.penalty(), torch.tensor(0.5 * 4), rtol=0.5) and m.penalty() > 1  # the pairs at the start
    m.U.data = 3 * torch.linalg.qr(torch.randn(8, 4)).Q.T
    assert m.penalty() <= 1e-10
    assert HRA(torch.randn(3, 8)).penalty() is None


@pytest.mark.parametrize(
    ("cls", "options", "expected"),
    [(OFT, {"block": 4}, "block=2 3 6"), (BOFT, {"block": 2, "factors": 3, "scale": True}, "block=2 3 6"),
     (BOFT, {"block": 3, "factors": 2, "scale": True}, "even"), (HRA, {"rank": 3, "orthogonality": 0.0}, "even")],
)  # fmt: skip
def test_what_does_not_fit_is_refused(cls, options, expected):
    """HF peft changes the block, or starts away from the identity."""
    given = {"side": "in", "cayley": "exact", **options}
    assert expected in cls.refuses("Linear", (4, 6), given)
    assert cls is BOFT or "side=out" in cls.refuses("Embedding", (4, 8), {**given, "block": 2, "rank": 2})


@pytest.mark.parametrize(("cls", "options"), [(OFT, {}), (BOFT, {"scale": False}), (HRA, {})], ids=lambda v: str(v))
def test_a_turned_input_keeps_no_more_than_lora(cls, options):
    """x alone: W' and its gradient are never made."""
    kept = {}
    for name, more in ((cls.__name__.lower(), options), ("lora", {})):
        net = Net(nn.Linear(256, 256))
        attach(net, name, targets="fc", roles=net.roles, example=((torch.randn(2, 256),), {}), **more)
        x = torch.randn(64, 256, requires_grad=True)
        kept[name] = saved_bytes(lambda net=net, x=x: net(x).sum(), net)
    small = 4 * 64 * 8 + 40 * 1024 * 8  # a product of rank 8; what makes R of 8 blocks of 32
    assert kept[cls.__name__.lower()] <= kept["lora"] + small


# Counts --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        # DeBERTa-v3-base, all linear layers of 12 blocks: the rotations' own numbers
        (lambda: count("boft", *[(768, 768)] * 4, (3072, 768), (768, 3072), scale=False, copies=12), 580_608),
        (lambda: count("oft", *[(768, 768)] * 4, (3072, 768), (768, 3072), block=16, copies=12), 622_080),
        (lambda: count("hra", (4096, 11008), rank=8), 8 * 11008),
    ],
)
def test_counts(ours, expected):
    assert ours() == expected
