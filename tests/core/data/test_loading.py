"""Batches as a function of (seed, epoch)."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.contracts import Data
from core.data.loading import AsTrained, Batches, Key, Loader, Loaders, Order, Plan, share
from core.data.seeding import derive, guard
from core.errors import ConfigError

LENGTHS = st.lists(st.integers(1, 400), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(1, 9) | st.none(), st.integers(50, 900) | st.none(), st.integers(1, 3), st.integers(0, 5))
def test_every_epoch_has_all_items_in_the_same_number_of_batches(lengths, size, tokens, world, epoch):
    if size is None and tokens is None:
        return
    plan = Plan(lengths, size=size, tokens=tokens, world=world, seed=3)
    batches = plan.batches(epoch)
    assert len(batches) == len(plan) and sorted(i for b in batches for i in b) == list(range(len(lengths)))
    for batch in [*batches, plan.longest()]:
        each = -(-len(batch) // world)
        assert size is None or each <= size
        assert tokens is None or each * max(lengths[i] for i in batch) <= tokens or len(batch) == 1
    if tokens:
        cost = [-(-len(b) // world) * max(lengths[i] for i in b) for b in batches]
        assert max(plan.costs) >= max(cost)


def test_order_depends_on_seed_and_epoch_alone():
    plan, same, other = (Plan([5] * 50, size=4, tokens=None, seed=s) for s in (0, 0, 1))
    assert plan.batches(3) == same.batches(3) != plan.batches(4)
    assert plan.batches(3) != other.batches(3)


def test_a_resumed_order_is_the_rest_of_the_epoch():
    plan = Plan(list(range(1, 40)), size=4, tokens=None)
    whole = list(Order(plan, shuffle=True, epoch=2))
    rest = Order(plan, shuffle=True, epoch=2, start=4)
    assert list(rest) == whole[4:] and len(rest) == len(whole)
    rest.set_epoch(2)  # the trainer says it again
    assert list(rest) == whole[4:]
    rest.set_epoch(3)
    assert list(rest) == list(Order(plan, shuffle=True, epoch=3))


def test_ranks_share_every_batch_and_none_is_lost():
    plan = Plan([5] * 13, size=2, tokens=None, world=3)
    ranks = [list(Order(plan, shuffle=True, rank=r)) for r in range(3)]
    assert len({len(keys) for keys in ranks}) == 1
    real = sorted(i for keys in ranks for key in keys if key.real for i in key.indices)
    assert real == list(range(13))
    alone = share([7], 0, 0, 2, 3)
    assert alone == Key(0, 0, [7], 2, False)


def test_guard_gives_named_numbers_and_puts_everything_back():
    def draw():
        return random.random(), float(np.random.rand()), float(torch.rand(1))

    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    expected = [draw(), draw()]
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    first = draw()
    with guard(derive(1, "item", 0)):
        inside = draw()
    assert [first, draw()] == expected
    with guard(derive(1, "item", 0)):
        assert draw() == inside
    with guard(derive(1, "item", 1)):
        assert draw() != inside


def test_filling_batch_has_no_weight():
    batches = Batches([{"id": "a"}], lambda items, _: {"ids": [i["id"] for i in items]}, None, 0, "train")
    assert batches[Key(0, 0, [0], 1, False)] == {"ids": ["a"], "weight": 0.0}
    assert "weight" not in batches[Key(0, 0, [0], 0, True)]


def test_bad_settings():
    with pytest.raises(ConfigError) as caught:
        Loader(batch_size=0, tokens=-1)
    assert [(p.where, p.got) for p in caught.value.problems] == [("loader.batch_size", "0"), ("loader.tokens", "-1")]
    with pytest.raises(ConfigError, match="batch_size null, tokens null"):
        Loader(batch_size=None)
    with pytest.raises(ConfigError, match=r"loader\.workers"):
        Loader(workers=-1)


def test_a_limit_holds_for_what_a_baseline_learns_from():
    class Ten(Data):
        kind = "twin"

        def items(self, split):
            return [{"id": f"{split}{i}", "group": str(i)} for i in range(10)]

    loaders = Loaders(Ten(), task=None, tokenizer=None, settings=Loader(), seed=1, limit=4)
    seen = AsTrained(loaders)
    assert seen.items("train") == loaders.items("train") and len(seen.items("train")) == 4
    assert seen.kind == "twin" and len(loaders.data.items("train")) == 10
