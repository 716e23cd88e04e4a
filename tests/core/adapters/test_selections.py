"""Which parameters a selection chooses, on a network that has every trap: ties, tables, fused and recurrent biases."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from core.adapters import methods
from core.errors import ConfigError


class RMSNorm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(4), nn.MultiheadAttention(4, 2, add_bias_kv=True)
        self.fc, self.rnn = nn.Linear(4, 4), nn.LSTM(4, 4)


class Small(nn.Module):
    roles = {"block": "layers.*", "mlp.in": "layers.*.fc", "norm": "odd"}

    def __init__(self):
        super().__init__()
        self.embed, self.early = nn.Embedding(5, 4), nn.LayerNorm(4)
        self.layers = nn.ModuleList([Block(), Block()])
        self.last, self.bn, self.odd = RMSNorm(4), nn.BatchNorm1d(4), nn.PReLU(4)
        self.table = nn.Module()
        self.table.relative_bias = nn.Parameter(torch.zeros(3, 2))
        self.head = nn.Linear(4, 5)
        self.head.weight = self.embed.weight


def chosen(name: str, targets=(), **options) -> list[str]:
    net = Small()
    return [f"{c.path}.{c.parameter}" for c in methods.find(name).select(net, net.roles, targets, **options)]


def test_bitfit_takes_every_bias_and_nothing_else():
    own = ["norm.bias", "attention.in_proj_bias", "attention.out_proj.bias", "fc.bias"]
    own += [f"rnn.bias_{part}_l0" for part in ("ih", "hh")]
    blocks = [f"layers.{i}.{name}" for i in (0, 1) for name in own]
    assert sorted(chosen("bitfit")) == sorted(["early.bias", *blocks, "bn.bias", "head.bias"])
    assert chosen("bitfit", ["mlp.in"]) == ["layers.0.fc.bias", "layers.1.fc.bias"]


def test_norm_takes_norms_by_class_by_name_and_by_role():
    expected = ["early.weight", "early.bias", "last.weight", "bn.weight", "bn.bias", "odd.weight"]
    expected += [f"layers.{i}.norm.{name}" for i in (0, 1) for name in ("weight", "bias")]
    assert sorted(chosen("norm")) == sorted(expected)


def test_last_k_takes_blocks_from_the_end_and_the_norms_behind_them():
    found = chosen("last_k", k=1)
    assert all(key.startswith(("layers.1.", "last.", "bn.")) for key in found) and "last.weight" in found
    assert len(chosen("last_k", k=2)) > len(found) > len(chosen("last_k", k=1, final_norm=False))
    assert chosen("last_k", ["mlp.in"], k=1) == ["layers.1.fc.weight", "layers.1.fc.bias"]
    with pytest.raises(ConfigError, match="1 to 2"):
        chosen("last_k", k=3)


def test_full_takes_each_parameter_once_and_the_probe_none():
    net = Small()
    count = sum(
        net.get_submodule(c.path).get_parameter(c.parameter).numel() for c in methods.find("full").select(net, {})
    )
    assert count == sum(p.numel() for p in net.parameters())
    assert chosen("none") == []
    with pytest.raises(ConfigError, match=r"adapter\.targets"):
        chosen("none", ["mlp.in"])


@pytest.mark.parametrize(("name", "instead"), [("bitfit", "bias"), ("norm", "bitfit")])
def test_a_selection_without_parameters_is_an_error(name, instead):
    with pytest.raises(ConfigError, match=f"adapter={instead}"):
        methods.find(name).select(nn.Linear(3, 3, bias=False), {})
