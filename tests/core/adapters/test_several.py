"""Several adapters on one model: stacked, weighted, one per row, and in any order of attaching, using and detaching."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import nn

from core.adapters import adapters, attach, detach, merge, methods, mix, set_active, trainable, unmerge, use
from core.adapters.seam import ADAPTERS
from core.contracts import TokenPort
from core.errors import ConfigError, PeftError
from tests.core.adapters import tokens_zoo
from tests.core.adapters.hosts_under_test import HOSTS, One, Variant, on_full_weights, relative, variants

D = 8


def shake(net, name="default", by=0.1):
    """Away from the start, by numbers that the adapter's name seeds; in the precision of the base."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    with torch.no_grad():
        for p in trainable(net, name).values():
            p.add_((torch.randn(p.shape, generator=generator) * by).to(p))


def out(net, x):
    with torch.no_grad():
        return net(x)


# ---------------------------------------------------------------------- weights


KINDS = ("linear", "hf_conv1d", "fused_rows", "embedding", "conv1d_strided", "conv2d_grouped", "transposed1d")


def on_host(kind: str, *chosen: Variant):
    """(a model of one layer with an adapter per variant, moved; the variants that this layer takes; input)"""
    host = next(h for h in HOSTS if h.name == kind)
    layer, _, x = host.build(dtype=torch.float64)
    net, names = One(layer).eval(), []
    pattern = "layer" if host.rows is None else f"layer[{host.rows.start}:{host.rows.start + host.rows.size}]"
    for i, variant in enumerate(chosen):
        name = f"{variant.name}_{i}"
        try:
            attach(net, variant.name, name=name, targets=["w"], roles={"w": pattern}, example=((x,), {}), seed=i,
                   verify=False, **dict(variant.options))  # fmt: skip
        except PeftError:
            continue
        shake(net.double(), name)
        names.append(name)
    return net, names, x


def definition(net, weights: dict[str, float], x):
    """The closed form: the layer with W + sum_i w_i (f_i(W) - W) in the weight's place."""
    (slot,) = net._peft.slots.values()
    op, host = slot.parts[0].op, net.layer
    W = host._parameters["weight"]
    M, found = op.matrix(W), {part.adapter: slot.methods[part.method] for part in slot.parts}
    total = M + sum(w * (found[name].weight(M) - M) for name, w in weights.items())
    with use(net, None), torch.no_grad():
        kept = W.clone()
        W.data.copy_(op.put(W, total))
        y = net(x)
        W.data.copy_(kept)
    return y


@pytest.mark.parametrize("kind", KINDS)
def test_a_weighted_mix_is_the_closed_form(kind):
    """Every weight method beside two others, some of them with negative weights."""
    lora, ia3 = (next(v for v in variants() if v.name == name) for name in ("lora", "ia3"))
    tested = 0
    for variant in variants():
        net, names, x = on_host(kind, variant, lora, ia3)
        for weights in ({names[0]: 0.3}, dict(zip(names, (0.7, -0.4, 1.5), strict=False)), dict.fromkeys(names, 1.0)):
            with use(net, weights):
                error = relative(out(net, x), definition(net, weights, x))
            assert error <= 1e-10, (variant, weights, error)
            tested += 1
    assert tested > 60


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_what_they_are_one_by_one(kind):
    """One batch, each row through an adapter of its own, every weight method in turn; None is the base."""
    lora = next(v for v in variants() if v.name == "lora")
    for variant in variants():
        net, names, x = on_host(kind, variant, lora)
        x = torch.cat([x, x.flip(0)])[:4]
        rows = [names[0], None, names[-1], names[0]]
        with mix(net, rows):
            mixed = out(net, x)
        for i, row in enumerate(rows):
            with use(net, row):
                alone = out(net, x[i : i + 1])
            assert relative(mixed[i : i + 1], alone) <= 1e-12, (variant, row)
        assert relative(mixed, out(net, x)) > 1e-6


@pytest.mark.parametrize("variant", on_full_weights(), ids=str)
def test_twenty_merges_in_bf16_change_no_bit(variant):
    net = One(nn.Linear(8, 8).to(torch.bfloat16)).eval()
    x = torch.randn(3, 8, dtype=torch.bfloat16)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    attach(net, variant.name, targets=["w"], roles={"w": "layer"}, example=((x,), {}), seed=0, verify=False,
           **dict(variant.options))  # fmt: skip
    shake(net)
    adapted = out(net, x)
    for _ in range(20):
        merge(net)
        assert not torch.equal(net.layer._parameters["weight"], before["layer.weight"])
        unmerge(net)
        assert torch.equal(net.layer._parameters["weight"], before["layer.weight"])
    assert torch.equal(out(net, x), adapted)
    detach(net)
    assert all(torch.equal(t, before[k]) for k, t in net.state_dict().items())


# ---------------------------------------------------------------------- activations, tokens


