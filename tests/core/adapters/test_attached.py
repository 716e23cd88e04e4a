"""A method of every form through `attach` on single hosts: all paths give one answer, to the bit undone.

Every method, on the path that the binder chooses: test_matrix.py.
"""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from core.adapters import attach, detach, merge, set_active, summary, unmerge, use
from core.adapters.model import trainable
from core.errors import PeftError
from tests.core.adapters.hosts_under_test import (
    HOSTS,
    One,
    by_form,
    relative,
    shaken,
    through_output,
    through_weight,
    variants,
)

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
VARIANTS = by_form(variants())


def adapted(host, variant, path="auto", dtype=torch.float32, **more):
    """(model with a shaken adapter, its method, op, x); a refused cell is skipped with its reason."""
    layer, op, x = host.build(dtype=dtype)
    M = op.matrix(layer.weight)
    if reason := variant.cls.refuses(op.kind, tuple(M.shape), variant.full):
        pytest.skip(f"{variant} refuses {op.kind}: {reason}")
    model = One(layer).eval()
    options = {**dict(variant.options), **more}
    attach(
        model, variant.name, targets=["r"], roles={"r": host.pattern}, example=((x,), {}), path=path, seed=0, **options
    )
    method = next(iter(next(iter(model._peft.slots.values())).methods.values()))
    return model, shaken(method), op, x


def plain(host, dtype=torch.float32) -> nn.Module:
    return host.build(dtype=dtype)[0]


def gradients(model, method, x):
    y = model(x)
    ramp = torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype).view(y.shape)
    if getattr(model.layer, "padding_idx", None) is not None:
        ramp = ramp * (x != model.layer.padding_idx)[..., None]
    return torch.autograd.grad((y * ramp).sum(), list(method.parameters()))


@pytest.mark.parametrize("path", ["call", "hook", "weight"])
@pytest.mark.parametrize("host", HOSTS, ids=str)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_path_is_the_definition(variant, host, path):
    model, method, op, x = adapted(host, variant, path)
    assert [row.path for row in summary(model).rows] == [path]
    layer = plain(host)
    expected = through_weight(method, op, layer, x)
    assert relative(model(x), expected) <= 1e-5  # measured 6e-7
    with torch.no_grad():
        assert relative(model(x), expected) <= 1e-5
    with use(model, None):
        assert torch.equal(model(x), layer(x))
    reference = torch.autograd.grad  # gradients of the definition, by plain autograd
    ramp = torch.linspace(0.5, 1.5, expected.numel()).view(expected.shape)
    if getattr(op, "padding_idx", None) is not None:
        ramp = ramp * (x != op.padding_idx)[..., None]
    theirs = reference((expected * ramp).sum(), list(method.parameters()))
    ours = gradients(model, method, x)
    assert max(relative(a, b) for a, b in zip(ours, theirs, strict=True)) <= 2e-5


@pytest.mark.parametrize("path", ["call", "weight"])
@pytest.mark.parametrize("host", [h for h in HOSTS if not h.vocabulary], ids=str)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_the_input_gradient_is_the_definitions(variant, host, path):
    model, method, op, x = adapted(host, variant, path)
    x.requires_grad_()
    expected = through_weight(method, op, plain(host), x)
    g = torch.randn_like(expected)
    theirs, ours = (torch.autograd.grad(y, x, g)[0] for y in (expected, model(x)))
    assert relative(ours, theirs) <= 1e-5


@pytest.mark.parametrize("path", ["call", "hook"])
@pytest.mark.parametrize(
    "host", [h for h in HOSTS if h.name in ("linear", "hf_conv1d", "fused_rows", "conv2d")], ids=str
)
@pytest.mark.parametrize("variant", [v for v in VARIANTS if "dropout" in v.full], ids=str)
def test_dropout_is_the_output_form(variant, host, path):
    """The same seed draws the same mask, whichever function multiplies by it."""
    model, method, op, x = adapted(host, variant, path, dropout=0.25)
    layer = plain(host)  # seeds, too
    model.train()
    torch.manual_seed(4)
    ours = model(x)
    torch.manual_seed(4)
    assert relative(ours, through_output(method, op, layer, x)) <= 1e-6


