"""One class per protein: binds or not, localisation, signal.

item     label (class name or number), sites (0-based positions, for the pool `sites`)
row      two classes: truth 0 or 1, prediction = probability of the second class; more: truth and prediction are class
         names. `probabilities` in the order of the classes, always
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.bench import measures
from core.contracts import Backbone, Data, Metric, Output, Task
from core.errors import ConfigError, Problem, refuse
from domains.protein.tasks import reading
from domains.protein.tasks.heads import Pool, ProteinHead, at_sites


class ProteinClassification(Task):
    """Headline: AUROC for two classes; balanced accuracy for more. Both do not reward guessing the common class.

    classes   names; null: those of the training labels, sorted
    positive  which of two classes counts as positive; null: the second
    hidden    width of a hidden layer in the head, 0: linear
    """

    def __init__(
        self,
        classes: list[str] | None = None,
        positive: str | None = None,
        pool: Literal["mean", "cls", "attention", "sites"] = "mean",
        hidden: int = 0,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.classes = [str(c) for c in classes] if classes else None
        self.positive, self.pool, self.hidden, self.dropout = positive, pool, hidden, dropout
        self.metric = "auroc" if classes is None or len(classes) == 2 else "balanced_accuracy"

    def check(self, data: Data, backbone: Backbone) -> None:
        reading.check_lengths(data, backbone)
        check_pool(self.pool, data, backbone)
        problems = [
            Problem(f"{item['id']} ({split}): label", repr(item.get("label")), "a class name")
            for split, item in reading.every(data)
            if item.get("label") in (None, "") or item["label"] != item["label"]
        ]
        refuse(problems)
        if self.classes is None:
            self.classes = sorted({name(item["label"]) for item in data.items("train")})
        if len(self.classes) < 2:
            raise ConfigError("task.classes", self.classes, "at least two classes in the training labels")
        if self.positive is not None:
            if len(self.classes) != 2 or str(self.positive) not in self.classes:
                raise ConfigError("task.positive", self.positive, self.classes)
            self.classes.sort(key=lambda c: c == str(self.positive))
        self.metric = "auroc" if len(self.classes) == 2 else "balanced_accuracy"
        strange = [(s, i) for s, i in reading.every(data) if name(i["label"]) not in self.classes]
        refuse([Problem(f"{i['id']} ({s}): label", name(i["label"]), ", ".join(self.classes)) for s, i in strange])

    def head(self, backbone: Backbone) -> nn.Module:
        if self.classes is None:
            raise ConfigError("task.classes", "null", "class names, or labelled training data")
        return ProteinHead(backbone.width, len(self.classes), self.pool, self.hidden, self.dropout)

    def collate(self, items: list[dict[str, Any]], tokenizer: Any) -> dict[str, Any]:
        """`targets` (batch,) int64 where the items have labels; `sites` (batch, tokens) bool."""
        items, batch = reading.read(items, tokenizer)
        batch["sites"] = marks(items, batch["residues"], self.pool)
        if all(item.get("label") is not None for item in items):
            batch["targets"] = torch.tensor([self.classes.index(name(item["label"])) for item in items])
        return batch

    def loss(self, output: Output, batch: dict[str, Any], head: nn.Module | None) -> tuple[Tensor, Tensor]:
        scores = head(output.hidden, output.mask, batch["sites"])
        count = torch.tensor(len(batch["ids"]), device=scores.device)
        return F.cross_entropy(scores, batch["targets"], reduction="sum"), count

    def predict(self, output: Output, batch: dict[str, Any], head: nn.Module | None):
        share = head(output.hidden, output.mask, batch["sites"]).double().softmax(-1).tolist()
        truth = batch["targets"].tolist() if "targets" in batch else [None] * len(share)
        for identity, p, t in zip(batch["ids"], share, truth, strict=True):
            yield self.row(identity, p, t)

    def row(self, identity: str, probabilities: list[float], truth: int | None) -> dict[str, Any]:
        """A prediction row; the same form serves baselines."""
        return measures.class_row(self.classes, identity, probabilities, truth)

    def score(self, rows: list[dict[str, Any]]) -> dict[str, Metric]:
        """auroc, auprc, mcc, balanced_accuracy, macro_f1, accuracy. With more than two classes each row's `score` is
        its share of the balanced accuracy: right / (classes that occur * relative frequency of its class)."""
        return measures.score_classes(rows, self.classes, self.metric)

    def baselines(self, data: Data) -> dict[str, list[dict[str, Any]]]:
        from domains.protein import baselines

        found = baselines.classes(data, self.classes, label=name)
        truth = [
            (str(i["id"]), str(i.get("group", i["id"])), self.classes.index(name(i["label"])))
            for i in data.items("test")
        ]
        return {
            key: [
                {**self.row(i, list(map(float, p)), t), "group": g} for (i, g, t), p in zip(truth, table, strict=True)
            ]
            for key, table in found.items()
        }

    def pictures(self, rows: list[dict[str, Any]], directory) -> list[str]:
        from domains.protein import pictures

        return pictures.curves(rows, self.classes, directory)


def name(label: Any) -> str:
    """A class name as text; 1.0 and 1 are the same class."""
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)


def marks(items: list[dict[str, Any]], residues: Tensor, pool: Pool) -> Tensor:
    """(batch, tokens) bool, True at mutated sites. DataError where the pool needs them and an item does not say; an
    empty list is an answer: the wild type, pooled whole."""
    silent = [item for item in items if item.get("sites") is None] if pool == "sites" else []
    fix = "a table of variants as in training, or task.pool=mean"
    refuse([Problem(f"{item['id']}: sites", "none", "mutated positions, for pool=sites", fix) for item in silent])
    return at_sites(residues, [item.get("sites") or [] for item in items])


def check_pool(pool: Pool, data: Data, backbone: Backbone) -> None:
    """ConfigError where a pool needs what the network or the data does not have."""
    if pool == "cls" and not backbone.tokenizer.before:
        raise ConfigError("task.pool", "cls", "mean, attention, sites", "this backbone puts no token in front")
    if pool == "sites" and not any(item.get("sites") for item in data.items("train")):
        raise ConfigError("task.pool", "sites", "mean, cls, attention", "the training items name no mutated sites")
