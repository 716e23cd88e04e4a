"""Each method against its closed form; and how methods are found."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from core.adapters import methods
from core.adapters.dropout import draw_seed, keep_mask
from core.adapters.hosts import op_for
from core.adapters.methods.dora import DoRA
from core.adapters.methods.houlsby import Houlsby
from core.adapters.methods.ia3 import IA3
from core.adapters.methods.lora import LoRA
from core.adapters.methods.parallel import Parallel
from core.adapters.methods.pfeiffer import Pfeiffer
from core.errors import ConfigError, UnsupportedError
from core.parts import expand
from core.paths import conf_dir
from tests.core.adapters.hosts_under_test import HOSTS, relative, shaken, through_output

SEED = 0


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(SEED)


# Closed forms --------------------------------------------------------------------------------------------------------


def test_lora_reaches_any_change_of_its_rank():
    """With A = I and B = (R - W) / s the definition collapses to W' = R."""
    W, R = torch.randn(6, 4), torch.randn(6, 4)
    m = LoRA(W, rank=4, alpha=8)
    m.A.data, m.B.data = torch.eye(4), (R - W) / 2.0
    assert relative(m.weight(W), R) <= 1e-6  # measured 2e-7


def test_lora_scales():
    W = torch.randn(32, 32)
    assert LoRA(W, rank=16, alpha=8).scale == 0.5
    assert LoRA(W, rank=16, alpha=8, scaling="rank_stabilised").scale == 2.0


def test_dora_rows_have_length_m_and_the_direction_of_lora():
    W = torch.randn(6, 5)
    m = shaken(DoRA(W, rank=2, alpha=6), by=0.5)
    V = W + 3.0 * m.B @ m.A
    assert relative(m.weight(W).norm(dim=1), m.m.abs()) <= 1e-6
    assert relative(F.cosine_similarity(m.weight(W), V) * m.m.sign(), torch.ones(6)) <= 1e-6
    assert relative(m.norm(W), V.norm(dim=1)) <= 1e-6


def test_dora_gradient_takes_the_norm_for_a_constant():
    W = torch.randn(6, 5)
    m = shaken(DoRA(W, rank=2), by=0.5)
    V = W + m.scale * m.B @ m.A
    plain = (m.m / V.norm(dim=1).detach())[:, None] * V
    g = torch.randn(6, 5)
    ours = torch.autograd.grad(m.weight(W), list(m.parameters()), g)
    theirs = torch.autograd.grad(plain, list(m.parameters()), g)
    assert max(relative(a, b) for a, b in zip(ours, theirs, strict=True)) <= 1e-5


def test_dora_keeps_a_row_of_zeros():
    W = torch.randn(3, 4)
    W[1] = 0
    m = DoRA(W, rank=2)
    assert torch.equal(m.weight(W)[1], torch.zeros(4))
    (m.weight(W) * torch.randn(3, 4)).sum().backward()
    assert all(p.grad.isfinite().all() for p in m.parameters())


def test_ia3_scales_outputs_and_the_feed_forward_input():
    W = torch.randn(6, 4)
    out, into = shaken(IA3(W)), shaken(IA3(W, side="in"))
    assert torch.equal(out.weight(W), torch.diag(out.l) @ W)
    assert torch.equal(into.weight(W), W @ torch.diag(into.l))
    sides = {role: IA3.options_for(role, {"side": "by_role"})["side"] for role in IA3.targets}
    assert sides == {"attn.k": "out", "attn.v": "out", "mlp.out": "in"}
    assert IA3.options_for("mlp.out", {"side": "out"}) == {"side": "out"}


@pytest.mark.parametrize(
    ("method", "f"), [(Houlsby(6, size=3), F.gelu), (Pfeiffer(6, reduction=3), F.relu)], ids=["houlsby", "pfeiffer"]
)
def test_a_bottleneck_is_its_formula(method, f):
    m = shaken(method, by=0.5)
    h = torch.randn(2, 5, 6)
    D, d, U, u = (p.detach() for p in m.parameters())
    expected = h + torch.einsum("ij,...j->...i", U, f(torch.einsum("ij,...j->...i", D, h) + d)) + u
    assert relative(m(h, torch.full_like(h, torch.nan)), expected) <= 1e-6  # the module's input is not read


