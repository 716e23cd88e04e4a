"""Activation methods against their formulas, written out again without the method's shortcuts, and their counts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from core.adapters import attach, cost, methods, plan, summary
from core.adapters.cost import saved_bytes
from core.adapters.model import trainable
from core.errors import UnsupportedError
from tests.core.adapters.hosts_under_test import relative, shaken
from tests.core.adapters.test_activations import KINDS, Block, C, Kind, Net, given, moved


def kind(name: str) -> Kind:
    return next(k for k in KINDS if k.name == name)


def on(name: str, where: str = "block", by: float = 0.3, **options):
    """(a net with a shaken adapter at its three modules, the three methods, an input)"""
    k = kind(where)
    net = attach(k.net(), name, targets=["r"], seed=0, **given(k), **options)
    moved(net, by)
    return net, [m for slot in net._peft.slots.values() for m in slot.methods.values()], k.input()


def test_adaptformer():
    _, (m, *_), _ = on("adaptformer", size=3, dropout=0.5)
    h, x = torch.randn(2, 5, C), torch.randn(2, 5, C)
    z = torch.relu(x @ m.down.weight.T + m.down.bias)
    expected = h + 0.1 * (z @ m.up.weight.T + m.up.bias)
    assert relative(m(h, x), expected) <= 1e-6
    m.train()
    torch.manual_seed(0)
    kept = torch.stack([(m(h, x) - h - 0.1 * m.up.bias).abs() > 0 for _ in range(50)]).float().mean()
    assert relative(m(h, x), expected) > 1e-2 and kept > 0.5, "dropout acts in training alone"


def test_compacter_is_a_sum_of_kronecker_products():
    _, sites, _ = on("compacter", size=4, n=2)
    m = sites[2]
    D = sum(torch.kron(m.S[c], torch.outer(m.down_a[c], m.down_b[c])) for c in range(2))
    U = sum(torch.kron(m.S[c], torch.outer(m.up_a[c], m.up_b[c])) for c in range(2))
    h = torch.randn(3, 5, C)
    expected = h + F.gelu(h @ D.T + m.down_bias) @ U.T + m.up_bias
    assert D.shape == (4, C) and relative(m(h, h), expected) <= 1e-6
    assert all(one.S is sites[0].S for one in sites)


@pytest.mark.parametrize(("first", "last"), [(0, 0), (1, 2), (3, 4)])
def test_loreft(first, last):
    _, (m, *_), _ = on("loreft", rank=3, first=first, last=last)
    R, h = m.R(), torch.randn(2, 5, C)
    assert relative(R @ R.T, torch.eye(3)) <= 1e-6
    span = torch.linalg.lstsq(m.A.T, R.T)
    assert relative(m.A.T @ span.solution, R.T) <= 1e-5, "the rows of R span what A's do"
    edited = h + (h @ m.W.T + m.b - h @ R.T) @ R
    at = torch.arange(5)
    chosen = (at < first) | (at >= 5 - last) | (first == last == 0)
    assert relative(m(h, h), torch.where(chosen[:, None], edited, h)) <= 1e-5


def test_loreft_moves_smoothly():
    """The signs of a QR decomposition are the algorithm's choice; ours are fixed: small steps of A are small in R."""
    _, (m, *_), _ = on("loreft", rank=3)
    with torch.no_grad():
        for seed in range(20):
            m.A.copy_(torch.randn(3, C, generator=torch.Generator().manual_seed(seed)))
            before = m.R()
            m.A[:, 0] += 1e-4
            assert relative(m.R(), before) < 1e-2
            assert ((m.R() * m.A).sum(1) > 0).all(), "each row on its own side, as Gram and Schmidt have it"


