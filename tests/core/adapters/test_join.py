"""What the sites of an adapter share is one tensor: counted once, trained once, saved once, tied in every copy."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from core.adapters import attach, detach, load_adapter, plan, save_adapter, summary
from core.adapters.base import ActivationMethod, WeightMethod, kaiming
from core.adapters.files import read
from core.adapters.io import adapter_tensors
from core.adapters.model import trainable
from core.errors import DeadSiteError


class SharedLoRA(WeightMethod):
    """W' = W + B A, A shared by all sites; a shared buffer beside it."""

    def __init__(self, W, *, rank: int = 2):
        super().__init__()
        self.A = nn.Parameter(kaiming(rank, W.shape[1]).to(W))
        self.B = nn.Parameter(W.new_zeros(W.shape[0], rank))
        self.register_buffer("scale", W.new_ones(1))

    @classmethod
    def join(cls, methods):
        for m in methods[1:]:
            m.A, m.scale = methods[0].A, methods[0].scale

    def weight(self, W):
        return W + self.scale * self.B @ self.A


class SharedShift(ActivationMethod):
    """h' = h + v, v shared by all sites: the sites after the first have nothing of their own."""

    def __init__(self, dim, *, axis=-1):
        super().__init__(dim, axis=axis)
        self.inner = nn.ParameterList([torch.zeros(dim)])

    @classmethod
    def join(cls, methods):
        for m in methods[1:]:
            m.inner = methods[0].inner

    def forward(self, h, x):
        return h + self.inner[0]


class Net(nn.Module):
    def __init__(self, dead: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.dead = dead

    def forward(self, x):
        y = self.b(self.a(x).tanh())
        return y if self.dead and torch.is_grad_enabled() else self.c(y)


ROLES, X = {"r": ["a", "b", "c"]}, torch.linspace(-1, 1, 12).view(3, 4)
CASES = {SharedLoRA: (3 * 8 + 8, "A", 5), SharedShift: (4, "inner.0", 1)}  # trained, shared name, tensors in the file


def adapted(cls, net=None):
    net = attach(net or Net(), cls, targets=["r"], roles=ROLES, example=((X,), {}), seed=0)
    return net


def methods_of(net):
    return [m for slot in net._peft.slots.values() for m in slot.methods.values()]


def shared(net, cls):
    return [m.get_parameter(CASES[cls][1]) for m in methods_of(net)]


def tied(net, cls) -> bool:
    return len({id(p) for p in shared(net, cls)}) == 1


@pytest.mark.parametrize("cls", CASES)
def test_counted_trained_and_saved_once(cls, tmp_path):
    count, name, files = CASES[cls]
    net = adapted(cls)
    table = summary(net)
    assert tied(net, cls) and table.parameters == count == sum(row.parameters for row in table.rows)
    planned = plan(Net(), cls, targets=["r"], roles=ROLES, example=((X,), {}))
    assert [row.parameters for row in planned.rows] == [row.parameters for row in table.rows]
    tensors = trainable(net)
    assert sum(p.numel() for p in tensors.values()) == count
    optimiser = torch.optim.SGD(list(tensors.values()), lr=0.1)
    start = shared(net, cls)[0].detach().clone()
    for p in tensors.values():
        p.grad = torch.ones_like(p)
    optimiser.step()
    assert torch.allclose(shared(net, cls)[2], start - 0.1), "one step, not three"
    save_adapter(net, tmp_path)
    saved = read(tmp_path)[1]
    assert len(saved) == files and f"a:weight|r|{name}" in saved
    again = load_adapter(Net(), tmp_path, roles=ROLES, example=((X,), {}), method=cls)
    assert tied(again, cls) and torch.equal(again(X), net(X))
    assert all(torch.equal(t, saved[k]) for k, t in adapter_tensors(again, "default").items())


@pytest.mark.parametrize("cls", CASES)
def test_copies_and_conversions_keep_the_tie(cls):
    net = adapted(cls)
    before = net(X)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), copy.deepcopy(net).double()):
        assert tied(other, cls) and shared(other, cls)[0] is not shared(net, cls)[0]
        dtype = next(other.parameters()).dtype
        with torch.no_grad():
            for p in trainable(other).values():
                p += 1
        assert not torch.allclose(other(X.to(dtype)).float(), before) and torch.equal(net(X), before)
    assert shared(copy.deepcopy(net).double(), cls)[2].dtype == torch.float64
    bits = Net()(X)
    assert torch.equal(detach(net)(X), bits)


def test_gradients_of_all_sites_meet():
    """The shared tensor's gradient is the sum of what separate copies of it would get."""
    together, apart = adapted(SharedLoRA), attach(
        Net(), _Separate, targets=["r"], roles=ROLES, example=((X,), {}), seed=0
    )  # fmt: skip
    for one, other in zip(methods_of(together), methods_of(apart), strict=True):
        with torch.no_grad():
            one.B.normal_()
            other.A.copy_(one.A), other.B.copy_(one.B)
    together(X).square().sum().backward(), apart(X).square().sum().backward()
    total = sum(m.A.grad for m in methods_of(apart))
    assert torch.allclose(methods_of(together)[0].A.grad, total, rtol=1e-5)


class _Separate(SharedLoRA):
    @classmethod
    def join(cls, methods):
        pass


def test_a_site_without_a_tensor_of_its_own_must_be_read():
    """The shared vector gets its gradient through two sites; the third is read without gradients only."""
    with pytest.raises(DeadSiteError, match="c:weight"):
        adapted(SharedShift, Net(dead=True))
