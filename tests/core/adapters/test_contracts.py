"""Every weight method's shortcuts x every host kind: they are the definition, before anything is attached.

What an attached method promises: test_matrix.py.
"""

from __future__ import annotations

import pytest
import torch

from tests.core.adapters.hosts_under_test import HOSTS, relative, shaken, through_output, through_weight, variants

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
VARIANTS = variants()
WITH_OUTPUT = [v for v in VARIANTS if v.cls.output is not None]
WITH_FACTORS = [v for v in VARIANTS if v.cls.factors is not None]


def accepted(variant, op, layer):
    """Refused cells must say why; they have no meaning, so there is nothing further to test."""
    reason = variant.cls.refuses(op.kind, tuple(op.matrix(layer.weight).shape), variant.full)
    if reason:
        pytest.skip(f"{variant} refuses {op.kind}: {reason}")


@pytest.mark.parametrize("host", HOSTS, ids=str)
@pytest.mark.parametrize("variant", WITH_OUTPUT, ids=str)
def test_output_is_the_weight_form(variant, host):
    """`output` gives what the host gives when W' stands in W's place."""
    layer, op, x = host.build()
    accepted(variant, op, layer)
    method = shaken(variant.on(op.matrix(layer.weight)))
    expected = through_weight(method, op, layer, x)
    assert relative(through_output(method, op, layer, x), expected) <= 1e-5  # measured 4e-7
    assert relative(layer(x), expected) > 1e-3  # the adapter did something


@pytest.mark.parametrize("host", HOSTS, ids=str)
@pytest.mark.parametrize("variant", WITH_FACTORS, ids=str)
def test_factors_are_the_weight_form(variant, host):
    layer, op, _ = host.build()
    accepted(variant, op, layer)
    M = op.matrix(layer.weight)
    method = shaken(variant.on(M))
    if method.factors is None:
        pytest.skip("low rank only where in >= 2 out: test_orders.py")
    A, B, scale, *_ = method.factors()
    gain = 1 if method.gain is None else method.gain(M)[:, None]
    assert relative(gain * (M + scale * B @ A), method.weight(M)) <= 1e-6


@pytest.mark.parametrize("host", HOSTS, ids=str)
@pytest.mark.parametrize("variant", WITH_OUTPUT, ids=str)
def test_gradients_of_both_forms_agree(variant, host):
    """And reach every tensor."""
    layer, op, x = host.build()
    accepted(variant, op, layer)
    method = shaken(variant.on(op.matrix(layer.weight)))
    grads = []
    for form in (through_weight, through_output):
        y = form(method, op, layer, x)
        ramp = torch.linspace(0.5, 1.5, y.numel()).view(y.shape)
        if getattr(op, "padding_idx", None) is not None:  # no loss looks at padding; there the forms' gradients differ
            ramp = ramp * (x != op.padding_idx)[..., None]
        grads.append(torch.autograd.grad((y * ramp).sum(), list(method.parameters())))
    for (name, _), *pair in zip(method.named_parameters(), *grads, strict=True):
        assert pair[0].abs().max() > 0, name
        assert relative(pair[-1], pair[0]) <= 2e-5, name


@pytest.mark.parametrize("host", HOSTS, ids=str)
@pytest.mark.parametrize("variant", WITH_OUTPUT, ids=str)
def test_output_gradients_in_double(variant, host):
    layer, op, x = host.build(dtype=torch.float64)
    accepted(variant, op, layer)
    M = op.matrix(layer.weight)
    method = shaken(variant.on(M))
    if variant.name == "dora":  # its norm is a constant by definition; finite differences would see it move
        norm = method.norm(M)
        method.norm = lambda W: norm
    form = _Output(method, op, layer)
    if host.vocabulary:
        x = x.clamp_min(2)  # padding has no gradient by definition
    names = [name for name, _ in method.named_parameters()]

    def function(*tensors):
        state = {f"method.{name}": tensor for name, tensor in zip(names, tensors, strict=False)}
        return torch.func.functional_call(form, state, (x if host.vocabulary else tensors[-1],))

    inputs = [p.detach().clone().requires_grad_() for p in method.parameters()]
    inputs += [] if host.vocabulary else [x.requires_grad_()]
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("host", [h for h in HOSTS if h.build()[1].linear], ids=str)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_scaled_input_is_the_weight_form(variant, host):
    layer, op, x = host.build()
    accepted(variant, op, layer)
    method = shaken(variant.on(op.matrix(layer.weight)))
    scaled = method.into(x)
    if scaled is not None:
        factor = 1 if method.rescale is None else method.rescale()
        M = op.matrix(layer.weight)
        assert relative(op.down(scaled, M) * factor, op.down(x, method.weight(M))) <= 1e-6


class _Output(torch.nn.Module):
    def __init__(self, method, op, layer):
        super().__init__()
        self.method, self.op, self.layer = method, op, layer

    def forward(self, x):
        return through_output(self.method, self.op, self.layer, x)


def test_refusals_give_a_reason():
    """What has no meaning is refused by name, never computed."""
    from core.adapters import methods

    lora, dora = methods.find("lora"), methods.find("dora")
    given = {"alpha": 16.0, "scaling": "standard"}
    for cls in (lora, dora):
        assert cls(torch.randn(4, 6), rank=5).A.shape == (4, 6), "the rank that it has room for"
        assert "1 to 4" in cls.refuses_all([(4, 6), (2, 2)], {**given, "rank": 5, "dropout": 0.0})
        assert cls.refuses_all([(4, 6), (2, 2)], {**given, "rank": 4, "dropout": 0.0}) == ""
        assert "rank 0" in cls.refuses("Linear", (4, 6), {**given, "rank": 0, "dropout": 0.0})
        assert "Embedding" in cls.refuses("Embedding", (4, 6), {**given, "rank": 2, "dropout": 0.1})
        assert "probability" in cls.refuses("Linear", (4, 6), {**given, "rank": 2, "dropout": 1.0})
        assert cls.refuses("Linear", (4, 6), {**given, "rank": 4, "dropout": 0.1}) == ""
