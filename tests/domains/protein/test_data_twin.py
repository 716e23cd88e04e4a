"""The twin: same seed, same proteins; families never shared; labels that follow from the world."""

import numpy as np
import pytest

from core.errors import ConfigError
from domains.protein.data.twin import Twin
from domains.protein.data.world import PROPENSITY, World

SPLITS = ("train", "val", "test")
LABELS = ("structure", "signal", "landscape")


def made(*args, **options):
    data = Twin(*args, **options)
    data.setup()
    return data


@pytest.mark.parametrize("label", LABELS)
def test_the_same_seed_gives_the_same_proteins(label):
    a, b, other = made(label), made(label), made(label, seed=1)
    assert all(a.items(s) == b.items(s) for s in SPLITS)
    assert a.items("train") != other.items("train")
    assert a.items("test") == other.items("test") and a.items("val") == other.items("val")


@pytest.mark.parametrize("label", LABELS)
def test_splits_have_their_sizes_and_share_nothing(label):
    data = made(label, train=40, val=16, test=150)
    assert [len(data.items(s)) for s in SPLITS] == [40, 16, 150] and data.kind == "twin"
    for key in ("id", "group", "sequence"):
        values = [{item[key] for item in data.items(s)} for s in SPLITS]
        assert len(set.union(*values)) == sum(map(len, values))
    assert not data.audit().errors


def test_a_smaller_training_set_is_part_of_a_larger_one():
    for label in LABELS:
        assert made(label, train=20).items("train") == made(label, train=40).items("train")[:20]


def test_structure_labels_follow_the_words():
    """Every state prefers its own residues, and runs have the lengths of words, turns with insertions."""
    proteins = World(0).sample("held", 200, 1)
    text = {state: "" for state in "HEC"}
    for p in proteins:
        assert len(p["sequence"]) == len(p["structure"])
        for residue, state in zip(p["sequence"], p["structure"], strict=True):
            text[state] += residue
    for state, favoured in PROPENSITY.items():
        share = {s: np.mean([c in favoured for c in text[s]]) for s in "HEC"}
        assert max(share, key=share.get) == state, share
    assert all(p["structure"][0] in "HE" and len(p["structure"]) >= 16 for p in proteins)


def test_switch_words_take_their_state_from_the_word_before():
    """Without drift a word is known by its profile: switches occur as H and as E, all other words as one state."""
    world, states = World(0), {}
    rng = world.rng("held")
    for _ in range(300):
        last = "C"
        for profile, state in world.family(rng, drift=0.0)[1]:
            word = next(i for i, (_, own) in enumerate(world.words) if np.array_equal(own, profile))
            states.setdefault(word, set()).add(state)
            if word in world.switches:
                assert state == ("E" if last == "H" else "H")
            last = last if state == "C" else state
    assert {word for word, seen in states.items() if seen == {"H", "E"}} == world.switches and len(world.switches) == 6
    assert all(seen == {world.states[word]} for word, seen in states.items() if word not in world.switches)


def test_members_of_a_family_are_alike_and_families_are_not():
    from domains.protein.data.identity import aligned_identity

    proteins = World(0).sample("held", 12, 2)
    same = [aligned_identity(a["sequence"], b["sequence"]) for a, b in zip(proteins[::2], proteins[1::2], strict=True)]
    other = [
        aligned_identity(a["sequence"], b["sequence"]) for a, b in zip(proteins[::2], proteins[3::2], strict=False)
    ]
    assert np.mean(same) > 0.5 > np.mean(other) + 0.1


def test_another_world_has_other_words():
    a, b = World(0).words, World(1).words
    assert any(x.shape != y.shape or not np.allclose(x, y) for (_, x), (_, y) in zip(a, b, strict=True))


@pytest.mark.parametrize("split, most", [("one_vs_rest", 1), ("two_vs_rest", 2), ("three_vs_rest", 3)])
def test_the_landscape_is_split_by_mutations(split, most):
    data = made("landscape", split=split, train=30, val=10, test=60)
    count = {
        s: [sum(a != b for a, b in zip(i["sequence"], i["wildtype"], strict=True)) for i in data.items(s)]
        for s in SPLITS
    }
    assert max(count["train"] + count["val"]) <= most < min(count["test"])


def test_the_landscape_has_a_wild_type_of_one_and_two_body_terms():
    """Fitness of the wild type is 1, of doubles not the product of singles: additive models cannot be perfect."""
    data = made("landscape", split="two_vs_rest", train=2000, val=200, test=10)
    by = {i["id"]: i for i in [*data.items("train"), *data.items("val")]}
    native = "".join(data.items("train")[0]["wildtype"][s] for s in data.items("train")[0]["sites"])
    assert by.get(native, {"label": 1.0})["label"] == pytest.approx(1.0)
    gaps = []
    for name, item in by.items():
        changed = [i for i in range(4) if name[i] != native[i]]
        singles = [native[:i] + name[i] + native[i + 1 :] for i in changed]
        if len(changed) == 2 and all(s in by for s in singles):
            gaps.append(np.log(item["label"]) - sum(np.log(by[s]["label"]) for s in singles))
    assert len(gaps) > 500 and 0.2 < np.std(gaps) < 0.4  # pair effects are drawn with 0.3


def test_high_fitness_is_held_out_by_low_vs_high():
    data = made("landscape", split="low_vs_high", test=40)
    assert max(i["label"] for i in data.items("train")) <= 1 < min(i["label"] for i in data.items("test"))


def test_sizes_out_of_range_are_refused():
    with pytest.raises(ConfigError, match=r"data\.train"):
        Twin(train=0)
    with pytest.raises(ConfigError, match="at most"):
        made("landscape", split="one_vs_rest", train=90)
