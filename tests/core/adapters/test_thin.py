"""Thin frozen layers: torch's own numbers to the bit, fewer bytes kept for the backward pass."""

import copy
import pickle

import pytest
import torch
from torch import nn

from core.adapters.cost import saved_bytes
from core.adapters.seam import switch
from core.adapters.thin import thin, unthin

HOSTS = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 5, padding=2), (2, 4, 11)),
    "strided": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), (2, 4, 9, 9)),
    "dilated grouped": (lambda: nn.Conv2d(4, 6, 3, dilation=2, groups=2), (2, 4, 9, 9)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, padding=1), (2, 4, 9, 9)),
    "wide": (lambda: nn.Conv2d(32, 32, 3, padding=1), (2, 32, 16, 16)),
    "same": (lambda: nn.Conv2d(4, 6, (3, 5), padding="same", dilation=2), (2, 4, 9, 9)),
    "same, even kernel": (lambda: nn.Conv2d(4, 6, (4, 3), padding="same"), (2, 4, 9, 9)),
    "valid": (lambda: nn.Conv2d(4, 6, 3, padding="valid"), (2, 4, 9, 9)),
    "reflect": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (2, 4, 9, 9)),
    "circular": (lambda: nn.Conv1d(4, 6, 3, padding=1, padding_mode="circular"), (2, 4, 9)),
    "conv3d 1x1x1": (lambda: nn.Conv3d(4, 6, 1), (2, 4, 5, 5, 5)),
    "transpose1d": (lambda: nn.ConvTranspose1d(4, 6, 4, stride=2, padding=1, output_padding=1), (2, 4, 7)),
    "transpose3d": (lambda: nn.ConvTranspose3d(4, 6, 2, stride=2, groups=2), (2, 4, 3, 3, 3)),
    "batchnorm1d, no affine": (lambda: nn.BatchNorm1d(4, affine=False), (8, 4)),
    "batchnorm2d": (lambda: nn.BatchNorm2d(4), (2, 4, 9, 9)),
    "batchnorm3d": (lambda: nn.BatchNorm3d(4), (2, 4, 5, 5, 5)),
}


def frozen(build) -> nn.Module:
    torch.manual_seed(0)
    host = build()
    if hasattr(host, "running_mean"):
        host.running_mean.normal_()
        host.running_var.uniform_(0.5, 2)
        if host.affine:
            host.weight.data.normal_()
            host.bias.data.normal_()
    return host.requires_grad_(False).eval()


def run(net, x):
    """(output, input gradient, bytes kept)"""
    x = x.clone().requires_grad_()
    kept = saved_bytes(lambda: net(x), net)
    y = net(x)
    (dx,) = torch.autograd.grad(y.mul(torch.linspace(-1, 1, y.numel()).view(y.shape)).sum(), x)
    return y, dx, kept


@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel")  # torch says so of itself
@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_torch_to_the_bit_and_nothing_kept(name, dtype):
    build, shape = HOSTS[name]
    host, x = frozen(build).to(dtype), torch.randn(shape, dtype=dtype)
    y, dx, kept = run(host, x)
    assert thin(host) == [""]
    thin_y, thin_dx, thin_kept = run(host, x)
    assert torch.equal(thin_y, y)
    assert torch.equal(thin_dx, dx)
    channels = 4 * (x.element_size())  # a batch norm keeps one number per channel
    assert thin_kept <= (x.nbytes if name == "reflect" else channels) and thin_kept < kept + (name == "reflect")


def test_channels_last_keeps_torchs_kernel_and_layout():
    host = frozen(lambda: nn.Conv2d(8, 8, 3, padding=1)).to(memory_format=torch.channels_last)
    x = torch.randn(2, 8, 9, 9).to(memory_format=torch.channels_last)
    y, dx, _ = run(host, x)
    thin(host)
    thin_y, thin_dx, _ = run(host, x)
    assert torch.equal(thin_y, y) and torch.equal(thin_dx, dx) and thin_dx.stride() == dx.stride()


