"""One number per protein: fitness, stability, melting temperature.

item     label (float), sites (0-based mutated positions, for the pool `sites`), wildtype (for the zero-shot row)
row      truth and prediction in the unit of the label
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from core.bench import measures
from core.contracts import Backbone, Data, Metric, Output, Task
from core.errors import DataError, Problem, refuse
from domains.protein import metrics
from domains.protein.tasks import reading
from domains.protein.tasks.heads import ProteinHead
from domains.protein.tasks.protein import check_pool, marks


class Regression(Task):
    """Headline: Spearman's rank correlation. Targets are standardised on the training split alone; the loss is the
    squared error of the standardised target, and predictions come back in the label's unit.

    hidden   width of a hidden layer in the head, 0: linear
    unit     of the label, for tables and axes
    """

    metric = "spearman"

    def __init__(
        self,
        pool: Literal["mean", "cls", "attention", "sites"] = "mean",
        hidden: int = 0,
        dropout: float = 0.0,
        unit: str = "",
    ):
        super().__init__()
        self.pool, self.hidden, self.dropout, self.unit = pool, hidden, dropout, unit
        self.center, self.scale = 0.0, 1.0

    def check(self, data: Data, backbone: Backbone) -> None:
        reading.check_lengths(data, backbone)
        check_pool(self.pool, data, backbone)
        problems = [
            Problem(f"{item['id']} ({split}): label", repr(item.get("label")), "a finite number")
            for split, item in reading.every(data)
            if not isinstance(item.get("label"), (int, float)) or not math.isfinite(item["label"])
        ]
        refuse(problems)
        values = np.array([item["label"] for item in data.items("train")], float)
        if len(values) < 2 or np.ptp(values) == 0:
            raise DataError("train: label", f"{len(values)} items, all {values[:1]}", "at least two different values")
        self.center, self.scale = float(values.mean()), float(values.std())

    def head(self, backbone: Backbone) -> nn.Module:
        head = ProteinHead(backbone.width, 1, self.pool, self.hidden, self.dropout)
        head.mean.fill_(self.center)
        head.scale.fill_(self.scale)
        return head

    def collate(self, items: list[dict[str, Any]], tokenizer: Any) -> dict[str, Any]:
        """`targets` (batch,) fp32 in the label's unit where the items have labels; `sites` (batch, tokens) bool."""
        items, batch = reading.read(items, tokenizer)
        batch["sites"] = marks(items, batch["residues"], self.pool)
        if all(item.get("label") is not None for item in items):
            batch["targets"] = torch.tensor([float(item["label"]) for item in items])
        return batch

    def loss(self, output: Output, batch: dict[str, Any], head: nn.Module | None) -> tuple[Tensor, Tensor]:
        z = head(output.hidden, output.mask, batch["sites"]).squeeze(-1)
        error = z - (batch["targets"] - head.mean) / head.scale
        return error.square().sum(), torch.tensor(len(z), device=z.device)

    def predict(self, output: Output, batch: dict[str, Any], head: nn.Module | None):
        value = head(output.hidden, output.mask, batch["sites"]).squeeze(-1) * head.scale + head.mean
        truth = batch["targets"].tolist() if "targets" in batch else [None] * len(value)
        for identity, v, t in zip(batch["ids"], value.tolist(), truth, strict=True):
            yield {"id": identity, "prediction": v} | ({} if t is None else {"truth": t})

    def score(self, rows: list[dict[str, Any]]) -> dict[str, Metric]:
        return rank_metrics(rows, squared=True)

    def baselines(self, data: Data) -> dict[str, list[dict[str, Any]]]:
        from domains.protein import baselines

        return {key: rows_of(data, values) for key, values in baselines.values(data).items()}

    def zero_shot(self, backbone: Backbone, data: Data) -> list[dict[str, Any]] | None:
        from domains.protein import zero_shot

        items = data.items("test")
        if not zero_shot.possible(backbone, items):
            return None
        return rows_of(data, zero_shot.marginals(backbone, items, "masked"))

    def pictures(self, rows: list[dict[str, Any]], directory) -> list[str]:
        from domains.protein import pictures

        return pictures.scatter(rows, directory, unit=self.unit)


def rows_of(data: Data, values) -> list[dict[str, Any]]:
    """Prediction rows of the test split from one number per item."""
    return [
        {"id": str(i["id"]), "group": str(i.get("group", i["id"])), "truth": float(i["label"]), "prediction": float(v)}
        for i, v in zip(data.items("test"), values, strict=True)
    ]


def rank_metrics(rows: list[dict[str, Any]], *, squared: bool) -> dict[str, Metric]:
    """spearman with its interval, ndcg@10%, recall@10%; mse where predictions have the label's unit. A constant side
    has no rank correlation: it is shown as 0, and `constant` says so."""
    truth, prediction = [row["truth"] for row in rows], [row["prediction"] for row in rows]
    value, constant = metrics.spearman(truth, prediction)
    out = {
        "spearman": Metric(value, n=len(rows), ci95=None if constant else measures.headline("spearman", rows)),
        "ndcg@10%": Metric(metrics.ndcg(truth, prediction), n=len(rows)),
        "recall@10%": Metric(metrics.recall_at(truth, prediction), n=len(rows)),
    }
    if squared:
        out["mse"] = Metric(float(np.mean(np.subtract(truth, prediction) ** 2)), "", False, len(rows))
    if constant:
        out["constant"] = Metric(1.0, "flag", False, len(rows))
    return out
