"""LoftQ: codes and a low-rank start fitted to W together, against the algorithm with exact decompositions."""

import copy

import pytest
import torch
from torch import Tensor, nn

from core.adapters import (
    attach,
    dequantise,
    detach,
    export_peft,
    import_peft,
    load_adapter,
    quantise,
    save_adapter,
    set_active,
)
from core.adapters.hosts import op_for
from core.adapters.op import Rows
from core.adapters.quantised import QuantisedLinear, decode, encode, fitted
from core.errors import AdapterError, ConfigError, PeftError, UnsupportedError
from tests.core.adapters.hosts_under_test import relative
from tests.core.adapters.test_quantised import Net

ALL = ["attn.q", "attn.k", "attn.v", "attn.out"]


def nf4(W: Tensor) -> Tensor:
    return decode(*encode(W), W.shape)


def leading(R: Tensor, rank: int) -> Tensor:
    U, S, Vt = torch.linalg.svd(R, full_matrices=False)
    return U[:, :rank] * S[:rank] @ Vt[:rank]


def algorithm_1(W: Tensor, rank: int, steps: int) -> tuple[Tensor, Tensor]:
    """Q and B A, as the paper writes it."""
    change = torch.zeros_like(W)
    for _ in range(steps):
        Q = nf4(W - change)
        change = leading(W - Q, rank)
    return Q, change


def weight(rows: int, columns: int) -> Tensor:
    """Rows and columns of unequal size, as in trained networks."""
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(rows, columns, generator=generator)
    return W * torch.rand(columns, generator=generator) * torch.rand(rows, 1, generator=generator)


def found(W: Tensor, rank: int, steps: int) -> tuple[Tensor, Tensor]:
    codes, scales, starts = fitted(W, {None: op_for(nn.Linear(*W.shape[::-1]), "weight")}, rank, steps)
    A, B = starts[None]
    return decode(codes, scales, W.shape), B.float() @ A.float()


@pytest.mark.parametrize("shape", [(96, 128), (40, 24)], ids=str)
@pytest.mark.parametrize("rank", [4, 16])
def test_once_is_nf4_and_the_best_product_for_what_it_lost(shape, rank):
    W = weight(*shape)
    Q, change = found(W, rank, 1)
    assert torch.equal(Q, nf4(W))
    left = torch.linalg.svdvals(W - Q)[rank:].norm()  # Eckart-Young: no product of this rank leaves less
    assert left * (1 - 1e-5) <= (W - Q - change).norm() <= left * 1.005


@pytest.mark.parametrize("rank", [4, 16])
def test_alternating_is_the_papers_algorithm_and_leaves_less_each_time(rank):
    W, lost = weight(96, 128), []
    for steps in (1, 2, 5):
        Q, change = found(W, rank, steps)
        theirs = (W - sum(algorithm_1(W, rank, steps))).norm()
        lost.append((W - Q - change).norm())
        assert lost[-1] <= 1.01 * theirs
    assert lost[0] > lost[1] > lost[2]


def test_every_part_of_the_rows_has_its_own_product():
    """The rows of q and of v each get rank 2; k, which no adapter will start on, is plain NF4."""
    model, W = Net(), Net().qkv.weight.detach()
    quantise(model, rank=2, steps=1, targets=["attn.q", "attn.v"])
    lost = W - nf4(W)
    assert torch.equal(model.qkv.weight, nf4(W))
    for rows, (A, B) in model.qkv.starts.items():
        own = rows.take(lost, 0)
        assert relative(B.float() @ A.float(), leading(own, 2)) <= 2e-2  # bf16
    assert len(model.qkv.starts) == 2 and model.out.starts == {}


def test_parts_with_rows_in_common_add_up():
    W, host = weight(96, 128), nn.Linear(128, 96)
    upper = Rows(0, 48)
    parts = {rows: op_for(host, "weight", rows) for rows in (None, upper)}
    codes, scales, starts = fitted(W, parts, 4, 3)
    (A, B), (a, b) = (tuple(t.float() for t in starts[rows]) for rows in (None, upper))
    start = decode(codes, scales, W.shape) + B @ A + torch.cat([b @ a, torch.zeros(48, 128)])
    assert (W - start).norm() < 0.99 * (W - sum(found(W, 4, 3))).norm()


