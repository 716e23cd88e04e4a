"""Tasks: labels sit on their pixels, windows equal one look, rows hold what scores need, faults are named."""

import json

import numpy as np
import pytest
import torch

from core.contracts import Data, Output
from core.errors import ConfigError, DataError
from domains.vision_medical import masks
from domains.vision_medical.backbones.monai_net import MonaiNet
from domains.vision_medical.tasks.classification import Classification
from domains.vision_medical.tasks.segmentation import Segmentation
from tests.domains.vision_medical.networks import ALL

NAMES = ["background", "organ", "lesion"]


class Rows(Data):
    """Items by split; `classes` as a reader of masks has them."""

    def __init__(self, train, val=(), test=(), classes=()):
        self.parts, self.classes = {"train": list(train), "val": list(val), "test": list(test)}, list(classes)

    def items(self, split):
        return self.parts[split]


def item(name, size=(16, 16), channels=1, seed=0, group=None, spacing=(1.0, 1.0), label=None, top=2):
    rng = np.random.default_rng((seed, len(name), *name.encode()))
    mask = rng.integers(0, top + 1, size)
    image = np.stack([mask + 0.1 * rng.normal(size=size) for _ in range(channels)]).astype(np.float32)
    read = {"image": image, "mask": mask.astype(np.int64), "spacing": spacing}
    out = {"id": name, "group": group or name, "read": lambda: dict(read), "shape": size, "channels": channels}
    if label is not None:
        read.pop("mask")
        out["label"] = label
    return out


def small(**options):
    return MonaiNet("segresnet", options={"blocks_down": [1, 1], "blocks_up": [1]} | options, pretrained=False)


def ready(task, data, backbone):
    torch.manual_seed(0)
    task.check(data, backbone)
    return task.head(backbone)


# ---------------------------------------------------------------------- segmentation


