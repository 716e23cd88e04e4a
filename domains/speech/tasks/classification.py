"""One class per utterance: emotion, speaker, keyword, digit.

item     label (class name), read, speaker; its group is what a split keeps together and the bootstrap draws
row      truth and prediction are class names, probabilities in the order of the classes; score = its share of the UAR
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.bench import measures
from core.contracts import Backbone, Data, Metric, Output, Task
from core.errors import ConfigError, Problem, refuse
from domains.speech.tasks.utterances import samples_of

SPLITS = ("train", "val", "test")


class Classification(Task):
    """Headline: UAR, the unweighted average recall: the mean over classes of the share found. Always naming the most
    frequent class gives 1 / classes.

    classes   names; null: those of the training labels, sorted
    layers    last, or a trained weighted sum of all layers of the encoder
    hidden    width of a hidden layer in the head, 0: linear
    """

    metric = "uar"

    def __init__(
        self,
        classes: list[str] | None = None,
        layers: Literal["last", "weighted"] = "last",
        hidden: int = 0,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.classes = [str(name) for name in classes] if classes else None
        self.layers, self.hidden, self.dropout = layers, hidden, dropout

    def check(self, data: Data, backbone: Backbone) -> None:
        if getattr(backbone.tokenizer, "reads", None) != "samples":
            raise ConfigError(
                "backbone", type(backbone).__name__, "one that listens: listener, wav2vec2, hubert, wavlm"
            )
        items = [(split, item) for split in SPLITS for item in data.items(split)]
        refuse([
            Problem(f"{item['id']} ({split}): label", repr(item.get("label")), "a class name")
            for split, item in items
            if item.get("label") in (None, "")
        ], "labels", 20)  # fmt: skip
        if self.classes is None:
            self.classes = sorted({str(item["label"]) for item in data.items("train")})
        if len(self.classes) < 2:
            raise ConfigError("task.classes", self.classes, "at least two classes in the training labels")
        refuse([
            Problem(f"{item['id']} ({split}): label", str(item["label"]), ", ".join(self.classes))
            for split, item in items
            if str(item["label"]) not in self.classes
        ], "labels", 20)  # fmt: skip
        for split in SPLITS:
            for item in data.items(split)[:1]:
                samples_of(item, backbone.tokenizer.rate)

    def head(self, backbone: Backbone) -> nn.Module:
        if self.classes is None:
            raise ConfigError("task.classes", "null", "class names, or labelled training data")
        with torch.no_grad():
            depth = len(backbone(*backbone.example()[0]).extras["layers"]) if self.layers == "weighted" else 0
        return UtteranceHead(backbone.width, len(self.classes), depth, self.hidden, self.dropout)

    def collate(self, items: list[dict[str, Any]], tokenizer: Any) -> dict[str, Any]:
        """The reader's own inputs; `label` (B,) int64 where the items have labels."""
        batch = {**tokenizer.inputs(items), "ids": [str(item["id"]) for item in items]}
        if all(item.get("label") is not None for item in items):
            batch["label"] = torch.tensor([self.classes.index(str(item["label"])) for item in items])
        return batch

    def loss(self, output: Output, batch: dict[str, Any], head: nn.Module | None) -> tuple[Tensor, Tensor]:
        scores = head(output)
        return F.cross_entropy(scores, batch["label"], reduction="sum"), torch.tensor(len(scores), device=scores.device)

    def predict(self, output: Output, batch: dict[str, Any], head: nn.Module | None) -> Iterator[dict[str, Any]]:
        share = head(output).double().softmax(-1).tolist()
        truth = batch["label"].tolist() if "label" in batch else [None] * len(share)
        for name, p, t in zip(batch["ids"], share, truth, strict=True):
            yield self.row(name, p, t)

    def row(self, name: str, probabilities: list[float], truth: int | None) -> dict[str, Any]:
        """A prediction row; the same form serves baselines."""
        best = measures.named(self.classes, probabilities)
        row = {"id": name, "prediction": best, "probabilities": list(probabilities)}
        return row if truth is None else {**row, "truth": self.classes[truth]}

    def score(self, rows: list[dict[str, Any]]) -> dict[str, Metric]:
        """uar with its interval, macro_f1, accuracy."""
        truth = [self.classes.index(row["truth"]) for row in rows]
        found = measures.classification(truth, [row["probabilities"] for row in rows], len(self.classes))
        measures.share_recall(rows, truth)
        uar = Metric(found["balanced_accuracy"], n=len(rows), ci95=measures.headline("uar", rows))
        return {"uar": uar} | {name: Metric(found[name], n=len(rows)) for name in ("macro_f1", "accuracy")}

    def baselines(self, data: Data) -> dict[str, list[dict[str, Any]]]:
        from domains.speech import baselines

        test = data.items("test")
        return {
            name: [
                self.row(str(item["id"]), list(map(float, p)), self.classes.index(str(item["label"])))
                for item, p in zip(test, table, strict=True)
            ]
            for name, table in baselines.classes(data, self.classes).items()
        }

    def pictures(self, rows: list[dict[str, Any]], directory) -> list[str]:
        from core.bench.confusions import confusion

        return confusion(rows, self.classes, directory)


class UtteranceHead(nn.Module):
    """Mean over frames of layer-normed features, then a linear map or one hidden layer: (batch, classes).

    depth   layers of a trained weighted sum, 0: the last layer alone
    """

    def __init__(self, width: int, classes: int, depth: int = 0, hidden: int = 0, dropout: float = 0.0):
        super().__init__()
        self.mix = nn.Parameter(torch.zeros(depth)) if depth else None
        self.dropout = nn.Dropout(dropout)
        shape = (
            [nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, classes)] if hidden else [nn.Linear(width, classes)]
        )
        self.layers = nn.Sequential(*shape)

    def forward(self, output: Output) -> Tensor:
        if self.mix is None:
            frames = normed(output.hidden)
        else:
            states = torch.stack([normed(state) for state in output.extras["layers"]])
            frames = (self.mix.softmax(0)[:, None, None, None] * states).sum(0)
        there = output.mask[..., None]
        pooled = (frames * there).sum(1) / there.sum(1).clamp(min=1)
        return self.layers(self.dropout(normed(pooled)))


def normed(x: Tensor) -> Tensor:
    """Zero mean, unit variance over channels, fp32: one learning rate then fits every encoder."""
    return F.layer_norm(x.float(), x.shape[-1:])
