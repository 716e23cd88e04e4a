"""The twin: the same seed is the same world, styles say every value, and the target needs no word never trained."""

import numpy as np

from core.data.splits import assert_disjoint
from domains.text import baselines, metrics
from domains.text.data import world
from domains.text.data.slots import said
from domains.text.data.twin import Twin
from domains.text.pretraining.tokens import fast


def twin(**options):
    data = Twin(**options)
    data.setup()
    return data


def test_the_same_seed_is_the_same_data_and_a_smaller_set_its_beginning():
    a, b, small, other = twin(seed=3), twin(seed=3), twin(seed=3, train=10), twin(seed=4)
    assert a.items("train") == b.items("train") and a.items("train")[:10] == small.items("train")
    assert a.items("train") != other.items("train") and a.items("test") == other.items("test")
    assert_disjoint({split: list(a.items(split)) for split in ("train", "val", "test")})
    names = [{item["slots"]["name"] for item in a.items(split)} for split in ("train", "test")]
    assert len(names[0] & names[1]) <= 1  # 8,100 names of two syllables: two records may share one by chance


def test_every_style_says_every_value_and_nothing_else():
    """The oracle: what a text was made from is read off it, and no other record's values are."""
    rng = np.random.default_rng(0)
    values = {slot: set(words) for slot, words in world.VALUES.items()}
    styles = [world.TARGET, *(world.house(n) for n in range(world.STYLES))]
    for style in styles:
        slots = world.record(rng, 0.5)
        for text in (world.say(style, slots), world.plain(rng, slots)):
            assert metrics.slot_recall(text, slots) == 1 and metrics.slot_errors(text, slots, values) == (0, 0), text
        missing = dict(list(slots.items())[:-1])
        assert metrics.slot_recall(world.say(style, missing), slots) < 1


def test_the_target_style_is_new_and_its_tokens_are_not():
    tokenizer = fast()
    seen = {i for item in world.corpus(2000, 0) for i in tokenizer(item["completion"])["input_ids"]}
    for item in twin().items("test"):
        ids = tokenizer(item["completion"])["input_ids"]
        assert set(ids) <= seen and tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == item["completion"]
    phrases = {phrase for number in range(world.STYLES) for phrase in world.house(number).values()}
    assert not phrases & set(world.TARGET.values())


def test_the_nearest_record_is_a_weak_answer():
    """Copying another record's text has the style and the wrong values."""
    rows = baselines.nearest(twin())
    assert len(rows) == 60 and not any(metrics.exact(row["prediction"], row["truth"]) for row in rows)
    recall = np.mean([metrics.slot_recall(row["prediction"], row["slots"]) for row in rows])
    rouge = np.mean([metrics.rouge_l(row["prediction"], row["truth"]) for row in rows])
    assert 0.1 < recall < 0.5 < rouge < 0.9, (recall, rouge)
    assert not said(rows[0]["prediction"], "name", rows[0]["slots"]["name"])


def test_old_texts_are_of_the_styles_of_pretraining():
    items = twin().general_items()
    assert len(items) == 60 and all(metrics.slot_recall(i["completion"], i["slots"]) == 1 for i in items)
    assert not any(i["completion"] == world.say(world.TARGET, i["slots"]) for i in items)
