"""Every activation method x every kind of module: each cell works in all the ways below, or is refused with a reason
and something to use instead. Found by looking: a new file in methods/ is held to it on arrival."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from core.adapters import attach, detach, load_adapter, methods, plan, save_adapter, summary, use
from core.adapters.model import trainable
from core.errors import ConfigError, UnsupportedError
from tests.core.adapters.hosts_under_test import relative, shaken

C = 8  # width of every module


class Block(nn.Module):
    """A transformer block, pre-norm."""

    def __init__(self, inner: int = 12):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(C), nn.Linear(C, inner), nn.Linear(inner, C)
        self.attn = Attention()

    def forward(self, x):
        x = x + self.attn(self.norm(x))[0]
        return x + self.down(torch.relu(self.up(x)))


class Attention(nn.Module):
    """Returns (output, weights)."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(C, 3 * C), nn.Linear(C, C)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        weights = (q @ k.transpose(-1, -2) / C**0.5).softmax(-1)
        return self.out(weights @ v), weights


class Net(nn.Module):
    """Three modules of one kind, one after the other, then a head that mixes the channels."""

    def __init__(self, make: Callable[[], nn.Module], axis: int, checkpointed: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([make() for _ in range(3)])
        self.head, self.axis, self.checkpointed = nn.Linear(C, C), axis, checkpointed

    def forward(self, x):
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.checkpointed and self.training else layer(x)
            x = torch.tanh(x[0] if isinstance(x, tuple) else x)
        return self.head(x.movedim(self.axis, -1))


@dataclass(frozen=True)
class Kind:
    """One kind of module; `x` is the shape of its input."""

    name: str
    make: Callable[[], nn.Module]
    x: tuple[int, ...]
    axis: int = -1
    pattern: str = "layers.*"

    def __str__(self) -> str:
        return self.name

    def input(self, dtype=torch.float32):
        return torch.randn(self.x, generator=torch.Generator().manual_seed(3)).to(dtype)

    def net(self, **options) -> Net:
        return Net(self.make, self.axis, **options).requires_grad_(False).eval()


KINDS = [
    Kind("block", Block, (3, 5, C)),
    Kind("linear", lambda: nn.Linear(C, C), (3, 5, C)),
    Kind("rows", lambda: Attention(), (3, 5, C), pattern="layers.*.qkv[2/3]"),
    Kind("tuple", Attention, (3, 5, C)),
    Kind("lstm", lambda: nn.LSTM(C, C, batch_first=True), (3, 5, C)),
    Kind("conv1d", lambda: nn.Conv1d(C, C, 3, padding=1), (2, C, 7), 1),
    Kind("conv2d", lambda: nn.Conv2d(C, C, 3, padding=1), (2, C, 5, 6), 1),
    Kind("conv3d", lambda: nn.Conv3d(C, C, 3, padding=1, padding_mode="circular"), (2, C, 3, 4, 5), 1),
    Kind("strided", lambda: nn.Conv2d(C, C, 3, stride=2, padding=2, dilation=2), (2, C, 17, 16), 1),
    Kind("transposed", lambda: nn.ConvTranspose2d(C, C, 3, stride=2, output_padding=1), (2, C, 2, 3), 1),
    Kind("weight_norm", lambda: nn.utils.parametrizations.weight_norm(nn.Conv1d(C, C, 3, padding=1)), (2, C, 7), 1),
]
NAMES = [name for name in methods.names() if methods.find(name).face == "activation"]
# Small, and smooth: of four ReLUs all may be off.
SMALL = {
    "activation": "silu",
    "size": 4,
    "n": 2,
    "embedding": 4,
    "rank": 2,
    "experts": 3,
    "reduction": 2.0,
    "expand": 2,
}
# Options beside the defaults under which a method is another formula.
FURTHER = {
    "residual": [{"form": "linear"}],
    "conv_adapter": [{"form": "residual"}],
    "loreft": [{"first": 1, "last": 2}],
}
# Kinds that a method refuses, all of them; methods not named here may refuse others, with a reason.
SEQUENCES, MOVING = {"block", "linear", "rows", "tuple", "lstm"}, {"strided", "transposed"}
REFUSED = {
    "conv_adapter": SEQUENCES, "conv_adapter-residual": SEQUENCES, "loreft-1-2": {k.name for k in KINDS} - SEQUENCES,
    "adaptformer": MOVING, "ladder": MOVING, "lily": MOVING, "parallel": MOVING,
    "compacter": set(), "houlsby": set(), "hyperformer": set(), "loreft": set(), "pfeiffer": set(), "residual": set(),
    "residual-linear": set(),
}  # fmt: skip


@dataclass(frozen=True)
class Variant:
    name: str
    further: tuple = ()

    def __str__(self) -> str:
        return "-".join([self.name, *(str(v) for _, v in self.further)])

    @property
    def options(self) -> dict:
        known = methods.options(methods.find(self.name))
        return {k: v for k, v in SMALL.items() if k in known} | dict(self.further)


VARIANTS = [Variant(n, tuple(more.items())) for n in NAMES for more in ({}, *FURTHER.get(n, []))]
CELLS = [(v, k) for v in VARIANTS for k in KINDS]
cells = pytest.mark.parametrize(("variant", "kind"), CELLS, ids=lambda x: str(x))


def given(kind: Kind) -> dict:
    return {"roles": {"r": kind.pattern}, "example": ((kind.input(),), {})}


def adapted(variant: Variant, kind: Kind, by: float = 0.2, **options) -> Net:
    if kind.name in REFUSED.get(str(variant), ()):
        pytest.skip("refused, with a reason: test_a_cell_works_or_says_what_to_use")
    net = kind.net(**options)
    try:
        attach(net, variant.name, targets=["r"], seed=0, **given(kind), **variant.options)
    except UnsupportedError as refused:
        assert str(variant) not in REFUSED, refused
        pytest.skip(str(refused))
    return moved(net, by)


def moved(net: Net, by: float) -> Net:
    """Every tensor of the adapter, once, away from its start."""
    shaken(nn.ParameterList(trainable(net).values()), by)
    return net


@torch.no_grad()
def bits(net: Net, x):
    return net(x)


@torch.no_grad()
def outputs(net: Net, x) -> list:
    """What each adapted module makes of x."""
    made = [layer(x) for layer in net.layers]
    return [y[0] if isinstance(y, tuple) else y for y in made]


def gradients(net: Net, x) -> dict[str, torch.Tensor]:
    y = net(x)
    ramp = torch.linspace(0.5, 1.5, y.numel()).view(y.shape)
    tensors = trainable(net)
    return dict(zip(tensors, torch.autograd.grad((y.float() * ramp).sum(), list(tensors.values())), strict=True))


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_cell_works_or_says_what_to_use(variant, kind):
    """The start is the identity, to the bit; plan and summary count alike; detach gives the base back."""
    net, x = kind.net(), kind.input()
    base, each, classes = bits(net, x), outputs(net, x), [type(m) for m in net.modules()]
    planned = None
    try:
        planned = plan(net, variant.name, targets=["r"], **given(kind), **variant.options)
        attach(net, variant.name, targets=["r"], seed=0, **given(kind), **variant.options)
    except UnsupportedError as refused:
        assert planned is None and kind.name in REFUSED.get(str(variant), {kind.name}), refused
        assert all(problem.got and "use" in problem.fix for problem in refused.problems), refused
        assert not hasattr(net, "_peft")
        return
    assert kind.name not in REFUSED.get(str(variant), ())
    assert all(torch.equal(a, b) for a, b in zip(outputs(net, x), each, strict=True))
    assert max(relative(bits(net, x), base), relative(net(x), base)) <= 1e-6  # other kernels, where a layout differs
    rows = summary(net).rows
    assert len(rows) == 3 and [r.parameters for r in planned.rows] == [r.parameters for r in rows]
    assert sum(r.parameters for r in rows) == sum(p.numel() for p in trainable(net).values()) > 0
    moved(net, 0.2)
    assert relative(net(x), base) > 1e-3
    with use(net, None):
        assert torch.equal(bits(net, x), base)
    detach(net)
    assert torch.equal(bits(net, x), base) and [type(m) for m in net.modules()] == classes


@cells
def test_gradients_reach_every_tensor(variant, kind):
    net = adapted(variant, kind)
    for name, grad in gradients(net, kind.input()).items():
        assert grad.abs().max() > 0 and torch.isfinite(grad).all(), name
    assert all(p.grad is None and not p.requires_grad for n, p in net.named_parameters() if not n.startswith("_peft"))


@cells
def test_saved_copied_and_pickled_adapters_are_equal(variant, kind, tmp_path):
    net, x = adapted(variant, kind), kind.input()
    expected = net(x)
    save_adapter(net, tmp_path)
    again = load_adapter(kind.net(), tmp_path, **given(kind))
    others = [again, copy.deepcopy(net)]
    if kind.name != "weight_norm":  # torch pickles no parametrised module
        others.append(pickle.loads(pickle.dumps(net)))
    for other in others:
        assert torch.equal(other(x), expected)
        assert trainable(other).keys() == trainable(net).keys()
        moved(other, 0.1)
        assert not torch.equal(other(x), expected) and torch.equal(net(x), expected)


@cells
def test_half_precision(variant, kind):
    """Under autocast the adapter stays fp32 and so do its gradients; on a bf16 base it computes in fp32."""
    net, x = adapted(variant, kind), kind.input()
    expected = net(x)
    with torch.autocast("cpu", torch.bfloat16):
        grads = gradients(net, x)
        assert relative(net(x).float(), expected) <= 0.1
    assert {p.dtype for p in trainable(net).values()} == {g.dtype for g in grads.values()} == {torch.float32}
    if kind.name != "weight_norm":
        half = kind.net().bfloat16()
        attach(half, variant.name, targets=["r"], seed=0, roles=given(kind)["roles"],
               example=((kind.input(torch.bfloat16),), {}), **variant.options)  # fmt: skip
        moved(half, 0.2)
        assert {p.dtype for p in trainable(half).values()} == {torch.float32}
        out = half(kind.input(torch.bfloat16))
        assert out.dtype == torch.bfloat16 and relative(out.float(), expected) <= 0.15


@cells
def test_gradient_checkpointing_changes_nothing(variant, kind):
    """In train mode, dropout included: the same output and the same gradients to the bit."""
    found = []
    for checkpointed in (False, True):
        net = adapted(variant, kind, checkpointed=checkpointed).train()
        torch.manual_seed(5)
        found.append((net(kind.input()), gradients(net, kind.input())))
    assert torch.equal(found[0][0], found[1][0])
    for name, grad in found[0][1].items():
        assert torch.equal(grad, found[1][1][name]), name


@pytest.mark.parametrize(
    "variant", [v for v in VARIANTS if v.name in ("ladder", "lily", "compacter", "loreft")], ids=str
)
def test_compiled(variant):
    """One graph per call, the adapter inside; methods with shared tensors, and the one with a state on its way."""
    kind = KINDS[0]
    net, x = adapted(variant, kind), kind.input()
    expected, grads = net(x), gradients(net, x)
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="aot_eager")
    for _ in range(2):
        assert relative(compiled(x), expected) <= 1e-5
    y = compiled(x)
    ramp = torch.linspace(0.5, 1.5, y.numel()).view(y.shape)
    ours = torch.autograd.grad((y * ramp).sum(), list(trainable(net).values()))
    assert max(relative(a, b) for a, b in zip(ours, grads.values(), strict=True)) <= 1e-4