def test_parallel_reads_the_input():
    m = shaken(Parallel(6, 4, size=3, scale=0.5), by=0.5)
    h, x = torch.randn(2, 5, 6), torch.randn(2, 5, 4)
    D, d, U, u = (p.detach() for p in m.parameters())
    assert relative(m(h, x), h + 0.5 * (F.relu(x @ D.T + d) @ U.T + u)) <= 1e-6
    with pytest.raises(UnsupportedError, match="input"):
        m(h, torch.randn(2, 1, 4))


@pytest.mark.parametrize("cls", [Houlsby, Pfeiffer, Parallel])
def test_bottlenecks_start_as_the_identity_and_live_on_channel_axes(cls):
    """On axis 1 the two projections are 1 x 1 convolutions."""
    h = torch.randn(2, 32, 4, 3)
    widths = (32, 32) if cls.reads_input else (32,)
    assert torch.equal(cls(*widths, axis=1)(h, h), h)
    m = shaken(cls(*widths, axis=1, activation="silu"), by=0.2)
    D, d, U, u = (p.detach() for p in m.parameters())
    branch = F.conv2d(F.silu(F.conv2d(h, D[..., None, None], d)), U[..., None, None], u)
    assert relative(m(h, h), h + getattr(m, "scale", 1.0) * branch) <= 1e-5
    assert torch.autograd.gradcheck(m.double(), (h[:1].double().requires_grad_(), h[:1].double()), fast_mode=True)


# Dropout -------------------------------------------------------------------------------------------------------------


def test_dropout_keeps_or_scales_and_its_gradient_has_the_same_mask():
    """With A = B = I and s = 1 the change is dropout(x) itself."""
    host = nn.Linear(64, 64, bias=False).requires_grad_(False)
    m = LoRA(host.weight, rank=64, alpha=64, dropout=0.25)
    m.A.data, m.B.data = torch.eye(64), torch.eye(64)
    x = torch.rand(200, 64).add_(0.5).requires_grad_()
    op = op_for(host, "weight")
    change = m.output(x, torch.zeros(200, 64), op, host.weight, None)
    kept = change / x
    assert torch.allclose(kept[kept > 0], torch.tensor(4 / 3)) and (kept == 0).any()
    assert abs((kept == 0).float().mean() - 0.25) < 0.02  # four standard deviations: 0.015
    change.sum().backward()
    assert torch.equal(x.grad > 0, kept > 0) and torch.allclose(x.grad, kept)
    m.eval()
    assert torch.allclose(m.output(x, torch.zeros(200, 64), op, host.weight, None), x)


@pytest.mark.parametrize("cls", [LoRA, DoRA])
@pytest.mark.parametrize(
    "name", ["linear", "hf_conv1d", "fused_rows", "conv2d_reflect", "conv2d_grouped", "transposed2d"]
)
def test_dropout_gradients_are_plain_autograd_of_the_same_mask(cls, name):
    layer, op, x = next(h for h in HOSTS if h.name == name).build()
    M = op.matrix(layer.weight)
    m = shaken(cls(M, rank=2, dropout=0.25))
    x.requires_grad_()
    torch.manual_seed(7)
    y = through_output(m, op, layer, x)
    torch.manual_seed(7)
    dropped = x * keep_mask(x, 0.25, None if op.linear else draw_seed()) / 0.75
    branch = op.up(op.down(dropped, m.A), m.B) * m.scale
    b = op.bias(getattr(layer, "bias", None), y.ndim)
    host = op.take(layer(x)) - (0 if b is None else b)
    c = m.m / m.norm(M) if cls is DoRA else torch.ones(M.shape[0])
    expected = op.give(layer(x), op.scale(host + branch, c) + (0 if b is None else b))
    assert relative(y, expected) <= 1e-6
    g, tensors = torch.randn_like(y), [x, *m.parameters()]
    ours, plain = torch.autograd.grad(y, tensors, g), torch.autograd.grad(expected, tensors, g)
    assert max(relative(a, b) for a, b in zip(ours, plain, strict=True)) <= 1e-5


