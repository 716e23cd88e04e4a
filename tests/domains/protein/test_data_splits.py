"""Splits keep together what belongs together, whatever the rows; limits and crops lose nothing silently."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from core.errors import ConfigError, DataError
from domains.protein.data.crop import Shortening, draw
from domains.protein.data.identity import clusters
from domains.protein.data.residues import STANDARD, differences, mutate
from domains.protein.data.splits import Splitting
from domains.protein.data.table import Csv

WILD = "MQYKLILNGKTLKGETTTEAVDAATAEKVFKQYANDNG"


def rows(sequences, groups=None, labels=None, wildtype=None):
    out = []
    for i, sequence in enumerate(sequences):
        row = {
            "id": f"p{i}",
            "group": groups[i] if groups else f"p{i}",
            "sequence": sequence,
            "split": "",
            "line": i + 2,
        }
        row |= {"label": labels[i]} if labels else {}
        out.append(row | ({"wildtype": wildtype} if wildtype else {}))
    return out


def shared(parts, key):
    """Values that lie in more than one split."""
    seen = [{row[key] for row in part} for part in parts.values()]
    return {value for i, a in enumerate(seen) for b in seen[i + 1 :] for value in a & b}


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("ABCDEFGHIJ"), st.sampled_from("KLMNPQRST")), min_size=8, max_size=40), st.data()
)
def test_random_splits_keep_groups_and_sequences_together(pairs, choose):
    """Rows that share a sequence or a group, directly or through others, end in one split; no row is lost."""
    data = rows([s for _, s in pairs], [g for g, _ in pairs])
    seed = choose.draw(st.integers(0, 99))
    try:
        parts = Splitting("random", seed, val=0.2, test=0.3)(data, "f")
    except DataError:  # one component holds nearly all
        assume(False)
    assert not shared(parts, "sequence") and not shared(parts, "group")
    assert sorted(r["id"] for part in parts.values() for r in part) == sorted(r["id"] for r in data)


def library(n=400, seed=0, most=4):
    """Variants of WILD with 1..most mutations, and their wild type, without repeats."""
    rng, out = np.random.default_rng(seed), [WILD]
    while len(out) < n:
        places = rng.choice(len(WILD), rng.integers(1, most + 1), replace=False)
        out.append(mutate(WILD, {int(p): STANDARD[rng.integers(20)] for p in places}))
    return list(dict.fromkeys(out))


@pytest.mark.parametrize("kind, most", [("one_vs_rest", 1), ("two_vs_rest", 2), ("three_vs_rest", 3)])
def test_mutation_splits_train_on_few_mutations(kind, most):
    parts = Splitting(kind)(rows(library(), wildtype=WILD), "f")
    count = {name: {len(differences(r["sequence"], WILD)) for r in part} for name, part in parts.items()}
    assert max(count["train"] | count["val"]) == most and min(count["test"]) == most + 1
    assert parts["val"]


def test_low_vs_high_splits_at_the_wild_type():
    sequences = library()
    labels = [float(i % 7) for i in range(len(sequences))]
    labels[0] = 3.0
    parts = Splitting("low_vs_high")(rows(sequences, labels=labels, wildtype=WILD), "f")
    assert max(r["label"] for r in parts["train"]) == 3.0 and min(r["label"] for r in parts["test"]) == 4.0


@pytest.mark.parametrize("kind", ["contiguous", "modulo"])
@pytest.mark.parametrize("seed", [0, 3])
def test_position_splits_never_train_on_tested_positions(kind, seed):
    data = rows(library(most=2), wildtype=WILD)
    parts = Splitting(kind, seed)(data, "f")
    changed = {n: {p for r in part for p in differences(r["sequence"], WILD)} for n, part in parts.items()}
    assert not changed["train"] & changed["test"] and not changed["val"] & changed["test"]
    if kind == "contiguous":
        assert max(changed["test"]) - min(changed["test"]) < len(WILD) / 4
    else:
        assert {p % 5 for p in changed["test"]} == {seed}


def test_mutation_splits_need_a_wild_type():
    with pytest.raises(ConfigError, match="two_vs_rest"):
        Splitting("two_vs_rest")(rows(library(50)), "f")


def test_identity_splits_hold_out_whole_families():
    """40 families of 5 near copies: no test protein has a sibling in train, and the family is the group."""
    rng = np.random.default_rng(1)
    sequences = []
    for _ in range(40):
        parent = "".join(rng.choice(list(STANDARD), 120))
        sequences += [mutate(parent, {int(p): "G" for p in rng.choice(120, 30, replace=False)}) for _ in range(5)]
    order = rng.permutation(len(sequences))
    parts = Splitting("identity", threshold=0.4)(rows([sequences[i] for i in order]), "f")
    family = {sequences[i]: i // 5 for i in range(len(sequences))}
    held = {name: {family[r["sequence"]] for r in part} for name, part in parts.items()}
    assert not held["train"] & held["test"] and not held["train"] & held["val"] and not shared(parts, "group")
    assert len({r["group"] for r in parts["test"]}) == len(held["test"]) == 8


def test_one_cluster_cannot_be_split_and_says_so():
    with pytest.raises(DataError, match="split identity leaves val, test empty"):
        Splitting("identity")(rows(library(60)), "f")


def test_an_external_cluster_table_is_used(tmp_path):
    table = tmp_path / "c.tsv"
    table.write_text("".join(f"p{i // 4 * 4}\tp{i}\n" for i in range(40)))
    parts = Splitting("identity", clusters=str(table))(rows(library(40)), "f")
    assert {int(r["id"][1:]) // 4 * 4 for r in parts["test"]} == {int(r["group"][1:]) for r in parts["test"]}
    table.write_text("p0\tp0\np1\tp0\nbroken\n")
    with pytest.raises(DataError) as caught:
        Splitting("identity", clusters=str(table))(rows(library(3)), "f")
    got = [problem.got for problem in caught.value.problems]
    assert got == ["`p0` in two clusters", "1 columns", "no row for `p1`", "no row for `p2`"]


@given(st.integers(1, 60), st.integers(0, 20), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_a_limit_draws_whole_groups_and_smaller_draws_are_part_of_larger(limit, seed, size):
    data = rows([mutate(WILD, {i % 38: STANDARD[i // 38]}) for i in range(100)], [f"g{i // size}" for i in range(100)])
    drawn = [Splitting("random", seed, limit={"train": n})(data, "f")["train"] for n in (limit, limit + 10)]
    small, large = ({r["group"] for r in part} for part in drawn)
    assert small <= large and len(drawn[0]) <= max(limit, size)
    whole = Splitting("random", seed)(data, "f")["train"]
    assert [r for r in whole if r["group"] in small] == drawn[0]


def test_a_given_split_without_val_draws_one_and_leaks_can_be_dropped(tmp_path):
    lines = [f"{s},{i}.0,{'test' if i % 4 == 0 else 'train'}" for i, s in enumerate(library(80))]
    twice = library(80)[0]
    path = tmp_path / "a.csv"
    path.write_text("sequence,target,split\n" + "\n".join(lines) + f"\n{twice},1,train\n")
    data = Csv(str(path))
    data.setup()
    assert len(data.items("val")) == round(0.1 * 61) and len(data.audit().errors) == 1
    clean = Csv(str(path), drop_leaks=True)
    clean.setup()
    assert not clean.audit().errors and all(i["sequence"] != twice for i in clean.items("train"))


def test_an_empty_split_is_refused(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("sequence,target,split\nMKV,1,train\nMKL,2,train\nMKI,3,val\n")
    with pytest.raises(DataError, match="leaves test empty"):
        Csv(str(path)).setup()


# ------------------------------------------------------------------ crops

LONG = {"id": "a", "group": "a", "sequence": "".join(STANDARD[i % 20] for i in range(50)), "label": "H" * 25 + "E" * 25}


def test_the_centre_is_kept_in_eval_and_labels_go_along():
    (item,), touched = Shortening()([LONG], "test", 10)
    assert touched == 1 and item["sequence"] == LONG["sequence"][20:30] and item["label"] == "HHHHHEEEEE"


@pytest.mark.parametrize("sites", [[0, 2], [24], [47, 49]])
def test_the_window_follows_the_mutation_in_every_split(sites):
    for split in ("train", "test"):
        (item,), _ = Shortening()([{**LONG, "sites": sites, "wildtype": LONG["sequence"]}], split, 10)
        assert len(item["sequence"]) == 10 and item["wildtype"] == item["sequence"]
        assert [item["sequence"][s] for s in item["sites"]] == [LONG["sequence"][s] for s in sites]


def test_training_windows_are_random_seeded_and_consistent():
    (item,), _ = Shortening()([LONG], "train", 10)
    assert item["sequence"] == LONG["sequence"] and item["crop"] == 10
    torch.manual_seed(0)
    seen = [draw(item) for _ in range(60)]
    torch.manual_seed(0)
    assert seen == [draw(item) for _ in range(60)]
    assert len({c["sequence"] + c["label"] for c in seen}) > 15
    assert all(c["sequence"] in LONG["sequence"] and len(c["label"]) == 10 and "crop" not in c for c in seen)


def test_too_long_can_be_dropped_or_refused(tmp_path):
    path = tmp_path / "a.csv"
    lines = [f"{WILD[: 10 + i]},{i}.0,{'train' if i < 9 else 'val' if i < 12 else 'test'}" for i in range(20)]
    path.write_text("sequence,target,split\n" + "\n".join(lines))
    data = Csv(str(path), max_length=25, too_long="drop")
    data.setup()
    assert len(data.items("test")) == 4 and data.audit().facts["test items over the length limit"] == 4
    with pytest.raises(DataError, match="4 too long"):
        Csv(str(path), max_length=25, too_long="error").setup()
    cropped = Csv(str(path), max_length=15)
    cropped.setup()
    assert max(cropped.length(i) for s in ("train", "val", "test") for i in cropped.items(s)) == 15


def test_clusters_are_a_partition_by_representatives():
    found = clusters([*library(100), "WWWWHHHHWWWWHHHHPPPPCCCC"], 0.5)
    assert found[-1] == len(found) - 1 and set(found[:-1]) == {found[0]}