@pytest.mark.parametrize("tokens", [3, 40])  # factored, merged
@pytest.mark.parametrize("host", [h for h in HOSTS if h.build()[1].linear], ids=str)
@pytest.mark.parametrize(
    ("variant", "dropout"), [(v, 0.0) for v in VARIANTS] + [(v, 0.25) for v in VARIANTS if "dropout" in v.full], ids=str
)
def test_the_call_path_in_double(variant, host, tokens, dropout):
    """Its own backward against finite differences."""
    model, method, op, _ = adapted(host, variant, "call", torch.float64, **({"dropout": dropout} if dropout else {}))
    model.train()
    if variant.name == "dora":  # its norm is a constant by definition; finite differences would see it move
        norm = method.norm(op.matrix(model.layer.weight))
        method.norm = lambda W: norm
    parameters = dict(method.named_parameters())

    def function(x, *tensors):
        torch.manual_seed(2)  # the same mask each time
        for (name, _), tensor in zip(parameters.items(), tensors, strict=True):
            method._parameters[name] = tensor
        return model(x)

    x = torch.randn(tokens, 6, dtype=torch.float64, requires_grad=True)
    leaves = [p.detach().clone().requires_grad_() for p in parameters.values()]
    assert torch.autograd.gradcheck(function, (x, *leaves), fast_mode=True)


@pytest.mark.parametrize("host", HOSTS, ids=str)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_merge_unmerge_detach(variant, host):
    model, _, _, x = adapted(host, variant, "weight")
    layer = plain(host)
    before, adapted_output = copy.deepcopy(layer.state_dict()), model(x)
    assert merge(model).max_error <= 1e-5  # measured 7e-7
    assert relative(model(x), adapted_output) <= 1e-5
    assert relative(model(x), layer(x)) > 1e-3
    unmerge(model)
    assert torch.equal(model(x), adapted_output)
    detach(model)
    assert type(model.layer) is type(layer) and "_adapters" not in model.layer.__dict__
    assert list(model.state_dict()) == [f"layer.{k}" for k in before]
    assert all(torch.equal(model.state_dict()[f"layer.{k}"], t) for k, t in before.items())
    assert torch.equal(model(x), layer(x))


SOME = [
    h for h in HOSTS if h.name in ("linear", "hf_conv1d", "fused_rows", "embedding", "conv2d_grouped", "transposed2d")
]


@pytest.mark.parametrize("path", ["hook", "weight"])
@pytest.mark.parametrize("host", SOME, ids=str)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_copies_are_equal_and_independent(variant, host, path):
    model, _, _, x = adapted(host, variant, path)
    y = model(x)
    pickled = pickle.loads(pickle.dumps(model))
    for twin in (copy.deepcopy(model), pickled):
        assert torch.equal(twin(x), y)
        with torch.no_grad():
            for p in trainable(twin).values():
                p.add_(0.1)
        assert not torch.equal(twin(x), y) and torch.equal(model(x), y)
        detach(twin)
        assert torch.equal(twin(x), plain(host)(x)) and torch.equal(model(x), y)


@pytest.mark.parametrize("path", ["call", "hook", "weight"])
@pytest.mark.parametrize("host", SOME, ids=str)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_bf16_base_keeps_an_fp32_adapter(variant, host, path):
    model, method, op, x = adapted(host, variant, path, dtype=torch.bfloat16)
    assert {p.dtype for p in method.parameters()} == {torch.float32}
    y = model(x)
    assert y.dtype == torch.bfloat16
    double = plain(host).double()
    double.load_state_dict({k: t.double() for k, t in plain(host, torch.bfloat16).state_dict().items()})
    exact = through_weight(copy.deepcopy(method).double(), op, double, x if host.vocabulary else x.double())
    assert relative(y.double(), exact) <= 2e-2  # bf16 has 8 bits: one rounding is 4e-3
    y.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.abs().max() > 0 for p in method.parameters())


