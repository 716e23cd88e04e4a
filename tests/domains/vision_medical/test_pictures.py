"""The field's pictures and the predictors that need no network, on cases with known answers."""

import re

import numpy as np
import pytest

from domains.vision_medical import baselines, pictures
from domains.vision_medical.data.twin import Twin
from domains.vision_medical.tasks.classification import Classification
from domains.vision_medical.tasks.segmentation import Segmentation

CLASSES = ["background", "organ a", "lesion"]


@pytest.fixture(scope="module")
def twin():
    data = Twin(train=4, val=2, test=4)
    data.setup()
    return data


def rows_of(data, change):
    task = Segmentation(CLASSES)
    reads = {item["id"]: item["read"]() for item in data.items("test")}
    rows = [task.row(name, change(i, r["mask"]), r["mask"], r["spacing"]) for i, (name, r) in enumerate(reads.items())]
    task.score(rows)
    return rows, reads.__getitem__


def test_worst_median_and_best_are_shown(twin, tmp_path):
    rows, load = rows_of(twin, lambda i, mask: np.roll(mask, i, 1))
    assert pictures.segmentation(rows, CLASSES, tmp_path, load) == ["cases.svg"]
    text = (tmp_path / "cases.svg").read_text()
    ranked = sorted((row for row in rows if row["score"] is not None), key=lambda row: row["score"])
    for word, row in (("worst", ranked[0]), ("median", ranked[len(ranked) // 2]), ("best", ranked[-1])):
        assert f"{word}: {row['id']}" in text and f"prediction, {row['score']:.2f}" in text
    assert len(text) < 250_000
    assert pictures.segmentation(rows, CLASSES, tmp_path, None) == []


def test_errors_are_marked_where_they_are():
    truth, guess = np.array([[0, 1, 1, 2]]), np.array([[1, 1, 0, 1]])
    marks = pictures._errors(truth, guess)[0]
    assert (marks[:, 3] > 0).tolist() == [True, False, True, True]
    assert len({tuple(m) for m in marks[[0, 2, 3]]}) == 3


def test_a_volume_is_shown_by_the_slice_with_most_error():
    truth = np.zeros((6, 5, 4), np.int64)
    guess = truth.copy()
    guess[:3, :3, 2] = 1
    image = np.broadcast_to(np.arange(4.0), (1, 6, 5, 4))
    _, seen, marked = pictures.shown(image, truth, guess)
    assert seen.shape == (5, 6) and marked.sum() == 9


def test_reliability_follows_the_probabilities(tmp_path):
    """Answers that come true as often as they say have no calibration error to speak of; over-sure ones do."""
    rng = np.random.default_rng(0)
    p = rng.random(3000)
    for name, said in (("honest", p), ("sure", np.clip(p * 4 - 1.5, 0.01, 0.99))):
        truth = (rng.random(3000) < p).astype(int)
        rows = [
            {"id": str(i), "truth": int(t), "probabilities": [1 - s, s]}
            for i, (t, s) in enumerate(zip(truth, said, strict=True))
        ]
        pictures.reliability(rows, ["no", "yes"], tmp_path)
        error = float(re.search(r"calibration error ([\d.]+)", (tmp_path / "reliability.svg").read_text())[1])
        assert error < 0.04 if name == "honest" else error > 0.12, (name, error)


def test_examples_name_what_was_said_and_what_is(tmp_path):
    task = Classification(classes=["none", "lesion"])
    rows = [task.row("a", [0.05, 0.95], 0), task.row("b", [0.9, 0.1], 0), task.row("c", [0.3, 0.7], 1)]
    load = {name: {"image": np.random.default_rng(0).random((1, 8, 8))} for name in "abc"}.__getitem__
    made = pictures.classification(rows, task.classes, tmp_path, load)
    assert made == ["reliability.svg", "examples.svg"]
    text = (tmp_path / "examples.svg").read_text()
    assert "lesion 0.95" in text and "is none" in text


def test_the_mean_mask_is_the_commonest_class_at_each_place(twin):
    task = Segmentation(CLASSES)
    found = baselines.masks(twin, CLASSES, task.row)
    assert set(found) == {"mean_mask"} and len(found["mean_mask"]) == 12
    counts = np.stack([sum((twin.load(i)["mask"] == k).astype(int) for i in twin.items("train")) for k in range(3)])
    from domains.vision_medical import masks

    np.testing.assert_array_equal(masks.decode(found["mean_mask"][0]["prediction"]), counts.argmax(0))
    assert 0.2 < task.score(found["mean_mask"])["dice"].value < 0.6


def test_otsu_parts_two_heaps():
    rng = np.random.default_rng(0)
    grey = np.concatenate([rng.normal(0, 1, 900), rng.normal(8, 1, 100)])
    assert 2.5 < baselines.otsu(grey) < 6


def test_the_logistic_regression_learns_the_scanner():
    """On the twin of lesions it follows what gives the label away in train, and fails where that does not hold."""
    data = Twin("lesion", train=24, val=8, test=12)
    data.setup()
    task = Classification(classes=["none", "lesion"])
    found = baselines.classes(data, task.classes, task.row)
    assert set(found) == {"prior", "pixels_logistic"}
    assert len({row["prediction"] for row in found["prior"]}) == 1
    score = task.score(found["pixels_logistic"])["auroc"].value
    assert 0.3 < score < 0.9
    assert all(row["group"] for rows in found.values() for row in rows)
