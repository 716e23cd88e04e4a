"""Adapters on what modules put out, and several at once on hosts with more than one product: attention, recurrence."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

from core.adapters import attach, detach, merge, unmerge
from core.adapters.model import trainable
from core.errors import MergeError, UnsupportedError
from tests.core.adapters.hosts_under_test import HOSTS, One, relative, shaken, variants

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")


# Outputs of modules --------------------------------------------------------------------------------------------------

ACTIVATIONS = ["houlsby", "pfeiffer", "parallel"]


@pytest.mark.parametrize("host", [h for h in HOSTS if h.rows is None and not h.vocabulary], ids=str)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_act_path(name, host):
    layer, op, x = host.build()
    model = One(layer).eval()
    y = layer(x)
    if name == "parallel" and y.shape[2:] != x.shape[2:] and op.axis == 1:
        with pytest.raises(UnsupportedError, match="input"):
            attach(model, name, targets=["r"], roles={"r": "layer"}, example=((x,), {}))
        assert type(model.layer) is type(host.build()[0]) and not hasattr(model, "_peft")
        return
    attach(model, name, targets=["r"], roles={"r": "layer"}, example=((x,), {}))
    assert torch.equal(model(x), y)
    slot = next(iter(model._peft.slots.values()))
    method = shaken(next(iter(slot.methods.values())))
    assert torch.equal(model(x), method(y, x)) and not torch.equal(model(x), y)
    assert method.axis == op.axis and method.up.out_features == y.shape[op.axis]
    with pytest.raises(MergeError):
        merge(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), model(x))
    detach(model)
    assert torch.equal(model(x), y) and not model.layer._forward_hooks


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("autocast", [False, True])
def test_act_path_in_bf16(name, autocast):
    torch.manual_seed(0)
    base = torch.float32 if autocast else torch.bfloat16
    model, x = One(nn.Linear(6, 8).to(base)).eval(), torch.randn(3, 5, 6, dtype=base)
    attach(model, name, targets=["r"], roles={"r": "layer"}, example=((x,), {}))
    method = shaken(next(iter(next(iter(model._peft.slots.values())).methods.values())))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        y = model(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in method.parameters())


# Hosts that do more than one product ---------------------------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.layer = nn.MultiheadAttention(8, 2, batch_first=True, **options)

    def forward(self, x):
        return self.layer(x, x, x, need_weights=False)[0]


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layer = kind(8, 8, batch_first=True)

    def forward(self, x):
        return self.layer(x)[0]


def encoder_layer():
    return One(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True))


ODD = {
    "attention": (Attention, {"q": "layer:in_proj_weight[0/3]", "out": "layer.out_proj"}),
    "attention_other_widths": (
        lambda: Attention(kdim=8, vdim=8),
        {"q": "layer:in_proj_weight[0/3]", "v": "layer:in_proj_weight[2/3]"},
    ),
    "encoder_layer": (
        encoder_layer,
        {"v": "layer.self_attn:in_proj_weight[2/3]", "out": "layer.self_attn.out_proj", "in": "layer.linear1"},
    ),
    "lstm": (lambda: Recurrent(nn.LSTM), {"ih": "layer:weight_ih_l0[1/4]", "hh": "layer:weight_hh_l0"}),
    "gru": (lambda: Recurrent(nn.GRU), {"ih": "layer:weight_ih_l0", "hh": "layer:weight_hh_l0[2/3]"}),
}
ODD_METHODS = [v for v in variants() if str(v) in ("lora", "dora", "ia3")]


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("variant", ODD_METHODS, ids=str)
def test_hosts_that_do_more_than_one_product(variant, kind):
    make, roles = ODD[kind]
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(2, 5, 8)
    state, classes = copy.deepcopy(model.state_dict()), [type(m) for m in model.modules()]
    base = model(x)
    attach(model, variant.name, targets=list(roles), roles=roles, example=((x,), {}), seed=0, **dict(variant.options))
    assert relative(model(x), base) <= 1e-6
    for p in trainable(model).values():
        p.data += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    y = model(x)
    assert relative(y, base) > 1e-3
    with torch.no_grad():  # the fused kernel of an encoder layer runs only here
        assert relative(model(x), y) <= 1e-5
    model.train()
    trained = model(x)
    assert relative(trained, y) <= 1e-5
    grads = torch.autograd.grad(trained.square().sum(), list(trainable(model).values()))
    assert all(g.abs().max() > 0 for g in grads)
    model.eval()
    assert torch.equal(copy.deepcopy(model)(x), y)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), y)
    assert merge(model).max_error <= 1e-5
    assert relative(model(x), y) <= 1e-5
    unmerge(model)
    assert torch.equal(model(x), y)
    detach(model)
    assert [type(m) for m in model.modules()] == classes
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), state.values(), strict=True))
    assert torch.equal(model(x), base)
