"""Effect of mutations from the language model's own head, without labels or fine-tuned on few.

Without training (run.fit=false) the score is zero-shot. Trained, the adapter learns to rank: every pair of variants in
a batch whose labels differ should be ordered by score (Bradley-Terry; the idea of ConFit, Zhao, Zhang and Luo 2024).
item     wildtype (str of the same length), label (float; higher is fitter)
row      truth, prediction: the score in nat
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.contracts import Backbone, Data, Metric, Output, Task
from core.errors import Problem, refuse
from domains.protein import zero_shot
from domains.protein.tasks import reading
from domains.protein.tasks.regression import rank_metrics, rows_of


class VariantEffect(Task):
    """Headline: Spearman's rank correlation of label and score.

    how   masked (one forward per distinct site), wildtype (one per wild type), pseudo_perplexity (one per residue of
          every variant; needs no wild type)
    """

    metric = "spearman"

    def __init__(self, how: Literal["masked", "wildtype", "pseudo_perplexity"] = "masked"):
        super().__init__()
        self.how = how

    def check(self, data: Data, backbone: Backbone) -> None:
        zero_shot.require(backbone, "task")
        reading.check_lengths(data, backbone)
        if self.how == "pseudo_perplexity":
            return
        allowed, fix = "a wild type of the same length", "task.how=pseudo_perplexity needs none"
        refuse(
            [
                Problem(f"{item['id']} ({split}): wildtype", repr(item.get("wildtype"))[:40], allowed, fix)
                for split, item in reading.every(data)
                if zero_shot.mutations(item) is None
            ]
        )

    def collate(self, items: list[dict[str, Any]], tokenizer: Any) -> dict[str, Any]:
        """Rows are the distinct texts that the network must read, not the items. A query says where to look:

        `query` (queries, 5) int64: item, row, token index, token whose log p adds, token whose subtracts (-1: none)
        """
        if self.how != "pseudo_perplexity":  # new input for a finished run has not met `check`
            allowed = "a wild type of the same length"
            lacking = [item for item in items if len(item.get("wildtype") or "") != len(item["sequence"])]
            refuse([Problem(f"{i['id']}: wildtype", repr(i.get("wildtype"))[:40], allowed) for i in lacking])
        rows: dict[tuple[str, int | None], int] = {}
        asked: list[tuple[int, int, int, int, int]] = []  # item, row, residue, plus, minus
        for number, item in enumerate(items):
            sequence, wildtype = item["sequence"], item.get("wildtype")
            if self.how == "pseudo_perplexity":
                for i, token in enumerate(tokenizer.encode(sequence)):
                    asked.append((number, rows.setdefault((sequence, i), len(rows)), i, token, -1))
                continue
            new, old = tokenizer.encode(sequence), tokenizer.encode(wildtype)
            for i in zero_shot.mutations(item):
                row = rows.setdefault((wildtype, i if self.how == "masked" else None), len(rows))
                asked.append((number, row, i, new[i], old[i]))
        if not rows:  # a batch of wild types only: still one row, so that the network runs
            rows[items[0]["wildtype"], None] = 0
        batch = tokenizer([sequence for sequence, _ in rows])
        first = batch["residues"].long().argmax(1)
        for (_, hidden), row in rows.items():
            if hidden is not None:
                batch["tokens"][row, first[row] + hidden] = tokenizer.mask
        query = torch.tensor(asked, dtype=torch.int64).reshape(-1, 5)
        query[:, 2] += first[query[:, 1]]
        batch |= {"ids": [str(item["id"]) for item in items], "query": query}
        if self.how == "pseudo_perplexity":
            batch["length"] = torch.tensor([float(len(item["sequence"])) for item in items])
        if all(item.get("label") is not None for item in items):
            batch["targets"] = torch.tensor([float(item["label"]) for item in items])
        return batch

    def scores(self, output: Output, batch: dict[str, Any]) -> Tensor:
        """(items,) fp32, differentiable."""
        item, row, place, plus, minus = batch["query"].unbind(1)
        table = output.logits[row, place].float().log_softmax(-1)
        gain = table.gather(1, plus.unsqueeze(1)).squeeze(1)
        cost = table.gather(1, minus.clamp_min(0).unsqueeze(1)).squeeze(1) * (minus >= 0)
        total = table.new_zeros(len(batch["ids"])).index_add(0, item, gain - cost)
        return total / batch["length"] if "length" in batch else total

    def loss(self, output: Output, batch: dict[str, Any], head: nn.Module | None) -> tuple[Tensor, Tensor]:
        score, truth = self.scores(output, batch), batch["targets"]
        better = truth.unsqueeze(1) > truth.unsqueeze(0)
        pairs = F.softplus(score.unsqueeze(0) - score.unsqueeze(1))
        # `logits * 0` keeps a path to every parameter where a batch has no pair to order.
        return (pairs * better).sum() + 0.0 * output.logits.sum(), better.sum()

    def predict(self, output: Output, batch: dict[str, Any], head: nn.Module | None):
        truth = batch["targets"].tolist() if "targets" in batch else [None] * len(batch["ids"])
        for identity, score, t in zip(batch["ids"], self.scores(output, batch).tolist(), truth, strict=True):
            yield {"id": identity, "prediction": score} | ({} if t is None else {"truth": t})

    def score(self, rows: list[dict[str, Any]]) -> dict[str, Metric]:
        return rank_metrics(rows, squared=False)

    def baselines(self, data: Data) -> dict[str, list[dict[str, Any]]]:
        from domains.protein import baselines

        return {key: rows_of(data, values) for key, values in baselines.values(data).items()}

    def zero_shot(self, backbone: Backbone, data: Data) -> list[dict[str, Any]] | None:
        items = data.items("test")
        if self.how == "pseudo_perplexity":
            found = [
                p.mean().item() for p in zero_shot.residue_log_likelihood(backbone, [i["sequence"] for i in items])
            ]
            return rows_of(data, found)
        return rows_of(data, zero_shot.marginals(backbone, items, self.how))

    def pictures(self, rows: list[dict[str, Any]], directory) -> list[str]:
        from domains.protein import pictures

        return pictures.scatter(rows, directory, unit="")
