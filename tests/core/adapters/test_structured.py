"""Kronecker, Hadamard, spectral, sparse, orthogonal and scaling methods: closed forms, starts, counts, training."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from core.adapters import attach
from core.adapters.cost import saved_bytes
from core.adapters.methods.boft import BOFT
from core.adapters.methods.fourierft import FourierFT
from core.adapters.methods.hra import HRA
from core.adapters.methods.loha import LoHa
from core.adapters.methods.lokr import LoKr, divided, plus_product
from core.adapters.methods.oft import OFT
from core.adapters.methods.shira import SHiRA
from core.adapters.methods.ssf import SSF
from core.adapters.rotation import in_blocks, reflected
from tests.core.adapters.hosts_under_test import relative, shaken
from tests.core.adapters.test_counts import bottlenecks, count


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


@pytest.mark.parametrize(
    ("product", "formula", "shapes"),
    [
        (in_blocks, lambda x, R: x @ torch.block_diag(*R), [(2, 5, 12), (3, 4, 4)]),
        (reflected, lambda x, U, V: x - x @ U @ V.T, [(2, 5, 6), (6, 2), (6, 2)]),
        (plus_product, lambda x, y, C, D: y + x @ torch.kron(C, D).T, [(2, 5, 6), (2, 5, 8), (4, 2), (2, 3)]),
    ],
    ids=["in_blocks", "reflected", "plus_product"],
)
def test_products_and_their_gradients_in_double(product, formula, shapes):
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    assert relative(product(*inputs), formula(*inputs)) <= 1e-14
    assert torch.autograd.gradcheck(product, inputs)


def test_products_under_autocast_take_the_hosts_dtype_and_give_fp32_gradients():
    net = Net(nn.Linear(64, 64))
    for name in ("oft", "hra", "lokr"):
        model = attach(copy.deepcopy(net), name, targets="fc", roles=net.roles, example=((torch.randn(2, 64),), {}))
        shaken(model._peft, by=0.1)
        x = torch.randn(5, 64, requires_grad=True)
        exact = model(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = model(x)
        y.float().sum().backward()
        grads = [p.grad for p in model.parameters() if p.requires_grad]
        assert y.dtype == torch.bfloat16 and 0 < relative(y.float(), exact) <= 0.03, name
        assert all(g.dtype == torch.float32 and g.abs().max() > 0 for g in grads), name


# Kronecker, Hadamard, spectral, sparse -------------------------------------------------------------------------------


def test_loha_is_a_product_of_two_low_ranks():
    W = torch.randn(6, 5)
    m = shaken(LoHa(W, rank=2, alpha=3.0), by=0.5)
    change = torch.zeros(6, 5)
    for p in range(2):  # (sum_p b1 a1)(sum_q b2 a2) = sum_pq (b1 b2)(a1 a2): r^2 products of vectors
        for q in range(2):
            change += torch.outer(m.B1[:, p] * m.B2[:, q], m.A1[p] * m.A2[q]).detach()
    assert relative(m.weight(W), W + 1.5 * change) <= 1e-6
    assert torch.linalg.matrix_rank(m.weight(W) - W) == 4


@pytest.mark.parametrize("rank", [1, 8])
def test_lokr_is_its_kronecker_product(rank):
    W = torch.randn(12, 8)
    m = shaken(LoKr(W, rank=rank, alpha=2.0), by=0.5)
    assert m.thin == (rank == 1) and m.C.shape == (3, 2)
    D = m.B @ m.A if m.thin else m.D
    blocks = [torch.cat([c * D for c in row], 1) for row in m.C]  # block (i, j) is C_ij D
    assert relative(m.weight(W), W + 2.0 / rank * torch.cat(blocks)) <= 1e-6


def test_lokr_divides_near_the_square_root():
    assert [divided(n, -1) for n in (256, 128, 127, 768)] == [(16, 16), (8, 16), (1, 127), (24, 32)]
    assert [divided(128, f) for f in (4, 3, 32)] == [(4, 32), (2, 64), (32, 4)]


@pytest.mark.parametrize("shape", [(6, 8), (5, 7), (8, 5), (1, 4)])
def test_fourierft_is_the_real_part_of_an_inverse_transform(shape):
    """Odd, even and single rows: half a transform gives the whole one, forwards and backwards."""
    W = torch.randn(shape)
    m = shaken(FourierFT(W, frequencies=4, alpha=0.7), by=1.0)
    S = torch.zeros(shape).flatten()
    S[m.places] = m.s.detach()
    S = S.view(shape).requires_grad_()
    expected = W + 0.7 * torch.fft.ifft2(S, norm="ortho").real
    assert relative(m.weight(W), expected) <= 1e-6
    g = torch.randn(shape)
    (mine,), (plain,) = torch.autograd.grad(m.weight(W), m.s, g), torch.autograd.grad(expected, S, g)
    assert relative(mine, plain.flatten()[m.places]) <= 1e-5


def test_fourierft_changes_are_as_long_in_every_layer():
    """|change| = alpha |s| / sqrt 2, up to the pairs that fall on one frequency, whatever the layer's size."""
    for width in (64, 256):
        W = torch.zeros(width, width)
        m = FourierFT(W, frequencies=500, alpha=3.0)
        m.s.data = torch.randn(500)
        assert abs(float((m.weight(W).norm() / (3 * m.s.norm())).detach()) * 2**0.5 - 1) < 0.15