@pytest.mark.parametrize("where", ["conv1d", "conv2d", "conv3d", "strided", "transposed"])
def test_conv_adapter_moves_as_its_host(where):
    net, (m, *_), x = on("conv_adapter", where, reduction=2)
    host, width = net.layers[0], C // 2
    functions = {"conv1d": F.conv1d, "conv2d": F.conv2d, "conv3d": F.conv3d, "strided": F.conv2d}
    if where == "transposed":
        z = F.conv_transpose2d(
            x, m.down.weight, None, host.stride, host.padding, host.output_padding, width, host.dilation
        )
    else:
        padding = host.padding
        if where == "conv3d":  # circular
            x, padding = F.pad(x, (1,) * 6, mode="circular"), 0
        z = functions[where](x, m.down.weight, None, host.stride, padding, host.dilation, width)
        x = kind(where).input()
    h = host._conv_forward(x, host.weight, host.bias) if where != "transposed" else F.conv_transpose2d(
        x, host.weight, host.bias, host.stride, host.padding, host.output_padding
    )  # fmt: skip
    z = (m.up.flatten(1) @ torch.relu(z).flatten(2)).view(h.shape) * m.scale.view(-1, *[1] * (h.ndim - 2))
    assert relative(host(x), h + z) <= 1e-5


def test_conv_adapter_where_padding_is_its_hosts_secret():
    """timm's Conv2dSame pads by the input's size: its geometry does not tell, and is never guessed."""

    class Same(nn.Conv2d):
        def forward(self, x):
            return super().forward(F.pad(x, (1, 1, 1, 1)))

    secret = Kind("same", lambda: Same(C, C, 3), (2, C, 5, 6), 1)
    with pytest.raises(UnsupportedError, match="form=residual"):
        attach(secret.net(), "conv_adapter", targets=["r"], **given(secret))
    attach(secret.net(), "conv_adapter", targets=["r"], **given(secret), form="residual")


def test_hyperformer_makes_each_site_its_own_weights():
    _, (a, b, _), _ = on("hyperformer", size=3, embedding=4)
    assert a.hypernet is b.hypernet
    e = a.hypernet.norm(a.hypernet.project(b.z))
    flat = e @ a.hypernet.down.weight.T + a.hypernet.down.bias
    D, d = flat[: 3 * C].view(3, C), flat[3 * C :]
    flat = e @ a.hypernet.up.weight.T + a.hypernet.up.bias
    U, u = flat[: 3 * C].view(C, 3), flat[3 * C :]
    h = torch.randn(2, 5, C)
    assert relative(b(h, h), h + F.gelu(h @ D.T + d) @ U.T + u) <= 1e-6
    assert relative(a(h, h), b(h, h)) > 1e-3


def test_lily_mixes_experts_at_each_position():
    _, sites, _ = on("lily", "linear", rank=3, stride=2, experts=4)
    assert sites[0].A is sites[1].A and sites[1].A is not sites[2].A and all(m.B is sites[0].B for m in sites)
    m, h, x = sites[1], torch.randn(2, 5, C), torch.randn(2, 5, C)
    expected = h.clone()
    for i in range(2):
        for t in range(5):
            z = m.A @ x[i, t]
            p = (m.R @ z).softmax(0)
            expected[i, t] += sum(p[e] * (z @ m.B[e]) for e in range(4))
    assert relative(m(h, x), expected) <= 1e-5
    other = torch.cat([x[:1], torch.randn(1, 5, C)])
    assert torch.equal(m(h, x)[0], m(h, other)[0]), "no row sees its neighbours"


def test_lily_equals_the_peer_where_there_is_one_position():
    """The peer averages the router over all positions of the batch: with one there is nothing to average."""
    peft = pytest.importorskip("peft")
    if not hasattr(peft, "LilyConfig"):
        pytest.skip("this peft has no Lily")
    k = Kind("linear", lambda: nn.Linear(C, C), (1, 1, C))
    ours, x = k.net(), k.input()
    attach(ours, "lily", targets=["r"], seed=0, **given(k), rank=3, stride=2, experts=4)
    moved(ours, 0.5)
    theirs = peft.get_peft_model(k.net(), peft.LilyConfig(
        r=3, stride_A=2, num_B=4, scaling=1.0, target_modules=["layers.0", "layers.1", "layers.2"]
    ))  # fmt: skip
    layers = [m for m in theirs.modules() if hasattr(m, "lily_A")]
    sites = [m for slot in ours._peft.slots.values() for m in slot.methods.values()]
    with torch.no_grad():
        for layer, m in zip(layers, sites, strict=True):
            layer.lily_A["default"].weight = nn.Parameter(m.A.clone())
            layer.lily_B["default"].weight = nn.Parameter(m.B.flatten(0, 1).clone())
            layer.lily_router["default"].weight = nn.Parameter(m.R.clone())
        assert relative(theirs(x), ours(x)) <= 1e-5
        assert relative(k.net()(x), ours(x)) > 1e-2