def test_dropout_keeps_a_byte_per_element():
    host = nn.Linear(256, 16, bias=False).requires_grad_(False)
    m = LoRA(host.weight, rank=2, dropout=0.1)
    x, seen = torch.randn(100, 256, requires_grad=True), {}

    def pack(t):
        seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    y = host(x)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = m.output(x, y, op_for(host, "weight"), host.weight, None)
    own = {t.untyped_storage().data_ptr() for t in (x, m.A, m.B)}
    extra = sum(size for address, size in seen.items() if address not in own)
    small = 4 * (100 * 2 + 16 * 2)  # A dropout(x), and s B
    assert 100 * 256 <= extra <= 100 * 256 + small + 64


def test_dropout_under_autocast():
    host = nn.Linear(16, 8).requires_grad_(False)
    m = shaken(LoRA(host.weight, rank=2, dropout=0.5))
    x = torch.randn(4, 16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = m.output(x, host(x), op_for(host, "weight"), host.weight, host.bias)
    y.float().sum().backward()
    assert x.grad.dtype == m.A.grad.dtype == torch.float32 and m.A.grad.abs().max() > 0


# Finding -------------------------------------------------------------------------------------------------------------


def test_an_unknown_method_is_named_with_its_nearest():
    with pytest.raises(ConfigError, match="did you mean `houlsby`"):
        methods.find("houlsbi")


def test_methods_of_other_packages_are_found(tmp_path, monkeypatch):
    """A distribution with an entry point, as pip would install it."""
    (tmp_path / "atlas_scale.py").write_text(
        "import torch\nfrom torch import nn\nfrom core.adapters.base import WeightMethod\n\n"
        "class Scale(WeightMethod):\n    def __init__(self, W, *, start: float = 1.0):\n        super().__init__()\n"
        "        self.s = nn.Parameter(torch.tensor(start))\n\n    def weight(self, W):\n        return self.s * W\n"
    )
    info = tmp_path / "atlas_scale-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: atlas-scale\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[peft_atlas.methods]\nscale = atlas_scale\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "scale" in methods.names()
    assert methods.options(methods.find("scale")) == {"start": 1.0}
    sys.modules.pop("atlas_scale")


FILES = sorted(p for p in Path(methods.__file__).parent.glob("*.py") if p.stem != "__init__")
LABELS = ["Parameters", "Start", "Differs", "Hosts", "Shapes"]


@pytest.mark.parametrize("file", FILES, ids=lambda p: p.stem)
def test_a_method_file_opens_with_its_formula(file):
    text = ast.get_docstring(ast.parse(file.read_text()))
    assert "arXiv" in text or "OpenReview" in text or file.stem in ("full", "none", "last_k")
    places = [text.find(label) for label in LABELS]
    assert all(p > 0 for p in places) and places == sorted(places), dict(zip(LABELS, places, strict=True))


PRESETS = sorted((conf_dir() / "adapter").glob("*.yaml"))


@pytest.mark.parametrize("file", PRESETS, ids=lambda p: p.stem)
def test_a_preset_names_options_that_its_method_has(file):
    from omegaconf import OmegaConf

    config = OmegaConf.to_container(OmegaConf.load(file))
    adapter = config.get("adapter", config)
    if "parts" in adapter:  # a combination: each part is a preset with changes, and its options are those of its method
        whole, problems = expand(adapter) if isinstance(adapter["parts"], dict) else ({"parts": {}}, [])
        for own in whole["parts"].values():
            cls = methods.find(own["_target_"].split(".")[-2])
            assert own.keys() - {"_target_", "targets"} <= methods.options(cls).keys()
        assert not problems
        return
    module, _, name = adapter.pop("_target_").rpartition(".")
    cls = methods.find(module.rpartition(".")[2])
    assert (cls.__module__, cls.__name__) == (module, name)
    targets = adapter.pop("targets", None)
    assert targets in (None, ["all"], [*cls.targets])
    known = methods.options(cls)
    assert {k: type(known[k])(v) for k, v in adapter.items()} == adapter  # KeyError: an option that does not exist
