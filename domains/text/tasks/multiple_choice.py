"""Multiple choice by log-probability: each choice is read behind the question, the likeliest is the answer.

item    prompt, choices [str], answer (index from 0)
row     prediction, truth: indices; by_sum, by_length: log p of every choice, in nat and in nat per token
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.bench import measures
from core.contracts import Backbone, Data, Metric, Output, Task
from core.errors import Problem, refuse
from domains.text.data.rendering import Rendering
from domains.text.tasks import reading, retention


class MultipleChoice(Task):
    """Headline: accuracy. Long choices lose by the sum, short ones by the mean: both are reported, `by` names the
    headline and what is trained: softmax over the choices' scores.

    max_length, too_long, chat, joint   how an item becomes tokens: domains.text.data.rendering.Rendering
    general   items of general text, where the data names some, on which forgetting is measured; 0: it is not
    """

    metric, retained = "accuracy", "general_nll"

    def __init__(
        self,
        by: Literal["sum", "length"] = "sum",
        max_length: int | None = None,
        too_long: Literal["left", "error"] = "left",
        chat: Literal["auto", "always"] = "auto",
        joint: str = " ",
        general: int = 64,
    ):
        super().__init__()
        self.general = general
        self.by, self.rendering = by, Rendering(max_length, too_long, "completion", chat, joint)

    def check(self, data: Data, backbone: Backbone) -> None:
        refuse([p for split, item in reading.every(data) for p in _faults(item, split)])
        reading.check(data, backbone, self.rendering)

    def collate(self, items: list[dict[str, Any]], tokenizer: Any) -> dict[str, Any]:
        """One row per choice of every item: `item` (rows,) int64; `answer` (items,) int64 where all are known."""
        refuse([p for item in items for p in _faults(item, None)])
        options = [reading.bound(self.rendering, tokenizer).options(item, tokenizer) for item in items]
        batch = reading.batch([one for several in options for one in several], tokenizer)
        batch["ids"] = [str(item["id"]) for item in items]
        batch["item"] = torch.tensor([at for at, several in enumerate(options) for _ in several])
        if all(item.get("answer") is not None for item in items):
            batch["answer"] = torch.tensor([int(item["answer"]) for item in items])
        return batch

    def scores(self, output: Output, batch: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
        """(by sum, by length), each a list of (choices,) log p per item, differentiable."""
        row, nll, _ = reading.losses(output, batch)
        count = len(batch["item"])
        total = -reading.per_row(nll, row, count)
        mean = total / reading.per_row(torch.ones_like(nll), row, count).clamp_min(1)
        sizes = torch.bincount(batch["item"]).tolist()
        return list(total.split(sizes)), list(mean.split(sizes))

    def loss(self, output: Output, batch: dict[str, Any], head: nn.Module | None) -> tuple[Tensor, Tensor]:
        by_sum, by_length = self.scores(output, batch)
        chosen = by_sum if self.by == "sum" else by_length
        each = [F.cross_entropy(s.unsqueeze(0), a.unsqueeze(0)) for s, a in zip(chosen, batch["answer"], strict=True)]
        return torch.stack(each).sum(), chosen[0].new_tensor(len(each))

    def predict(self, output: Output, batch: dict[str, Any], head: nn.Module | None):
        by_sum, by_length = self.scores(output, batch)
        truth = batch["answer"].tolist() if "answer" in batch else [None] * len(by_sum)
        for name, total, mean, answer in zip(batch["ids"], by_sum, by_length, truth, strict=True):
            chosen = (total if self.by == "sum" else mean).argmax().item()
            row = {"id": name, "prediction": chosen, "by_sum": total.tolist(), "by_length": mean.tolist()}
            yield row | ({} if answer is None else {"truth": answer})

    def score(self, rows: list[dict[str, Any]]) -> dict[str, Metric]:
        for row in rows:
            row["score"] = float(row["prediction"] == row["truth"])
        found = {"accuracy": measures.mean([row["score"] for row in rows])}
        found["accuracy"] = found["accuracy"]._replace(ci95=measures.headline("accuracy", rows))
        for name, key in (("accuracy_by_sum", "by_sum"), ("accuracy_by_length", "by_length")):
            found[name] = measures.mean(
                [float(max(range(len(r[key])), key=r[key].__getitem__) == r["truth"]) for r in rows]
            )
        found["chance"] = measures.mean([1 / len(row["by_sum"]) for row in rows])
        return found

    def baselines(self, data: Data) -> dict[str, list[dict[str, Any]]]:
        """The position that is right most often in training."""
        answers = [int(item["answer"]) for item in data.items("train")]
        common = max(set(answers), key=lambda a: (answers.count(a), -a)) if answers else 0
        rows = []
        for item in data.items("test"):
            guess = [float(at == common) for at in range(len(item["choices"]))]
            rows.append({"id": str(item["id"]), "prediction": common, "truth": int(item["answer"]), "by_sum": guess,
                         "by_length": guess})  # fmt: skip
        return {"majority": rows}

    def zero_shot(self, backbone: Backbone, data: Data) -> list[dict[str, Any]] | None:
        return reading.rows(self, backbone, data.items("test"))

    def retention(self, model: Backbone, data: Data) -> Metric | None:
        return retention.general_nll(model, data, self.general)


def _faults(item: dict[str, Any], split: str | None) -> list[Problem]:
    """What is wrong with a question; without a split its answer may be unknown."""
    where = f"item {item['id']}" + (f" ({split})" if split else "")
    choices, answer = item.get("choices"), item.get("answer")
    if not isinstance(choices, (list, tuple)) or len(choices) < 2:
        return [Problem(f"{where}: choices", repr(choices)[:60], "two texts or more")]
    if answer is None and split is None:
        return []
    if not isinstance(answer, int) or not 0 <= answer < len(choices):
        return [Problem(f"{where}: answer", repr(answer), f"a number from 0 to {len(choices) - 1}")]
    return []