def test_ladder_is_the_recursion():
    net, sites, x = on("ladder", reduction=2)
    plain, seen = kind("block").net(), []
    for layer in plain.layers:
        layer.register_forward_hook(lambda module, args, out: seen.append((args[0], out)))
    plain(x)
    s = sites[0].start(seen[0][0])
    for m, (_, h) in zip(sites, seen, strict=True):
        gate = torch.sigmoid(m.gate / 0.1)
        s = gate * s + (1 - gate) * m.down(h)
        s = s + m.block(s)
    expected = plain.head(torch.tanh(seen[-1][1] + s @ sites[-1].up.weight.T))
    assert relative(net(x), expected) <= 1e-5
    assert [m.start is None for m in sites] == [False, True, True]
    assert [m.up is None for m in sites] == [True, True, False]


class Wide(Net):
    def __init__(self, inner: int):
        super().__init__(lambda: Block(inner), -1)


@pytest.mark.parametrize("method", ["ladder", "houlsby"])
def test_the_backbone_beside_a_ladder_keeps_nothing_for_the_backward_pass(method):
    """Blocks 64 times as wide inside: not a byte more. (An adapter between the blocks keeps what they hold.)"""
    kept = []
    for inner in (12, 64 * 12):
        net = Wide(inner).requires_grad_(False).train()
        attach(net, method, targets=["r"], **given(kind("block")))
        kept.append(saved_bytes(lambda net=net: net(kind("block").input()), net))
    wider = 2 * 4 * 15 * 63 * 12  # at least ReLU's output in the two blocks above the first adapter
    assert kept[1] == kept[0] if method == "ladder" else kept[1] >= kept[0] + wider
    if method == "ladder":  # each block's output once for its down-projection; the side network; tanh and head
        assert kept[0] <= 4 * 15 * (4 * C + 3 * 30 + 4 * C)


def test_no_gradient_runs_through_the_blocks():
    net, _, x = on("ladder")
    touched = []
    for layer in net.layers[:2]:
        layer.register_forward_hook(lambda module, args, out: touched.append(out.requires_grad))
    net.train()(x).sum().backward()
    assert touched == [False, False] and all(p.grad is not None for p in trainable(net).values())


def test_a_ladder_reads_without_a_gradient():
    """Where something below trains as well, the side network is no second way down to it."""
    _, (m, *_), _ = on("ladder")
    h, x = torch.randn(2, 5, C, requires_grad=True), torch.randn(2, 5, C, requires_grad=True)
    alone = methods.find("ladder")(C, C)
    shaken(alone)
    ramp = torch.linspace(0.5, 1.5, h.numel()).view(h.shape)
    through_h, through_x = torch.autograd.grad((alone(h, x) * ramp).sum(), [h, x], allow_unused=True)
    assert torch.equal(through_h, ramp) and through_x is None and m(h, x) is h


def test_a_skipped_block_leaves_no_old_state_behind():
    """Layer drop: the next block goes on from what there is in this pass, never from the last one."""
    net, _, x = on("ladder")
    full = net(x)
    kept = net.layers

    def without(*left_out):
        net.layers = nn.ModuleList([layer for i, layer in enumerate(kept) if i not in left_out])
        return net(x)

    expected = {left_out: without(*left_out) for left_out in ((0,), (1,), (0, 1))}
    for left_out, first in expected.items():
        without(1)
        assert torch.equal(without(*left_out), first)
    without(2)  # ends before the last block: its state waits
    assert torch.equal(without(0), expected[0,])
    net.layers = kept
    assert torch.equal(net(x), full)


def test_a_ladder_needs_one_shape_when_it_runs_too():
    """Two stacks whose example happened to have equal lengths."""
    net, _, x = on("ladder")
    net.layers[1].register_forward_pre_hook(lambda module, args: (args[0][:, :3],))
    with pytest.raises(UnsupportedError, match="one stack's blocks"):
        net(x)