def test_shira_touches_its_places_alone():
    W = torch.randn(9, 7)
    for mask in ("random", "magnitude", "struct"):
        m = SHiRA(W, rank=1, mask=mask)
        m.v.data = torch.arange(1.0, len(m.v) + 1)
        change = m.weight(W).detach() - W
        assert torch.allclose(change[change != 0], m.v, atol=1e-5), mask
        if mask == "struct":
            expected = torch.eye(9, 7)
            expected[0] = expected[:, 0] = 1
            assert torch.equal(change != 0, expected.bool())
        else:
            assert len(m.v) == 16
        if mask == "magnitude":
            assert W[change != 0].abs().min() >= W[change == 0].abs().max()


def test_places_come_from_the_seed():
    W = torch.randn(30, 20)
    for cls, options in ((SHiRA, {"rank": 2}), (FourierFT, {"frequencies": 100})):
        m, same, other = (cls(W, projection_seed=seed, **options).places for seed in (3, 3, 4))
        assert torch.equal(m, same) and not torch.equal(m, other) and len(m.unique()) == 100
        assert not any("places" in key for key in cls(W, **options).state_dict())
    assert "places" in SHiRA(W, mask="magnitude").state_dict()


def test_what_is_larger_than_every_layer_is_refused():
    """One preset serves a small first layer too, but a change of the size of a network is another method."""
    assert FourierFT(torch.randn(3, 4)).s.shape == SHiRA(torch.randn(3, 4)).v.shape == (12,)
    assert "1 to 16" in FourierFT.refuses_all([(3, 4), (4, 4)], {"frequencies": 17})
    assert FourierFT.refuses_all([(3, 4), (4, 4)], {"frequencies": 16}) == ""
    assert "1 to 4" in SHiRA.refuses_all([(4, 9)], {"rank": 5}) and SHiRA.refuses_all([(4, 9)], {"rank": 4}) == ""
    assert "factor 0" in LoKr.refuses("Linear", (4, 4), {"rank": 2, "factor": 0})
    assert "lora" in LoHa.refuses("Embedding", (4, 9), {"rank": 2})


def test_lokr_keeps_x_alone():
    """Neither kron(C, D), nor D x, which is as large as x."""
    net = Net(nn.Linear(256, 256))
    attach(net, "lokr", targets="fc", roles=net.roles, example=((torch.randn(2, 256),), {}))
    x = torch.randn(64, 256, requires_grad=True)
    kept = saved_bytes(lambda: net(x), net)
    assert 4 * 64 * 256 <= kept <= 4 * (64 * 256 + 4 * 16 * 16)


# Scaling -------------------------------------------------------------------------------------------------------------


def test_ssf_scales_and_shifts_channels_and_would_fold():
    m = shaken(SSF(6), by=0.5)
    host, x = nn.Linear(4, 6), torch.randn(3, 4)
    folded = torch.diag(m.g) @ host.weight, m.g * host.bias + m.b
    assert relative(m(host(x), x), nn.functional.linear(x, *folded)) <= 1e-6
    image = torch.randn(2, 6, 3, 3)
    m.axis = 1
    assert relative(m(image, image), torch.stack([image[:, c] * m.g[c] + m.b[c] for c in range(6)], 1)) <= 1e-6
    assert torch.equal(SSF(6, axis=1)(image, image), image)


