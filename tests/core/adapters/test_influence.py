"""A host that divides out what a method does is refused by name; no other host with a forward of its own is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from core.adapters import attach, summary
from core.errors import UnsupportedError
from tests.core.adapters.hosts_under_test import One, ScaledStdConv2d, on_full_weights, variants


class Own(nn.Linear):
    """A linear layer whose forward is its own: bound at the weight, and nothing is divided out."""

    def forward(self, x):
        return torch.relu(x) @ self.weight.T + self.bias


def attached(layer, x, variant):
    model = One(layer).eval()
    where = dict(targets=["r"], roles={"r": "layer"}, example=((x,), {}), seed=0)
    return attach(model, variant.name, **where, **dict(variant.options))


@pytest.mark.parametrize("variant", on_full_weights(), ids=str)
def test_a_wide_layer_with_a_forward_of_its_own_is_adapted(variant):
    """By every method: what counts is how much the output moves for the size of the change."""
    torch.manual_seed(0)
    model = attached(Own(2048, 8), torch.randn(3, 2048), variant)
    assert [row.path for row in summary(model).rows] == ["weight"]


@pytest.mark.parametrize(("method", "tensor"), [("dora", "m"), ("ia3", "l")])
def test_a_factor_per_row_is_refused_where_rows_are_standardised(method, tensor):
    torch.manual_seed(0)
    (variant,) = [v for v in variants() if str(v) == method]
    layer = ScaledStdConv2d(16, 8, 3)
    with pytest.raises(UnsupportedError, match=f"divides out what {tensor} does") as error:
        attached(layer, torch.randn(2, 16, 6, 6), variant)
    assert "lora" in error.value.problems[0].fix and type(layer) is ScaledStdConv2d