def test_autocast_is_torchs_to_the_bit():
    net = nn.Sequential(frozen(HOSTS["wide"][0]), frozen(lambda: nn.BatchNorm2d(32)))
    x = torch.randn(2, 32, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, dx, kept = run(net, x)
        thin(net)
        thin_y, thin_dx, thin_kept = run(net, x)
    assert y.dtype == torch.bfloat16 == thin_y.dtype
    assert torch.equal(thin_y, y) and torch.equal(thin_dx, dx) and thin_kept < kept / 4


@pytest.mark.parametrize("name", ["strided", "batchnorm2d", "transpose3d"])
def test_gradients_of_gradients_and_of_a_trained_bias(name):
    build, shape = HOSTS[name]
    host = frozen(build).double()
    thin(host)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(host, x) and torch.autograd.gradgradcheck(host, x)
    if host.bias is not None:
        host.bias.requires_grad_()
        expected = torch.autograd.grad(host(x).square().sum(), host.bias)[0]
        unthin(host)
        torch.testing.assert_close(torch.autograd.grad(host(x).square().sum(), host.bias)[0], expected)


def test_off_where_torch_must_serve():
    """A trained weight gets its gradient, train-mode statistics move, no gradient keeps nothing, errors are torch's."""
    conv, norm = frozen(HOSTS["wide"][0]), frozen(lambda: nn.BatchNorm2d(32))
    x = torch.randn(2, 32, 8, 8, requires_grad=True)
    net = nn.Sequential(conv, norm)
    thin(net)
    conv.weight.requires_grad_()
    assert torch.autograd.grad(conv(x).sum(), conv.weight)[0].abs().sum() > 0
    before = norm.running_mean.clone()
    norm.train()(x)
    assert not torch.equal(before, norm.running_mean)
    conv.weight.requires_grad_(False)
    with torch.no_grad():
        assert conv(x).grad_fn is None
    assert conv(x.detach()).grad_fn is None
    with pytest.raises(RuntimeError, match="should be the same"):
        conv(x.double())
    assert conv(x[0]).shape == (32, 8, 8)  # unbatched


def test_a_subclass_with_its_own_forward_is_left_alone():
    class Scaled(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    net = nn.ModuleList([Scaled(3, 3, 1), nn.Linear(3, 3), nn.InstanceNorm2d(3), nn.Conv2d(3, 3, 1)])
    assert thin(net) == ["3"]
    assert type(net[0]) is Scaled


def test_unthin_gives_back_the_class_and_copies_work():
    net = nn.Sequential(*(frozen(HOSTS[n][0]) for n in ("wide", "wide")))
    x = torch.randn(2, 32, 8, 8)
    thin(net)
    thin(net)
    for copied in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        unthin(copied)
        assert type(copied[0]) is nn.Conv2d
        assert torch.equal(copied(x), net(x))
    assert type(net[0]) is not nn.Conv2d and isinstance(net[0], nn.Conv2d)
    switch(net[0], name="bias")
    unthin(net)
    assert type(net[1]) is nn.Conv2d and type(net[0])._switch[1:] == (("bias",), ())


def test_function_transforms_pass_through():
    """Per-sample gradients (vmap of grad) of a thin network are torch's."""
    net = nn.Sequential(frozen(HOSTS["wide"][0]), frozen(lambda: nn.BatchNorm2d(32)))
    x = torch.randn(3, 32, 5, 5)

    def loss(sample):
        return net(sample[None]).square().sum()

    expected = torch.func.vmap(torch.func.grad(loss))(x)
    thin(net)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(x), expected)
    torch.testing.assert_close(torch.func.grad(loss)(x[0]), expected[0])


def test_compiled_graphs_are_torchs_own():
    net = nn.Sequential(frozen(HOSTS["wide"][0]), frozen(lambda: nn.BatchNorm2d(32)))
    thin(net)
    x = torch.randn(1, 32, 6, 6, requires_grad=True)
    explained = torch._dynamo.explain(net)(x)
    assert explained.graph_break_count == 0
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="aot_eager")
    torch.testing.assert_close(torch.autograd.grad(compiled(x).sum(), x), torch.autograd.grad(net(x).sum(), x))
    torch._dynamo.reset()


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0"])
def test_a_whole_network_keeps_less(name, capsys):
    """ResNet-18 8x3x64x64; EfficientNet's norms are timm's BatchNormAct2d. Measured ratios are printed."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=5).requires_grad_(False).eval()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    x = torch.randn(8 if name == "resnet18" else 2, 3, 64, 64)
    y, dx, kept = run(net, x)
    paths = thin(net)
    thin_y, thin_dx, thin_kept = run(net, x)
    with capsys.disabled():
        print(f"\n{name}: {len(paths)} thin layers, kept {kept / 2**20:.1f} -> {thin_kept / 2**20:.1f} MiB")
    assert torch.equal(thin_y, y) and torch.equal(thin_dx, dx)
    assert thin_kept < 0.62 * kept
    unthin(net)
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