def test_another_machine_finds_the_same_base(monkeypatch):
    """Decompositions differ there in their last bits, and in signs: codes, scales and starts do not."""
    W, parts = weight(96, 128), {None: op_for(nn.Linear(128, 96), "weight")}
    codes, scales, starts = fitted(W, parts, 8, 5)
    qr, svd = torch.linalg.qr, torch.linalg.svd
    noise = torch.Generator().manual_seed(0)

    def shaken(t):
        return t * (1 + 1e-10 * torch.randn(t.shape, generator=noise, dtype=t.dtype))

    class There:
        def __init__(self, found):
            self.Q = -shaken(found.Q)

    monkeypatch.setattr(torch.linalg, "qr", lambda M: There(qr(M)))
    monkeypatch.setattr(torch.linalg, "svd", lambda *a, **k: [shaken(t) for t in svd(*a, **k)])
    again = fitted(W, parts, 8, 5)
    assert torch.equal(codes, again[0]) and torch.equal(scales, again[1])
    assert all(torch.equal(a.abs(), b.abs()) for a, b in zip(starts[None], again[2][None], strict=True))


@pytest.mark.parametrize("W", [torch.zeros(8, 64), nf4(weight(8, 64))], ids=["zeros", "nothing is lost"])
def test_where_nothing_is_lost_the_start_is_zero(W):
    Q, change = found(W, 4, 2)
    assert torch.equal(Q, W) and not change.any()


@pytest.fixture
def x():
    return torch.randint(11, (40, 7), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("alpha", [4.0, 64.0])
def test_the_network_starts_nearer_to_full_weights(alpha, x):
    model, full = Net(), Net()(x)
    quantise(model, rank=4, targets=ALL)
    base = model(x)
    attach(model, "loftq", targets=ALL, rank=4, alpha=alpha)
    start = model(x)
    assert (start - full).norm() < 0.8 * (base - full).norm()
    assert relative(model.out.weight + model.out.starts[None][1].float() @ model.out.starts[None][0].float(),
                    model.out.weight + _change(model, "out")) <= 1e-6  # fmt: skip
    set_active(model, None)
    assert torch.equal(model(x), base)
    detach(model)
    assert torch.equal(model(x), base)


def _change(model: nn.Module, path: str) -> Tensor:
    (method,) = next(slot for key, slot in model._peft.slots.items() if key.startswith(f"{path}:")).methods.values()
    return method.scale * method.B @ method.A


def test_files_hold_the_adapter_and_know_their_base(tmp_path, x):
    """Starts are made anew with the base, whose keys are those of one without them."""
    plain, model, fresh = Net(), Net(), Net()
    quantise(plain)
    for net in (model, fresh):
        quantise(net, rank=2, targets=ALL)
    assert model.state_dict().keys() == plain.state_dict().keys()
    attach(model, "loftq", targets=ALL, rank=2)
    with torch.no_grad():
        for p in model._peft.parameters():
            p += 0.1
    save_adapter(model, tmp_path)
    load_adapter(fresh, tmp_path)
    assert torch.equal(fresh(x), model(x))
    with pytest.raises(AdapterError, match="base"):
        load_adapter(plain, tmp_path)


def test_what_does_not_fit_is_refused_with_the_reason():
    with pytest.raises(ConfigError, match="full weights"):
        attach(Net(), "loftq", targets=ALL, rank=2)
    model = Net()
    quantise(model, rank=2, targets=["attn.q"])
    with pytest.raises(ConfigError, match="2, the rank of the base"):
        attach(model, "loftq", targets=["attn.q"], rank=3)
    with pytest.raises(ConfigError, match="keep no start here"):
        attach(model, "loftq", targets=["attn.q", "attn.v"], rank=2)
    with pytest.raises(ConfigError, match="no size"):
        attach(model, "loftq", targets=["attn.q"], budget=100)
    with pytest.raises(PeftError, match="alpha"):
        attach(model, "loftq", targets=["attn.q"], rank=2, alpha=0.0)
    assert "_peft" not in model._modules
    for wrong in ({"rank": -1}, {"rank": 2, "steps": 0}, {"rank": 2, "targets": ["attn.z"]}):
        model = Net()
        with pytest.raises(ConfigError):
            quantise(model, **wrong)
        assert type(model.qkv) is nn.Linear


def test_peft_gets_it_beside_the_values_of_the_codes_alone(tmp_path, x):
    model = Net()
    quantise(model, rank=2, targets=ALL)
    attach(model, "loftq", targets=ALL, rank=2)
    y = model(x)
    with pytest.raises(UnsupportedError, match="dequantise"):
        export_peft(model, tmp_path / "peft")
    plain = dequantise(model)
    assert type(plain.out) is not QuantisedLinear and torch.equal(plain(x), y)
    export_peft(plain, tmp_path / "peft")
    base = copy.deepcopy(plain)
    detach(base)
    import_peft(base, tmp_path / "peft")
    assert relative(base(x), y) <= 1e-5
