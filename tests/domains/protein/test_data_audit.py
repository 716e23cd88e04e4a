"""The audit finds what was planted, as numbers, and is quiet where nothing was."""

import numpy as np
import pytest

from core import paths
from core.compose import compose
from core.training.assemble import make
from domains.protein.data.audit import BAND_NAMES, audit, bands, histogram
from domains.protein.data.residues import STANDARD, mutate
from domains.protein.data.twin import Twin

REAL = pytest.mark.skipif(paths.data_dir() is None, reason="the real data folder (PEFT_ATLAS_DATA) is not here")


def protein(seed, n=90):
    return "".join(np.random.default_rng(seed).choice(list(STANDARD), n))


def item(name, sequence, label, **more):
    return {"id": name, "group": more.pop("group", name), "sequence": sequence, "label": label, **more}


def clean_items():
    """10 train, 4 val, 6 test strangers, two classes."""
    sizes, out, seed = {"train": 10, "val": 4, "test": 6}, {}, 0
    for split, n in sizes.items():
        out[split] = [item(f"{split}{i}", protein(seed + i), "AB"[i % 2]) for i in range(n)]
        seed += n
    return out


def run(items, **more):
    return audit(items, over_limit=more.get("over_limit", {}), notes={})


def test_clean_data_is_quiet():
    found = run(clean_items())
    assert not found.errors and not found.warnings
    assert found.facts["train items"] == 10 and found.facts["residues"] == 1800
    assert found.facts["test items by identity to train"]["counts"] == [6, 0, 0, 0]
    assert found.facts["train classes"] == {"bins": ["A", "B"], "counts": [5, 5]}


def test_a_sequence_in_two_splits_is_an_error():
    items = clean_items()
    items["test"][2]["sequence"] = items["train"][5]["sequence"]
    (error,) = run(items).errors
    assert "1 sequence in two splits: train5 (train) = test2 (test)" in error and "data.drop_leaks=true" in error


def test_a_group_in_two_splits_is_an_error():
    items = clean_items()
    items["test"][2]["group"] = items["val"][1]["group"]
    (error,) = run(items).errors
    assert "1 group in two splits: val1 (val) = test2 (test)" in error


def test_homologs_fall_into_their_bands():
    """One test protein at each planted identity; the histogram and the bands agree with the plants."""
    items, rng = clean_items(), np.random.default_rng(0)
    for i, kept in enumerate((80, 36)):  # of 90 residues: 89 %, 40 %
        parent = items["train"][i]["sequence"]
        places = rng.choice(90, 90 - kept, replace=False)
        changed = {int(p): rng.choice([c for c in STANDARD if c != parent[p]]) for p in places}
        items["test"][i]["sequence"] = mutate(parent, changed)
    found = run(items)
    assert dict(zip(BAND_NAMES, found.facts["test items by identity to train"]["counts"], strict=True)) == {
        "below 20 %": 4, "20-30 %": 0, "30-50 %": 1, "above 50 %": 1,
    }  # fmt: skip
    assert found.warnings == ["1 test proteins (16.7%) have a train protein above 50 % identity"]


def test_conflicts_repeats_and_unusual_residues_are_counted():
    items = clean_items()
    items["train"][1] |= {"sequence": items["train"][0]["sequence"]}  # labels A and B
    items["train"][3]["sequence"] = "UX" + items["train"][3]["sequence"]
    found = run(items, over_limit={"train": 2})
    assert found.facts["repeated sequences within splits"] == found.facts["sequences with conflicting labels"] == 1
    assert found.facts["non-standard letters"] == {"bins": ["U", "X"], "counts": [1, 1]}
    assert len(found.warnings) == 2 and "over the length limit" in found.warnings[0]


def test_labels_that_say_nothing_are_errors_and_odd_ones_warnings():
    items = clean_items()
    for row in items["train"]:
        row["label"] = "A"
    found = run(items)
    assert found.errors == ["all train labels are A: nothing to learn"]
    assert "test has classes that train lacks: B" in found.warnings
    for part in items.values():
        for i, row in enumerate(part):
            row["label"] = 1.0 if part is items["test"] else float(i % 2)
    found = run(items)
    assert found.errors == ["all test labels are 1: nothing to learn or to rank"]
    assert found.facts["label range"] == [0.0, 1.0] and found.facts["tied labels"] == 0.9


def test_unresolved_residues_are_no_labels():
    items = clean_items()
    for part in items.values():
        for row in part:
            row |= {"label": "H" * 45 + "E" * 45, "resolved": "1" * 45 + "0" * 45}
    assert run(items).facts["train classes"] == {"bins": ["H"], "counts": [450]}


def test_nucleotides_and_a_misplaced_wild_type_are_noticed():
    items = clean_items()
    for part in items.values():
        for row in part:
            row["wildtype"] = "ACGT"
    items["test"][0]["sequence"] = "ACGT"
    assert run(items).warnings == ["the wild type itself is in test"]
    for split, part in items.items():
        for i, row in enumerate(part):
            row["sequence"] = "ACGT" * (5 + i) + split[:1].upper() * 2
    assert any("nucleotides" in text for text in run(items).warnings)


def test_bands_and_histograms_keep_every_value():
    by_band = bands({"a": 0.0, "b": 0.2, "c": 0.299, "d": 0.3, "e": 0.5, "f": 1.0})
    assert list(by_band.values()) == [["a"], ["b", "c"], ["d"], ["e", "f"]]
    assert sum(histogram(np.linspace(0, 1, 101), 7)["counts"]) == 101


@REAL
def test_the_true_leak_of_flip_bind_is_found_and_can_be_dropped():
    data = make(compose("protein", ["data=flip_bind"]), "data", 0)
    data.setup()
    found = data.audit()
    assert len(found.errors) == 1 and "P62805 (train) = P62801 (test)" in found.errors[0]
    assert found.facts["repeated sequences within splits"] == 2
    data = make(compose("protein", ["data=flip_bind", "data.drop_leaks=true"]), "data", 0)
    data.setup()
    assert not data.audit().errors and len(data.items("train")) == 953


def test_every_test_protein_is_in_one_stratum_of_identity():
    data = Twin(train=30, val=4, test=45)
    data.setup()
    strata = data.strata("test")
    assert sorted(name for ids in strata.values() for name in ids) == sorted(i["id"] for i in data.items("test"))
    assert set(strata) <= {f"identity {name}" for name in BAND_NAMES} and data.strata("val") == {}
    variants = Twin("landscape")
    variants.setup()
    assert variants.strata("test") == {}
