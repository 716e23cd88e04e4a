"""The audit finds what was planted, as numbers, and is quiet where nothing was."""

import numpy as np

from domains.text.backbones.tokens import Tokenizer
from domains.text.data.audit import audit
from domains.text.data.duplicates import near
from domains.text.data.rendering import Rendering
from domains.text.data.twin import Twin
from domains.text.pretraining.tokens import fast

WORDS = [a + b for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u", "an", "en", "in")]


def said(seed, n=60):
    return " ".join(np.random.default_rng(seed).choice(WORDS, n))


def changed(text, places):
    """The text with words replaced at these places."""
    words = text.split()
    for at in places:
        words[at] = "changed"
    return " ".join(words)


def items():
    """12 train, 4 val, 6 test texts that have nothing in common."""
    out, seed = {}, 0
    for split, n in (("train", 12), ("val", 4), ("test", 6)):
        out[split] = [{"id": f"{split}{i}", "group": f"{split}{i}", "text": said(seed + i)} for i in range(n)]
        seed += n
    return out


def test_clean_texts_are_quiet():
    found = audit(items(), seen={}, notes={})
    assert not found.errors and not found.warnings
    assert found.facts["train items"] == 12 and found.facts["test texts nearly like one of train"] == 0
    assert sum(found.facts["similarity of test to train"]["counts"]) == 6


def test_a_text_in_two_splits_is_an_error_whatever_its_case():
    planted = items()
    planted["test"][2]["text"] = planted["train"][5]["text"].upper() + "  "
    (error,) = audit(planted, seen={}, notes={}).errors
    assert "1 text in two splits: train5 (train) = test2 (test)" in error and "data.drop_leaks=true" in error


def test_a_group_in_two_splits_is_an_error():
    planted = items()
    planted["val"][1]["group"] = planted["test"][0]["group"]
    (error,) = audit(planted, seen={}, notes={}).errors
    assert "1 group in two splits: val1 (val) = test0 (test)" in error


def test_repeats_and_near_duplicates_are_counted():
    """One word changed of 60, the fourth, leaves 52 of 56 shingles (52 / 60 in common); every third leaves none."""
    planted = items()
    planted["train"][1]["text"] = planted["train"][0]["text"]
    planted["test"][0]["text"] = changed(planted["train"][7]["text"], (3,))
    planted["test"][1]["text"] = changed(planted["train"][8]["text"], range(0, 60, 3))
    found = audit(planted, seen={}, notes={})
    assert found.facts["train texts said again"] == 1
    assert found.facts["test texts nearly like one of train"] == 1
    assert found.warnings == ["1 test texts are nearly like one of train: test0 (test) and train7 (train), 0.87"]


def test_the_search_finds_planted_neighbours_and_their_exact_similarity():
    collection = [said(seed) for seed in range(200)]
    texts = [changed(collection[i], (0, 1, 2)) for i in range(0, 200, 10)] + [said(900)]
    found = near(texts, collection, 0.8)
    assert [place for place, _ in found[:-1]] == list(range(0, 200, 10))
    assert all(abs(similarity - 53 / 59) < 1e-9 for _, similarity in found[:-1])  # 56 shingles each, 53 shared
    assert found[-1][1] < 0.2


def test_what_a_model_sees_is_counted():
    data, tokenizer = Twin(train=6, val=2, test=4), Tokenizer(fast())
    data.setup()
    data.items("train")[0]["prompt"] = "unheard words =>"
    data.render(Rendering(30), tokenizer)
    found = data.audit()
    assert found.facts["unknown tokens"] == 2 and "2 of" in " ".join(found.warnings)
    assert found.facts["longest, tokens"] == 30 and found.facts["items cut"] > 0
    assert found.facts["items whose end has no loss"] == 0
    assert found.facts["padding and end are one token"] == "no"
    assert found.facts["one item, [with a loss]"].startswith("<s><unk><unk> => [")
    data.render(Rendering(30, "right"), tokenizer)
    open_ended = [seen for seen in data.seen.values() if seen.cut and seen.supervised]  # a long prompt leaves nothing
    assert 0 < len(open_ended) == data.audit().facts["items whose end has no loss"] <= found.facts["items cut"]
    shared = fast()
    shared.pad_token = shared.eos_token
    data.render(Rendering(), Tokenizer(shared))
    assert data.audit().facts["padding and end are one token"].startswith("yes")
