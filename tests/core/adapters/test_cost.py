"""Costs in closed form: kept bytes counted once, operations of our own functions counted, nothing left behind."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from core.adapters import attach, cost, trainable
from core.adapters.cost import flops, saved_bytes
from core.adapters.io import adapter_tensors

N, D, O, R = 40, 16, 8, 2  # tokens, in, out, rank
FLOAT = 4


class One(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(D, O), nn.Linear(D, O)

    def forward(self, x):
        return self.a(x) + self.b(x)


def adapted(method="lora", targets=("a",), **options):
    torch.manual_seed(0)
    roles, example = {"a": "a", "b": "b"}, ((torch.randn(N, D),), {})
    return attach(One(), method, targets=targets, roles=roles, example=example, **options)


def test_lora_on_a_linear_in_closed_form():
    """N > 2 o i / (o + i), so W' = W + s B A is merged: forward 2 N i o per layer and 2 o r i for B A; backward the
    thin products B^T g, (B^T g) x, A x^T, (A x^T) g. Kept: x, once."""
    net = adapted(rank=R, head=nn.Linear(O, 3))
    found = cost(net)
    assert found.trainable == R * (D + O) and found.head_trainable == 3 * O + 3
    assert found.total == 2 * (D * O + O) and found.fraction == found.trainable / found.total
    assert found.adapter_bytes == FLOAT * (R * (D + O) + 3 * O + 3)
    assert found.saved_activation_bytes == FLOAT * N * D
    assert found.flops_forward == 2 * (2 * N * D * O) + 2 * O * R * D
    assert found.flops_backward == 2 * N * O * R + 2 * N * R * D + 2 * N * R * D + 2 * N * R * O


def test_a_second_layer_on_the_same_input_keeps_nothing_more():
    assert cost(adapted(targets=("a", "b"), rank=R)).saved_activation_bytes == FLOAT * N * D
    assert cost(adapted("none", targets=None)).saved_activation_bytes == 0


def test_full_is_torchs_own_bill():
    found = cost(adapted("full", targets=None))
    assert found.trainable == found.total == 2 * (D * O + O)
    assert found.saved_activation_bytes == FLOAT * N * D
    assert (found.flops_forward, found.flops_backward) == (4 * N * D * O, 4 * N * D * O)


def test_measuring_leaves_no_trace():
    net = adapted(rank=R, dropout=0.25)
    net.eval()
    state, rng = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    cost(net)
    assert torch.equal(torch.get_rng_state(), rng) and not net.training
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_only_the_named_adapter_is_measured():
    net = adapted(rank=R)
    roles = {"b": "b"}
    attach(net, "lora", targets=["b"], roles=roles, name="second", rank=5)
    assert cost(net, "second").trainable == 5 * (D + O)
    assert set(adapter_tensors(net, "second")) == {"b:weight|b|A", "b:weight|b|B"}
    assert net._peft.routing.active == {"second": 1.0} and set(trainable(net)) == {"a:weight|a|A", "a:weight|a|B"}


def test_a_storage_counts_once_and_parameters_never():
    x = torch.randn(N, D, requires_grad=True)
    layer = nn.Linear(D, D)
    assert saved_bytes(lambda: x * x, layer) == x.nbytes
    assert saved_bytes(lambda: layer(x) + layer(x.view(N, D)), layer) == x.nbytes
    assert saved_bytes(lambda: layer(x).relu(), layer) == 2 * x.nbytes


def test_what_was_counted_is_freed():
    """A saved output that is handed back as it is holds its own graph, where the garbage collector cannot see it."""
    x, alive = torch.randn(N, D, requires_grad=True), []

    def run():
        y = x.softmax(-1).tanh()
        alive.append(weakref.ref(y))
        return y

    assert saved_bytes(run, nn.Identity()) == 2 * x.nbytes
    gc.collect()
    assert alive[0]() is None


@pytest.mark.parametrize("causal", [False, True])
def test_attention_on_the_cpu_is_counted(causal):
    """q k^T and p v: 2 (2 B h T T d); torch's own counter gives 0 for the CPU kernel."""
    q, k, v = torch.randn(3, 2, 4, 10, 8, requires_grad=True).unbind()
    forward, backward = flops(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=causal))
    assert forward == 2 * (2 * 2 * 4 * 10 * 10 * 8) and backward >= 2 * forward


def test_thin_layers_show_in_the_bill():
    torch.manual_seed(0)

    def net(thin):
        body = nn.Sequential(nn.Conv1d(4, 8, 3), nn.Conv1d(8, 8, 3), nn.BatchNorm1d(8), nn.Conv1d(8, 8, 3))
        host = nn.Module()
        host.body, host.forward = body, body.forward
        roles, example = {"conv": "body.0"}, ((torch.randn(2, 4, 20),), {})
        return attach(host, "lora", targets=["conv"], roles=roles, example=example, rank=R, thin=thin)

    thin, plain = cost(net(True)), cost(net(False))
    first, second, norm = FLOAT * 2 * 8 * 18, FLOAT * 2 * 8 * 16, FLOAT * 8
    assert plain.saved_activation_bytes - thin.saved_activation_bytes >= first + 2 * second - 2 * norm
    assert (thin.flops_forward, thin.flops_backward) == (plain.flops_forward, plain.flops_backward)