def test_bad_options_are_refused_by_name():
    block, conv = KINDS[0], next(k for k in KINDS if k.name == "conv2d")
    for name, kind, options, text in [
        ("compacter", block, {"size": 5, "n": 2}, "a multiple of n"),
        ("compacter", block, {"size": 6, "n": 3}, r"n 3 at width 8.*\[1, 2, 4, 8\]"),
        ("loreft", block, {"rank": 0}, "1 or more"),
        ("loreft", block, {"rank": 9}, "1 to 8"),
        ("lily", block, {"experts": 1}, "2 or more"),
        ("conv_adapter", conv, {"form": "residual", "kernel": 4}, "odd"),
        ("ladder", block, {"reduction": 0.5}, "1 or more"),
        ("adaptformer", block, {"dropout": 1.0}, "0 <= p < 1"),
    ]:
        with pytest.raises(UnsupportedError, match=text):
            attach(kind.net(), name, targets=["r"], **given(kind), **options)
    with pytest.raises(ConfigError, match="did you mean `reduction`"):
        attach(block.net(), "ladder", targets=["r"], **given(block), reducton=2)


def test_a_role_that_names_a_parameter_is_no_output():
    """An output adapter there would act on something else than the role says."""
    kind = next(k for k in KINDS if k.name == "lstm")
    with pytest.raises(UnsupportedError, match="weight_hh_l0 is no module's output"):
        attach(
            kind.net(), "houlsby", targets=["r"], roles={"r": "layers.*:weight_hh_l0"}, example=((kind.input(),), {})
        )
