"""One class per image: a finding that is there or not, a tissue, a modality.

item     label (class name)
row      two classes: truth 0 or 1, prediction the probability of the positive one; more: truth and prediction are names
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.bench import measures
from core.contracts import Backbone, Data, Metric, Output, Task
from core.errors import ConfigError, DataError, Problem, refuse
from domains.vision_medical import metrics
from domains.vision_medical.tasks import reading
from domains.vision_medical.tasks.heads import ImageHead


class Classification(Task):
    """Headline: AUROC for two classes; balanced accuracy for more. Neither rewards guessing the common class.

    classes   names; null: those of the training labels, sorted
    positive  which of two classes counts as positive; null: the second
    weights   balanced: every class weighs as much as every other in the loss; probabilities then answer for classes
              that are equally common, and calibration is measured against that mistake
    hidden    width of a hidden layer in the head, 0: linear
    """

    def __init__(
        self,
        classes: list[str] | None = None,
        positive: str | None = None,
        weights: Literal["equal", "balanced"] = "equal",
        hidden: int = 0,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.classes = [str(c) for c in classes] if classes else None
        self.positive, self.weights, self.hidden, self.dropout = positive, weights, hidden, dropout
        self.metric = "auroc" if classes is None or len(classes) == 2 else "balanced_accuracy"
        self.register_buffer("class_weight", None)
        self.load: Callable[[str], dict[str, Any]] | None = None

    def check(self, data: Data, backbone: Backbone) -> None:
        reading.check_images(data, backbone)
        reading.check_sizes(data, backbone)
        self.load = reading.Loading(data)
        refuse(
            [
                Problem(f"{item['id']} ({split}): label", repr(item.get("label")), "a class name")
                for split, item in reading.every(data)
                if item.get("label") in (None, "")
            ]
        )
        labels = [str(item["label"]) for item in data.items("train")]
        if self.classes is None:
            self.classes = sorted(set(labels))
        if len(self.classes) < 2:
            raise DataError("split train: label", f"one class only: {', '.join(self.classes)}", "at least two classes")
        if self.positive is not None:
            if len(self.classes) != 2 or str(self.positive) not in self.classes:
                raise ConfigError("task.positive", self.positive, self.classes)
            self.classes.sort(key=lambda c: c == str(self.positive))
        self.metric = "auroc" if len(self.classes) == 2 else "balanced_accuracy"
        allowed = ", ".join(self.classes)
        refuse(
            [
                Problem(f"{item['id']} ({split}): label", str(item["label"]), allowed)
                for split, item in reading.every(data)
                if str(item["label"]) not in self.classes
            ]
        )
        lone = [s for s in ("val", "test") if data.items(s) and len({str(i["label"]) for i in data.items(s)}) < 2]
        if self.metric == "auroc":
            refuse([Problem(f"split {s}: label", "one class only", "both: AUROC ranks them") for s in lone])
        if self.weights == "balanced":
            count = torch.tensor([max(1, labels.count(c)) for c in self.classes], dtype=torch.float32)
            self.class_weight = count.sum() / (len(count) * count)

    def head(self, backbone: Backbone) -> nn.Module:
        if self.classes is None:
            raise ConfigError("task.classes", "null", "class names, or labelled training data")
        return ImageHead(backbone.width, len(self.classes), self.hidden, self.dropout)

    def collate(self, items: list[dict[str, Any]], tokenizer: Any) -> dict[str, Any]:
        """`label` (batch,) int64 where the items have one."""
        _, batch = reading.read(items)
        if len(set(batch["sizes"])) > 1:
            sizes = ", ".join(sorted({" x ".join(map(str, size)) for size in batch["sizes"]}))
            raise DataError("image size", sizes, "one size", "data.prepare.size=[224,224]")
        if all(item.get("label") is not None for item in items):
            batch["label"] = torch.tensor([self.classes.index(str(item["label"])) for item in items])
        return batch

    def loss(self, output: Output, batch: dict[str, Any], head: nn.Module | None) -> tuple[Tensor, Tensor]:
        scores = head(output.hidden)
        weight = None if self.class_weight is None else self.class_weight.to(scores.device)
        count = torch.tensor(len(batch["ids"]), device=scores.device)
        return F.cross_entropy(scores, batch["label"], weight, reduction="sum"), count

    def predict(self, output: Output, batch: dict[str, Any], head: nn.Module | None):
        share = head(output.hidden).double().softmax(-1).tolist()
        truth = batch["label"].tolist() if "label" in batch else [None] * len(share)
        for identity, p, t in zip(batch["ids"], share, truth, strict=True):
            yield self.row(identity, p, t)

    def row(self, identity: str, probabilities: list[float], truth: int | None) -> dict[str, Any]:
        """A prediction row; the same form serves baselines."""
        return measures.class_row(self.classes, identity, probabilities, truth)

    def score(self, rows: list[dict[str, Any]]) -> dict[str, Metric]:
        """auroc, auprc (to be read beside the prevalence), balanced_accuracy, mcc, macro_f1, accuracy, brier, ece. With
        more than two classes each row's `score` is its share of the balanced accuracy."""
        k = len(self.classes)
        truth = [row["truth"] if k == 2 else self.classes.index(row["truth"]) for row in rows]
        probabilities = [row["probabilities"] for row in rows]
        out = measures.score_classes(rows, self.classes, self.metric)
        out["brier"] = Metric(metrics.brier(truth, probabilities), higher_is_better=False, n=len(rows))
        sure = [p[1] if k == 2 else max(p) for p in probabilities]
        right = truth if k == 2 else [row["prediction"] == row["truth"] for row in rows]
        out["ece"] = Metric(metrics.calibration(right, sure), higher_is_better=False, n=len(rows))
        if k == 2:
            out["prevalence"] = Metric(sum(truth) / len(truth), n=len(rows))
        return out

    def baselines(self, data: Data) -> dict[str, list[dict[str, Any]]]:
        from domains.vision_medical import baselines

        return baselines.classes(data, self.classes, self.row)

    def pictures(self, rows: list[dict[str, Any]], directory) -> list[str]:
        from domains.vision_medical import pictures

        return pictures.classification(rows, self.classes, directory, self.load)