@pytest.mark.parametrize("dimensions", [2, 3])
def test_labels_sit_on_their_pixels(dimensions):
    """The class is a function of the pixel's own brightness: a few steps reach it, unless masks are turned."""
    size = (8, 12) if dimensions == 2 else (4, 8, 6)
    rows = [item(f"i{k}", size, spacing=(1.0,) * dimensions) for k in range(4)]
    backbone, task = small(spatial_dims=dimensions), Segmentation()
    head = ready(task, Rows(rows, classes=NAMES), backbone)
    batch = task.collate(rows, None)
    assert batch["mask"].shape == (4, *size) and batch["image"].shape == (4, 1, *size)
    optimiser = torch.optim.Adam([*backbone.parameters(), *head.parameters()], lr=1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        total, count = task.loss(backbone(batch), batch, head)
        (total / count).backward()
        optimiser.step()
    with torch.no_grad():
        found = list(task.infer(backbone.eval(), batch, head))
    json.dumps(found)
    assert [row["truth"] for row in found] == [masks.encode(i["read"]()["mask"]) for i in rows]
    assert task.score(found)["dice"].value > 0.97  # measured 1.0
    turned = [{**row, "truth": masks.encode(masks.decode(row["truth"])[::-1])} for row in found]
    again = [task.row(r["id"], masks.decode(r["prediction"]), masks.decode(r["truth"]), r["spacing"]) for r in turned]
    assert task.score(again)["dice"].value < 0.6


@pytest.mark.parametrize("size, window", [((16, 16), [16, 16]), ((16, 12), [16, 16]), ((8, 8, 8), [8, 8, 8])])
def test_windows_equal_one_look_where_the_image_fits(size, window):
    backbone, task = small(spatial_dims=len(size)).eval(), Segmentation(classes=NAMES, window=window)
    head = task.head(backbone)
    image = torch.randn(2, 1, *size)
    from monai.inferers import sliding_window_inference

    with torch.no_grad():
        direct = head(backbone({"image": image}).hidden)
        assert torch.equal(task.scores(backbone, image, head), direct)
        if list(size) == window:
            look = lambda part: head(backbone({"image": part}).hidden)  # noqa: E731
            windowed = sliding_window_inference(image, window, 4, look, overlap=0.25, mode="gaussian")
            assert torch.allclose(windowed, direct, atol=1e-5)


def test_large_and_unequal_images_are_seen_through_windows():
    """Scores of an image do not depend on its batch, nor its mask on padding; validation runs, and has no loss."""
    rows = [item("a", (24, 40)), item("b", (11, 14)), item("c", (16, 16))]
    backbone, task = small().eval(), Segmentation(window=[16, 16])
    head = ready(task, Rows([item("t")], rows, rows, NAMES), backbone)
    both = task.collate(rows, None)
    assert both["windows"] and both["image"].shape == (3, 1, 24, 40)
    with torch.no_grad():
        assert backbone(task.collate(rows[1:2], None)).hidden is None  # no multiple of 2: seen through a window, padded
        output = backbone(both)
        assert output.hidden is None and task.loss(output, both, head)[1] == 0
        found = list(task.infer(backbone, both, head, output, final=False))
        alone = [row for one in rows for row in task.infer(backbone, task.collate([one], None), head, final=False)]
    assert [row["prediction"]["shape"] for row in found] == [[24, 40], [11, 14], [16, 16]]
    assert [row["prediction"] for row in found] == [row["prediction"] for row in alone]
    backbone.train()
    with pytest.raises(ConfigError, match="multiples of 2"):
        backbone({"image": torch.randn(1, 1, 9, 9), "windows": True})


def test_scores_count_what_became_of_every_mask():
    """Dice of a missed and of an invented structure is 0; a class that is in neither counts nowhere."""
    task = Segmentation(classes=NAMES)
    grid = np.zeros((4, 4), int)
    organ, both = grid.copy(), grid.copy()
    organ[:2], both[:2], both[3] = 1, 1, 2
    cases = {"hit": (organ, organ), "missed": (organ, both), "extra": (both, organ), "empty": (grid, grid)}
    rows = [{**task.row(name, f, t, (1.0, 1.0)), "group": name} for name, (f, t) in cases.items()]
    scores = task.score(rows)
    assert [row["score"] for row in rows] == [1.0, 0.5, 0.5, None]
    assert scores["dice"].value == pytest.approx(2 / 3) and scores["dice"].n == 3
    assert scores["dice_organ"].value == 1.0 and scores["dice_lesion"].value == 0.0
    counts = {key: scores[f"n_{key}"].value for key in ("scored", "missed", "fp", "empty")}
    assert counts == {"scored": 3, "missed": 1, "fp": 1, "empty": 3}
    worst = np.hypot(4, 4) / 2  # the mean over a perfect organ and a missed lesion
    assert scores["hd95"].value == pytest.approx((0 + worst + worst) / 3) and scores["hd95"].unit == "mm"
    quick = [task.row(name, f, t, (1.0, 1.0), final=False) for name, (f, t) in cases.items()]
    assert "hd95" not in quick[0] and "hd95" not in task.score(quick)
    assert task.score(quick)["dice"].value == scores["dice"].value


def test_the_interval_draws_patients_not_slices():
    """Ten slices of one patient are one opinion: the interval is as wide as that of the patients alone."""
    task = Segmentation(classes=NAMES[:2])
    rng = np.random.default_rng(0)
    pairs = [(rng.integers(0, 2, (6, 6)), rng.integers(0, 2, (6, 6))) for _ in range(8)]
    alone = [{**task.row(f"{i}", *pair, (1, 1)), "group": f"p{i}"} for i, pair in enumerate(pairs)]
    many = [{**row, "id": f"{row['id']}-{k}"} for row in alone for k in range(10)]
    a, b = (task.score(rows)["dice"].ci95 for rows in (alone, many))
    assert a == pytest.approx(b) and a[1] - a[0] > 0.02


def test_segmentation_faults():
    good = [item("a"), item("b")]
    for rows, backbone, task, text in (
        (Rows(good), small(), Segmentation(), "task=classification"),  # no masks
        (Rows(good, classes=NAMES), ALL["vit"][0](), Segmentation(), "features per pixel"),
        (Rows([item("c", channels=3)], classes=NAMES), small(), Segmentation(), r"data\.prepare\.channels=1"),
        (Rows([item("v", (8, 8, 8))], classes=NAMES), small(), Segmentation(), "spatial_dims"),
        (Rows([item("d", (15, 16))], classes=NAMES), small(), Segmentation(), "multiples of 2"),
        (Rows([item("d", (15, 16))], classes=NAMES), small(), Segmentation(window=[16, 16]), r"data\.augment\.patch"),
        (Rows(good, classes=NAMES), small(), Segmentation(window=[15, 16]), r"task\.window"),
        (Rows(good, classes=NAMES), small(), Segmentation(classes=["background", "x"]), "3 names"),
    ):
        with pytest.raises((ConfigError, DataError), match=text) as caught:
            task.check(rows, backbone)
        assert caught.value.code in (2, 3)
    with pytest.raises(ConfigError, match="overlap"):
        Segmentation(overlap=1.0)
    task = Segmentation(classes=NAMES)
    with pytest.raises(DataError, match="class 3") as caught:
        task.collate([item("e", top=3)], None)
    assert caught.value.code == 3
    with pytest.raises(DataError, match="spacing"):
        task.collate([item("f", spacing=None)], None)


# ---------------------------------------------------------------------- classification


@pytest.mark.parametrize("name", ["resnet", "segresnet"])
def test_probabilities_sum_to_one_and_rows_name_the_positive_class(name):
    """On features per image, and on features per pixel, averaged."""
    channels, backbone = (3, ALL[name][0]()) if name == "resnet" else (1, ALL[name][0]())
    rows = [item(f"i{k}", channels=channels, label=["ill", "well"][k % 2]) for k in range(4)]
    task = Classification(positive="ill")
    head = ready(task, Rows(rows, rows, rows), backbone)
    assert task.classes == ["well", "ill"] and task.metric == "auroc"
    batch = task.collate(rows, None)
    assert batch["label"].tolist() == [1, 0, 1, 0]
    with torch.no_grad():
        found = list(task.infer(backbone.eval(), batch, head.eval()))
    for row in found:
        assert sum(row["probabilities"]) == pytest.approx(1, abs=1e-9) and row["prediction"] == row["probabilities"][1]
    scores = task.score([{**row, "group": row["id"]} for row in found])
    assert next(iter(scores)) == "auroc" and scores["prevalence"].value == 0.5
    assert {"auprc", "brier", "ece", "balanced_accuracy"} <= scores.keys()


def test_balanced_weights_and_more_classes():
    task = Classification(weights="balanced")
    labels = ["a", "a", "a", "b", "c", "c"]
    rows = [item(f"i{k}", channels=3, label=label) for k, label in enumerate(labels)]
    ready(task, Rows(rows), ALL["resnet"][0]())
    assert task.metric == "balanced_accuracy" and torch.allclose(task.class_weight, torch.tensor([6 / 9, 2.0, 1.0]))
    made = [
        {**task.row(f"i{k}", [0.9, 0.05, 0.05], task.classes.index(v)), "group": str(k)} for k, v in enumerate(labels)
    ]
    scores = task.score(made)
    assert scores["balanced_accuracy"].value == pytest.approx(1 / 3)
    assert np.mean([row["score"] for row in made]) == pytest.approx(1 / 3)  # each row's share of it
    hidden = torch.zeros(6, 8)
    head = task.head(ALL["resnet"][0]())
    torch.nn.init.zeros_(head.layers[0].weight), torch.nn.init.zeros_(head.layers[0].bias)
    total, count = task.loss(Output(hidden=hidden), task.collate(rows, None), head)
    assert total.item() / count.item() == pytest.approx(np.log(3), rel=1e-5)  # the mean weight is 1


def test_classification_faults():
    two = [item("a", channels=3, label="ill"), item("b", channels=3, label="well")]
    for rows, text in (
        (Rows([two[0]]), "one class only"),
        (Rows(two, [two[0]]), "split val"),
        (Rows(two, [item("c", channels=3, label="odd")]), "odd"),
        (Rows([{**two[0], "label": None}, two[1]]), "class name"),
        (Rows([item("d", channels=4, label="ill"), two[1]]), r"data\.prepare\.channels=3"),
        (Rows([item("v", (8, 8, 8), channels=3, label="ill"), two[1]]), "unet3d"),
    ):
        with pytest.raises((ConfigError, DataError), match=text):
            Classification().check(rows, ALL["resnet"][0]())
    with pytest.raises(ConfigError, match="positive"):
        Classification(positive="bad").check(Rows(two), ALL["resnet"][0]())
    task = Classification(classes=["ill", "well"])
    with pytest.raises(DataError, match="one size"):
        task.collate([two[0], item("e", (8, 16), channels=3, label="ill")], None)