@pytest.mark.parametrize("method", [n for n in methods.names() if methods.find(n).face == "activation"])
def test_rows_and_weights_of_activations(method):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.last = nn.Linear(D, D), nn.Linear(D, D)

        def forward(self, x):
            return self.last(torch.tanh(self.first(x)))

    net, x = Net().eval(), torch.randn(4, 5, D, dtype=torch.float64)
    where = {"roles": {"mlp": "first", "block": "first"}, "targets": ["mlp"], "example": ((x.float()[:2],), {})}
    try:
        attach(net, method, name="a", seed=0, verify=False, **where)
    except PeftError:
        pytest.skip("needs another network")
    attach(net, "houlsby", name="b", size=3, seed=1, **where)
    net.double()
    shake(net, "a"), shake(net, "b")
    rows = ["a", None, "b", "a"]
    with mix(net, rows):
        mixed = out(net, x)
    for i, row in enumerate(rows):
        with use(net, row):
            assert relative(mixed[i : i + 1], out(net, x[i : i + 1])) <= 1e-12
    with torch.no_grad():
        h = net.first.forward(x)  # without the hook
        a, b = (next(m for n, m in net._peft.slots["first:@act"].methods.items() if n[0] == key) for key in "ab")
        expected = net.last(torch.tanh(h + 0.7 * (a(h, x) - h) - 0.4 * (b(h, x) - h)))
    with use(net, {"a": 0.7, "b": -0.4}):
        assert relative(out(net, x), expected) <= 1e-12


@pytest.mark.parametrize(
    ("network", "first", "second"), [("llama", "prompt", "p_tuning"), ("llama", "prefix", "gated_prefix")]
)
def test_rows_of_virtual_tokens(network, first, second):
    subject = tokens_zoo.build(network, tokens_zoo.KV)
    net, call, x = subject.net.double(), subject.call, tokens_zoo.ids(4)
    where = {"roles": {}, "example": ((), {"input_ids": x[:2]})}
    for name, method, tokens in (("a", first, 3), ("b", second, 5)):
        attach(net, method, name=name, tokens=tokens, seed=0, **where)
        net.double()
        shake(net, name)
    rows = ["a", None, "b", "a"]
    with torch.no_grad():
        with mix(net, rows):
            mixed = call(x)
        for i, row in enumerate(rows):
            with use(net, row):
                assert relative(mixed[i : i + 1], call(x[i : i + 1])) <= 1e-10, row