def on_meta(name: str, *widths: tuple[int, ...], **options) -> int:
    """Parameters at modules of these widths, (out,) or (out, in), what they share once."""
    cls = methods.find(name)
    with torch.device("meta"):
        built = [cls(*w, **options) for w in widths]
        cls.join(built)
    return sum(p.numel() for p in nn.ModuleList(built).parameters())


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        # ViT-B with a 100-way head, arXiv 2205.13535: 1.26 M
        (lambda: on_meta("adaptformer", *[(768, 768)] * 12) + 100 * 769, 1_266_532),
        # LLaMA-7B, rank 8 at all 32 layers, arXiv 2404.03592: 0.031 %
        (lambda: on_meta("loreft", *[(4096,)] * 32, rank=8), 2_097_408),
        # BERT-base, n 4, size 24 at both places of 12 layers
        (lambda: on_meta("compacter", *[(768,)] * 24, size=24, n=4), 24 * (2 * 792 + 24 + 768) + 4**3),
        (lambda: on_meta("residual", *[(512,)] * 17, size=64), 17 * (2 * 512 * 64 + 3 * 512 + 64)),
        (lambda: on_meta("residual", (64,), (128,), form="linear"), 64**2 + 128**2),
        (lambda: on_meta("hyperformer", *[(768,)] * 24, size=24, embedding=64),
         24 * 64 + 65 * (2 * 768 * 24 + 768 + 24) + 2 * 64 * 65 + 2 * 64),
        (lambda: on_meta("lily", *[(4096, 4096)] * 32, rank=16, stride=2, experts=4),
         16 * 16 * 4096 + 4 * 16 * 4096 + 32 * 4 * 16),
        (lambda: on_meta("ladder", *[(768, 768)] * 12, reduction=8, expand=4),
         12 * (769 * 96 + 8 * 96**2 + 7 * 96 + 1) + 769 * 96 + 768 * 96),
    ],
    ids=["adaptformer", "loreft", "compacter", "residual", "residual-linear", "hyperformer", "lily", "ladder"],
)  # fmt: skip
def test_counts(ours, expected):
    assert ours() == expected


def test_conv_adapter_counts():
    """in k + width dim + dim; a width that does not divide goes to the next that does."""
    for channels, out, kernel, width in ((64, 64, 3, 16), (64, 256, 1, 16), (3, 64, 7, 1), (6, 8, 3, 1), (10, 8, 3, 2)):
        k = Kind("conv", lambda c=channels, o=out, s=kernel: nn.Conv2d(c, o, s, padding=s // 2), (1, channels, 8, 8), 1)
        net = _First(k.make())
        table = plan(net, "conv_adapter", targets=["r"], roles={"r": "layer"}, example=((k.input(),), {}), reduction=4)
        assert table.parameters == channels * kernel**2 + width * out + out, (channels, table.parameters)


class _First(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)


def test_costs_know_what_is_shared():
    net, _, _ = on("hyperformer", size=3, embedding=4)
    expected = 3 * 4 + 5 * (2 * C * 3 + C + 3) + 2 * 4 * 5 + 2 * 4
    assert summary(net).parameters == expected == cost(net).trainable
    assert cost(net).adapter_bytes == 4 * expected


def test_the_axis_of_channels():
    """Behind a PReLU, a weight norm, and where a module has no layer of its own."""

    class Images(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Sequential(nn.Conv2d(C, C, 3, padding=1), nn.PReLU())
            self.b = nn.Identity()
            self.c = nn.utils.parametrizations.weight_norm(nn.Conv2d(C, C, 1))

        def forward(self, x):
            return self.c(self.b(self.a(x)))

    x = torch.randn(1, C, 5, 6)
    net = attach(Images(), "houlsby", targets=["r"], roles={"r": ["a", "b", "c"]}, example=((x,), {}))
    assert [m.axis for slot in net._peft.slots.values() for m in slot.methods.values()] == [1, 1, 1]
    assert {row.shape for row in summary(net).rows} == {(C,)}
    shaken(net._peft.slots)
    assert net(torch.randn(2, C, 9, 9)).shape == (2, C, 9, 9)