@pytest.mark.parametrize("path", ["call", "hook", "weight"])
@pytest.mark.parametrize("host", SOME, ids=str)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_autocast(variant, host, path):
    model, method, op, x = adapted(host, variant, path)
    exact = model(x)
    layer = plain(host)
    W = op.put(layer.weight, method.weight(op.matrix(layer.weight)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x)
        expected = torch.func.functional_call(layer, {"weight": W}, (x,))
    assert y.dtype == expected.dtype
    if path == "weight":  # W' in fp32, rounded once
        assert torch.equal(y, expected)
    assert relative(y.float(), exact) <= 3e-2
    y.float().sum().backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.abs().max() > 0 for p in method.parameters())


@pytest.mark.parametrize("path", ["call", "hook", "weight"])
@pytest.mark.parametrize("host", [h for h in SOME if not h.vocabulary], ids=str)
@pytest.mark.parametrize(
    ("variant", "dropout"), [(v, 0.0) for v in VARIANTS] + [(v, 0.25) for v in VARIANTS if "dropout" in v.full], ids=str
)
def test_gradient_checkpointing(variant, host, path, dropout):
    """Equal to the bit, dropout's mask included; the weight path has no input to drop."""
    more = {"dropout": dropout} if dropout else {}
    if dropout and path == "weight":
        with pytest.raises(PeftError, match="dropout"):
            adapted(host, variant, path, **more)
        return
    model, method, _, x = adapted(host, variant, path, **more)
    evaluated = model(x)
    model.train()
    x.requires_grad_()
    tensors, found = [x, *method.parameters()], []
    for run in (model, lambda x: checkpoint(model, x, use_reentrant=False)):
        torch.manual_seed(5)
        y = run(x)
        found.append([y, *torch.autograd.grad(y.square().sum(), tensors)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert torch.allclose(found[0][0], evaluated) == (dropout == 0)


@pytest.mark.parametrize("path", ["call", "hook", "weight"])
@pytest.mark.parametrize("host", SOME, ids=str)
def test_several_adapters_add_up(host, path):
    """W' = W + sum_i w_i (f_i(W) - W), methods of different kinds, in any order of attaching."""
    by_name = {str(v): v for v in variants()}
    layer, op, x = host.build()
    M, outputs = op.matrix(layer.weight), []
    for order in (["lora", "dora", "ia3"], ["ia3", "dora", "lora"]):
        model = One(plain(host)).eval()
        total = M
        for name in order:
            variant = by_name[name]
            options = dict(variant.options)
            attach(model, variant.name, targets=["r"], roles={"r": host.pattern}, example=((x,), {}), name=name,
                   path=path, seed=0, **options)  # fmt: skip
        slot = next(iter(model._peft.slots.values()))
        weights = {"lora": 0.5, "dora": -0.3, "ia3": 2.0}
        for part in slot.parts:
            method = shaken(slot.methods[part.method])
            total = total + weights[part.adapter] * (method.weight(M) - M)
        set_active(model, weights)
        expected = torch.func.functional_call(layer, {"weight": op.put(layer.weight, total)}, (x,))
        assert relative(model(x), expected) <= 1e-5
        assert merge(model).max_error <= 1e-5
        unmerge(model)
        set_active(model, weights)
        outputs.append(model(x))
        of = {part.adapter: slot.methods[part.method] for part in slot.parts}
        two = {"lora": 0.5, "dora": -0.3}  # both low rank, one with a gain
        pair = M + sum(w * (of[name].weight(M) - M) for name, w in two.items())
        set_active(model, two)
        expected = torch.func.functional_call(layer, {"weight": op.put(layer.weight, pair)}, (x,))
        assert relative(model(x), expected) <= 1e-5
        set_active(model, "dora")
        alone = through_weight(of["dora"], op, layer, x)
        assert relative(model(x), alone) <= 1e-5
        detach(model, "dora")
        set_active(model, None)
        assert torch.equal(model(x), layer(x))
    assert relative(*outputs) <= 1e-6
