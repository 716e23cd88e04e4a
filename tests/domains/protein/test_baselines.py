"""Baselines: what they must reach on data made for them, and the published number on GB1."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.linear_model import Ridge

from core import paths
from core.compose import compose
from core.contracts import Data
from core.training.assemble import make
from domains.protein import baselines
from domains.protein.data.residues import STANDARD, mutate
from domains.protein.data.twin import Twin

REAL = pytest.mark.skipif(paths.data_dir() is None, reason="the real data folder (PEFT_ATLAS_DATA) is not here")
WILD = "MQYKLILNGKTLKGETTTEAVDAATAEKVF"


class Rows(Data):
    """Items given directly."""

    def __init__(self, **parts):
        self.parts = parts

    def items(self, split):
        return self.parts[split]


def additive(n=300, seed=0):
    """Variants whose label is a sum of site effects: one-hot ridge must rank them nearly perfectly."""
    rng = np.random.default_rng(seed)
    effect = rng.normal(size=(len(WILD), 20))
    items = []
    for i in range(n):
        places = rng.choice(6, rng.integers(1, 4), replace=False)
        changes = {int(p): rng.choice([c for c in STANDARD if c != WILD[p]]) for p in places}
        label = float(sum(effect[p, STANDARD.index(c)] for p, c in changes.items()))
        items.append(
            {"id": f"v{i}", "group": f"v{i}", "sequence": mutate(WILD, changes), "label": label, "wildtype": WILD}
        )
    return Rows(train=items[: n - 100], val=items[n - 100 : n - 60], test=items[n - 60 :])


def test_one_hot_ridge_solves_an_additive_landscape():
    data = additive(600)
    found = baselines.values(data)
    truth = [item["label"] for item in data.items("test")]
    assert set(found) == {"one_hot_ridge", "kmer_ridge", "edit_distance", "blosum62"}
    assert spearmanr(found["one_hot_ridge"], truth).statistic > 0.99
    assert all(len(value) == 60 for value in found.values())


def test_residue_baselines_beat_the_majority_on_the_twin():
    data = Twin(train=20, val=8, test=30)
    data.setup()
    found = baselines.residues(data, lambda item: item["label"])
    right = {
        name: np.mean([np.mean([a == b for a, b in zip(r["truth"], r["prediction"], strict=True)]) for r in rows])
        for name, rows in found.items()
    }
    assert set(right) == {"majority", "one_hot_window"} and len(found["majority"]) == 30
    assert right["one_hot_window"] > right["majority"] + 0.1
    assert {c for row in found["majority"] for c in row["prediction"]} == {"H"}


def test_unscored_residues_are_not_trained_on():
    """Labels of unresolved residues may be garbage: with and without them the predictions are the same."""
    data = Twin(train=10, val=4, test=6)
    data.setup()

    def hidden(item):
        return "".join("-" if i % 3 == 0 else c for i, c in enumerate(item["label"]))

    rows = baselines.residues(data, hidden)["one_hot_window"]
    for split in ("train", "val"):
        for item in data.items(split):
            item["label"] = "".join("E" if i % 3 == 0 else c for i, c in enumerate(item["label"]))
    again = baselines.residues(data, hidden)["one_hot_window"]
    assert [r["prediction"] for r in rows] == [r["prediction"] for r in again]
    assert set("".join(r["prediction"] for r in rows)) <= set("HEC")  # "-" is no class


def test_class_baselines_give_probabilities_in_the_order_of_the_names():
    rng = np.random.default_rng(0)

    def make_item(i):
        sequence = "".join(rng.choice(list("KR" if i % 2 else "DE"), 12)) + "G" * (i % 5)
        return {"id": str(i), "group": str(i), "label": "yx"[i % 2], "sequence": sequence}

    items = [make_item(i) for i in range(60)]
    data = Rows(train=items[:40], val=items[40:50], test=items[50:])
    found = baselines.classes(data, ["y", "x"], str)
    assert set(found) == {"prior", "kmer_logistic"}  # lengths differ: no one-hot
    assert all(np.allclose(table.sum(1), 1) and table.shape == (10, 2) for table in found.values())
    assert [["y", "x"][k] for k in found["kmer_logistic"].argmax(1)] == [item["label"] for item in items[50:]]


def test_one_mutation_each_has_no_edit_distance_but_keeps_a_ridge_that_cannot_rank():
    """Positions that train never saw changed: one-hot ridge is constant, a finding; one distance for all is none."""

    def variant(p, c):
        changed = mutate(WILD, {p: c})
        return {"id": f"{p}{c}", "label": float(ord(c) + p), "wildtype": WILD, "sequence": changed}

    parts = {"train": (0, 1), "val": (2,), "test": (8, 9)}
    data = Rows(**{split: [variant(p, c) for p in places for c in "FHW"] for split, places in parts.items()})
    found = baselines.values(data)
    assert "edit_distance" not in found and "blosum62" in found and np.ptp(found["one_hot_ridge"]) == 0


def test_baselines_do_without_a_validation_split():
    data = additive(200)
    data.parts["val"] = []
    assert np.isfinite(baselines.values(data)["one_hot_ridge"]).all()


@REAL
def test_gb1_ridge_has_the_published_rank_correlation():
    """FLIP's two_vs_rest: .599 with one-hot ridge, alpha 1, fitted on train and val. Here 3,348 of the 8,309 test rows
    are at hand: .590."""
    data = make(compose("protein", ["data=gb1"]), "data", 0)
    data.setup()
    train = [*data.items("train"), *data.items("val")]
    assert [len(train), len(data.items("test"))] == [424, 3348]
    x, _, x_test = baselines._features(train, [], data.items("test"))["one_hot"]
    model = Ridge(alpha=1.0).fit(x, [item["label"] for item in train])
    value = spearmanr(model.predict(x_test), [item["label"] for item in data.items("test")]).statistic
    assert value == pytest.approx(0.599, abs=0.02)  # measured .590
