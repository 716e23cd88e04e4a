"""Convolutions with thin gradients: every order against finite differences, the same numbers as the weight form."""

import pytest
import torch
from torch import nn

from core.adapters import attach, conv_call
from core.adapters.base import kaiming
from core.adapters.conv_call import LowRankConvolution, thin_pays
from core.adapters.conv_op import ConvOp
from core.adapters.cost import saved_bytes
from core.adapters.hosts import op_for
from tests.core.adapters.hosts_under_test import HOSTS, One, relative

PLAIN = [h for h in HOSTS if isinstance(h.build()[1], ConvOp) and h.build()[1].plain]


def factors(op, layer, rank):
    torch.manual_seed(1)
    M = op.matrix(layer.weight)
    rank = min(rank, *M.shape)
    return kaiming(rank, M.shape[1]).to(M).requires_grad_(), (0.3 * torch.randn(len(M), rank).to(M)).requires_grad_()


@pytest.mark.parametrize("order", ["merged", "factored", "dropout"])
@pytest.mark.parametrize("rank", [1, 4])  # below 2 the change runs as a transposed convolution where it can
@pytest.mark.parametrize("host", PLAIN, ids=str)
def test_every_order_in_double(host, rank, order, monkeypatch):
    monkeypatch.setattr(conv_call, "order_of", lambda *shape: order)
    layer, op, x = host.build(dtype=torch.float64)
    p = 0.25 if order == "dropout" else 0.0

    def run(x, A, B, b=layer.bias):
        torch.manual_seed(2)  # the same mask each time
        return LowRankConvolution.apply(x, layer.weight, b, op, 1.5, p, torch.float64, A, B)

    tensors = x.requires_grad_(), *factors(op, layer, rank)
    assert torch.autograd.gradcheck(run, tensors, fast_mode=True)
    if layer.bias is not None:
        tensors = *tensors, layer.bias.detach().requires_grad_()
        assert torch.autograd.gradcheck(run, tensors, fast_mode=True)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("factored", [False, True])
@pytest.mark.parametrize("host", [h for h in PLAIN if h.name.startswith("conv2d")], ids=str)
def test_the_weight_form_in_both_layouts(host, factored, layout, monkeypatch):
    monkeypatch.setattr(conv_call, "order_of", lambda *shape: "factored" if factored else "merged")
    layer, op, x = host.build()
    A, B = factors(op, layer, 2)
    x = x.contiguous(memory_format=layout).requires_grad_()
    expected = op.apply(x, op.full(layer.weight) + 1.5 * B @ A, layer.bias)
    y = LowRankConvolution.apply(x, layer.weight, layer.bias, op, 1.5, 0.0, torch.float32, A, B)
    assert relative(y, expected) <= 1e-6
    g = torch.randn_like(y)
    ours, plain = (torch.autograd.grad(out, (x, A, B), g) for out in (y, expected))
    assert max(relative(a, b) for a, b in zip(ours, plain, strict=True)) <= 1e-5  # measured 4e-7


def test_the_rule():
    def pays(layer, batch=8):
        op = op_for(layer, "weight")
        x = torch.empty(batch, layer.in_channels, *[4] * (layer.weight.ndim - 2))
        M = op.full(layer.weight)
        return thin_pays(op, x, torch.empty(8, M.shape[1]), len(M))

    assert pays(nn.Conv2d(512, 512, 3)) and pays(nn.Conv2d(512, 2048, 1))  # ResNet-50's end: 13 and 7 times faster
    assert not pays(nn.Conv2d(64, 64, 1)) and not pays(nn.Conv3d(16, 16, 3))  # a first stage: slower
    assert pays(nn.Conv3d(16, 16, 3), batch=1) and not pays(nn.Conv3d(2, 2, 3), batch=1)  # unfolded: 8 channels, not 16
    assert not pays(nn.Conv2d(512, 512, 3, groups=512))  # depthwise: A * x is 8 times the output


def test_dropout_keeps_the_thin_product_and_draws_its_mask_again():
    model, x = One(nn.Conv3d(16, 16, 3, padding=1)), torch.randn(1, 16, 4, 4, 4)
    attach(model, "lora", targets=["c"], roles={"c": "layer"}, example=((x,), {}), rank=4, dropout=0.1)
    model.train()
    assert saved_bytes(lambda: model(x), model) == x.nbytes + x.nbytes // 4


@pytest.mark.parametrize(("channels", "thin"), [(128, True), (16, False)])
def test_attached_layers_follow_the_rule_and_keep_x_alone(channels, thin):
    model = One(nn.Conv2d(channels, channels, 3, padding=1, bias=False))
    x = torch.randn(2, channels, 6, 6)
    attach(model, "lora", targets=["c"], roles={"c": "layer"}, example=((x,), {}), rank=8)
    name = type(model(x).grad_fn).__name__
    assert name == ("LowRankConvolutionBackward" if thin else "InWeightSpaceBackward")
    assert saved_bytes(lambda: model(x), model) == x.nbytes
    model.eval()
    with torch.no_grad():
        assert relative(model(x), model.layer._original.forward(model.layer, x)) <= 1e-6  # B = 0