def test_ssf_covers_every_layer_and_norm_by_default():
    class Block(nn.Module):
        roles = {"attn.q": "qkv[0/3]", "attn.k": "qkv[1/3]", "attn.v": "qkv[2/3]", "norm": "norm"}

        def __init__(self):
            super().__init__()
            self.norm, self.qkv = nn.LayerNorm(4), nn.Linear(4, 12)

        def forward(self, x):
            return self.qkv(self.norm(x))

    net, x = Block(), torch.randn(2, 3, 4)
    before = net(x)
    attach(net, "ssf", roles=net.roles, example=((x,), {}))
    found = [name for name, p in net.named_parameters() if p.requires_grad]
    assert sum(net.get_parameter(name).numel() for name in found) == 2 * (4 + 12)
    assert torch.equal(net(x), before)


# Training ------------------------------------------------------------------------------------------------------------

EACH = {
    "loha": [{}], "lokr": [{}, {"rank": 1}], "fourierft": [{}],
    "shira": [{}, {"mask": "magnitude"}, {"mask": "struct"}],
    "oft": [{}, {"cayley": "neumann"}, {"side": "out"}], "boft": [{}, {"scale": False}], "hra": [{}, {"side": "out"}],
    "ssf": [{"targets": ["mlp.in", "mlp.out"]}],
}  # fmt: skip


@pytest.mark.parametrize(("name", "options"), [(name, o) for name, every in EACH.items() for o in every], ids=str)
def test_training_lowers_the_loss(name, options):
    """Of a network that shall do what another one does; the base does not move."""
    net, other = (Net(nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))) for _ in range(2))
    x = torch.randn(64, 32)
    y = other(x).detach()
    base = copy.deepcopy(net.state_dict())
    options = {"targets": "all", **options}
    attach(net, name, roles={"mlp.in": "fc.0", "mlp.out": "fc.2"}, example=((x,), {}), **options)
    optimiser = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(40):
        loss = (net(x) - y).square().mean()
        losses.append(float(loss.detach()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < 0.97 * losses[0]
    assert all(torch.equal(tensor, base[key]) for key, tensor in net.state_dict().items() if key in base)


# Counts --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        # DeBERTa-v3-base, all linear layers of 12 blocks: the rotations' own numbers
        (lambda: count("boft", *[(768, 768)] * 4, (3072, 768), (768, 3072), scale=False, copies=12), 580_608),
        (lambda: count("oft", *[(768, 768)] * 4, (3072, 768), (768, 3072), block=16, copies=12), 622_080),
        # FourierFT, arXiv 2405.03003: RoBERTa-base and large, q and v
        (lambda: count("fourierft", *[(768, 768)] * 2, frequencies=1000, copies=12), 24_000),
        (lambda: count("fourierft", *[(1024, 1024)] * 2, frequencies=1000, copies=24), 48_000),
        # SSF, arXiv 2210.08823: ViT-B's patch embedding, 12 blocks, last norm and a head of 100 classes, 0.28 M
        (lambda: bottlenecks("ssf", 768, 2304, 768, 768, 3072, 768, copies=12) + 4 * 768 + 769 * 100, 282_724),
        (lambda: count("loha", (3072, 768), rank=4), 2 * 4 * (3072 + 768)),
        (lambda: count("lokr", (768, 768), rank=15), 24 * 24 + 15 * (32 + 32)),
        (lambda: count("lokr", (768, 768), rank=16), 24 * 24 + 32 * 32),
        (lambda: count("shira", (3072, 768), rank=8), 8 * (3072 + 768)),
        (lambda: count("hra", (4096, 11008), rank=8), 8 * 11008),
    ],
)
def test_counts(ours, expected):
    assert ours() == expected


def test_shira_reads_places_in_any_order():
    """A folder of peft's: ours are ascending, which the sparse order relies on."""
    places, v = torch.tensor([40, 3, 17]), torch.tensor([1.0, 2.0, 3.0])
    theirs = {"shira_weight": v, "shira_indices": torch.stack([places // 7, places % 7]).int()}
    _, fill = SHiRA.peft.found({"r": 1}, {"layer": theirs}, {"layer": (9, 7)})
    assert fill["layer"]["places"].tolist() == [3, 17, 40] and fill["layer"]["v"].tolist() == [2.0, 3.0, 1.0]