# ---------------------------------------------------------------------- any order


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads, self.head_dim = 2, D // 2
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (2, D // 2)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(D), Attention()
        self.up, self.down = nn.Linear(D, 12), nn.Linear(12, D)

    def forward(self, x):
        x = x + self.attn(self.norm(x))
        return x + self.down(torch.relu(self.up(x)))


class Whole(nn.Module):
    """A table, a convolution, a batch norm, two blocks: a role for every method, and a port for virtual tokens."""

    token_port = TokenPort(blocks="blocks.*", dim=D, attn="blocks.*.attn", heads="heads", head_dim="head_dim")
    roles = {f"attn.{r}": f"blocks.*.attn.qkv[{i}/3]" for i, r in enumerate("qkv")} | {
        "attn.out": "blocks.*.attn.out", "attn": "blocks.*.attn", "mlp.in": "blocks.*.up", "mlp.out": "blocks.*.down",
        "mlp": "blocks.*.down", "block": "blocks.*", "norm": "blocks.*.norm", "conv": "conv", "embed": "embed",
    }  # fmt: skip

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.conv = nn.Embedding(11, D), nn.Conv1d(D, D, 3, padding=1)
        self.bn = nn.BatchNorm1d(D)
        self.bn.running_mean.normal_()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.eval()

    def forward(self, ids):
        x = self.bn(self.conv(self.embed(ids).mT)).mT
        x = x.contiguous()  # else torch's matmul chooses its order by the weight's requires_grad
        for block in self.blocks:
            x = block(x)
        return x


IDS = torch.randint(11, (3, 6), generator=torch.Generator().manual_seed(2))
SMALL = {name: {k: 2 for k, v in methods.options(methods.find(name)).items() if type(v) is int and v > 2}
         for name in methods.names()}  # fmt: skip
INSTALLED = [name for name in methods.names() if not getattr(methods.find(name), "in_place", False)]
PAIRS = [["lora", "norm"], ["houlsby", "bitfit"], ["prefix", "parallel"]]


def put(net, method, name):
    one = {"method": method, **SMALL[method]} if isinstance(method, str) else None
    how = one or {"method": {part: SMALL[part] for part in method}}
    attach(net, name=name, roles=Whole.roles, example=((IDS,), {}), seed=1, verify=False, **how)
    shake(net, name, 0.2)


def fitting() -> list:
    """Methods that this network takes; the others say why not."""
    found = []
    for method in [*INSTALLED, *PAIRS]:
        net = Whole()
        try:
            put(net, method, "a")
        except PeftError:
            continue
        found.append(method)
    return found


FITTING = fitting()


def test_nearly_every_method_takes_part():
    absent = [method for method in INSTALLED if method not in FITTING]
    assert len(absent) <= 0.2 * len(INSTALLED), absent


class AnyOrder(RuleBasedStateMachine):
    """The base's bits, an adapter's own bits, classes and flags do not depend on what happened before."""

    @initialize()
    def begin(self):
        self.net = Whole()
        self.base = out(self.net, IDS)
        self.state = {k: v.clone() for k, v in self.net.state_dict().items()}
        self.classes = [type(m) for m in self.net.modules()]
        self.flags = [p.requires_grad for p in self.net.parameters()]
        self.alone: dict[str, torch.Tensor] = {}
        self.merged = False
        self.next = 0

    def acting(self) -> dict[str, float]:
        return {name: info.weight for name, info in adapters(self.net).items() if info.weight}

    @precondition(lambda self: not self.merged and len(self.alone) < 4)
    @rule(method=st.sampled_from(FITTING))
    def attach_one(self, method):
        name, before = f"a{self.next}", self.acting()
        self.next += 1
        try:
            put(self.net, method, name)
        except PeftError:  # two views of one tensor, two paths at one host: refused, and nothing is left
            assert self.acting() == before and name not in adapters(self.net)
            return
        self.alone[name] = out(self.net, IDS)

    @precondition(lambda self: self.alone and not self.merged)
    @rule(data=st.data())
    def detach_one(self, data):
        name = data.draw(st.sampled_from(sorted(self.alone)))
        detach(self.net, name)
        del self.alone[name]

    @precondition(lambda self: self.alone and not self.merged)
    @rule(data=st.data(), weight=st.sampled_from([1.0, 0.5, -2.0]))
    def activate(self, data, weight):
        names = data.draw(st.lists(st.sampled_from(sorted(self.alone)), unique=True, max_size=3))
        try:
            set_active(self.net, dict.fromkeys(names, weight))
            out(self.net, IDS)
        except ConfigError:  # two givers of virtual tokens, or weighted ones
            set_active(self.net, None)

    @precondition(lambda self: self.alone and not self.merged)
    @rule(data=st.data())
    def rows(self, data):
        rows = data.draw(st.lists(st.sampled_from([None, *sorted(self.alone)]), min_size=len(IDS), max_size=len(IDS)))
        try:
            with mix(self.net, rows):
                mixed = out(self.net, IDS)
        except PeftError:  # a site on the weight path; prompts of different lengths, which these blocks cannot mask
            return
        for i, row in enumerate(rows):
            expected = self.base if row is None else self.alone[row]
            assert torch.allclose(mixed[i], expected[i], atol=1e-4, rtol=1e-4)

    @precondition(lambda self: self.alone and not self.merged)
    @rule(data=st.data())
    def merge_one(self, data):
        name = data.draw(st.sampled_from(sorted(self.alone)))
        try:
            assert merge(self.net, name).max_error <= 1e-4
            self.merged = True
        except PeftError:  # it acts on outputs or gives tokens
            set_active(self.net, None)

    @precondition(lambda self: self.merged)
    @rule()
    def unmerge(self):
        unmerge(self.net)
        self.merged = False

    @invariant()
    def every_bit_is_where_it_was(self):
        if not hasattr(self, "net") or self.merged:
            return
        for name, expected in self.alone.items():
            with use(self.net, name):
                assert torch.equal(out(self.net, IDS), expected), name
        if self.alone:
            with use(self.net, None):
                assert torch.equal(out(self.net, IDS), self.base)
        now = self.net.state_dict()
        assert all(torch.equal(now[key], tensor) for key, tensor in self.state.items())

    def teardown(self):
        if not hasattr(self, "net"):
            return
        if self.merged:
            unmerge(self.net)
        if self.alone:
            detach(self.net)
        assert torch.equal(out(self.net, IDS), self.base)
        assert self.net.state_dict().keys() == self.state.keys()
        assert [type(m) for m in self.net.modules()] == self.classes
        assert [p.requires_grad for p in self.net.parameters()] == self.flags
        assert not any(key == ADAPTERS or key.startswith("_peft") for m in self.net.modules() for key in vars(m))


def any_order(examples: int, steps: int) -> type:
    """So many sequences of so many steps, always the same ones. Not shrunk, not traced: it has to be quick."""

    class Case(AnyOrder.TestCase):
        settings = settings(
            max_examples=examples,
            stateful_step_count=steps,
            phases=[Phase.generate],
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )

    return Case


TestAnyOrder = any_order(20, 15)
TestAnyOrderLonger = pytest.mark.slow(any_order(100, 30))


@pytest.mark.parametrize("method", FITTING, ids=str)
def test_every_method_leaves_nothing(method):
    """The machine's promises for each method alone, between two others."""
    machine = AnyOrder()
    machine.begin()
    for one in ("lora", method, "houlsby"):
        machine.attach_one(one)
        machine.every_bit_is_where_it_was()
    machine.teardown()
