"""Fine-tuning: the next token of every completion, or of whole texts; judged by its negative log-likelihood.

All means are over tokens, never over batches: perplexity = exp(sum of -log p / number of tokens).
row     nll (nat per token of this item), tokens, accuracy; score: this item's share of the token-weighted mean
"""

from __future__ import annotations

import math
from typing import Any, Literal

from torch import Tensor, nn

from core.bench import measures
from core.contracts import Backbone, Data, Metric, Output, Task
from domains.text.data.rendering import Rendering
from domains.text.tasks import reading, retention


class FineTuning(Task):
    """Headline: negative log-likelihood in nat per token; lower is better.

    max_length, too_long, loss_on, chat, joint   how an item becomes tokens: domains.text.data.rendering.Rendering
    general   items of general text, where the data names some, on which forgetting is measured; 0: it is not
    """

    metric, mode, retained = "nll", "min", "general_nll"

    def __init__(
        self,
        max_length: int | None = None,
        too_long: Literal["left", "right", "drop", "error"] = "left",
        loss_on: Literal["completion", "last", "all"] = "completion",
        chat: Literal["auto", "always"] = "auto",
        joint: str = " ",
        general: int = 64,
    ):
        super().__init__()
        self.general, self.sample = general, None
        self.rendering = Rendering(max_length, too_long, loss_on, chat, joint)

    def check(self, data: Data, backbone: Backbone) -> None:
        reading.require_prompts(data, backbone, "task")
        reading.check(data, backbone, self.rendering)
        self.sample = data.sample

    def collate(self, items: list[dict[str, Any]], tokenizer: Any) -> dict[str, Any]:
        reading.refuse_unanswered(items)
        rendered = reading.render(items, self.rendering, tokenizer)
        return {"ids": [str(item["id"]) for item in items], **reading.batch(rendered, tokenizer)}

    def loss(self, output: Output, batch: dict[str, Any], head: nn.Module | None) -> tuple[Tensor, Tensor]:
        _, nll, _ = reading.losses(output, batch)
        return nll.sum() + 0.0 * output.logits.sum(), nll.new_tensor(len(nll))

    def predict(self, output: Output, batch: dict[str, Any], head: nn.Module | None):
        row, nll, right = reading.losses(output, batch)
        count = len(batch["ids"])
        sums = [reading.per_row(v.double(), row, count).tolist() for v in (nll, right, nll * 0 + 1)]
        for name, total, hits, tokens in zip(batch["ids"], *sums, strict=True):
            yield {
                "id": name,
                "nll": total / tokens if tokens else None,
                "accuracy": hits / tokens if tokens else None,
                "tokens": int(tokens),
            }

    def score(self, rows: list[dict[str, Any]]) -> dict[str, Metric]:
        """nll, perplexity and accuracy over all tokens; an item's score is its share of the first."""
        found = likelihood(rows)
        spread_score(rows, "nll")
        found["nll"] = found["nll"]._replace(ci95=measures.headline("nll", rows))
        return found

    def zero_shot(self, backbone: Backbone, data: Data) -> list[dict[str, Any]] | None:
        return reading.rows(self, backbone, data.items("test"))

    def retention(self, model: Backbone, data: Data) -> Metric | None:
        return retention.general_nll(model, data, self.general)

    def pictures(self, rows: list[dict[str, Any]], directory) -> list[str]:
        """One item as the model sees it, coloured by what has a loss."""
        from domains.text import pictures

        return pictures.labels(self.sample, directory)


def likelihood(rows: list[dict[str, Any]]) -> dict[str, Metric]:
    """nll, perplexity and next-token accuracy, every token counted once."""
    known = [row for row in rows if row.get("nll") is not None]
    tokens = sum(row["tokens"] for row in known)
    if not tokens:
        return {"nll": Metric(float("nan"), "nat", False), "perplexity": Metric(float("nan"), "", False)}
    nll = sum(row["nll"] * row["tokens"] for row in known) / tokens
    return {
        "nll": Metric(nll, "nat", False, len(known)),
        "perplexity": Metric(math.exp(min(nll, 700.0)), "", False, tokens),
        "token_accuracy": Metric(sum(row["accuracy"] * row["tokens"] for row in known) / tokens, n=tokens),
    }


def spread_score(rows: list[dict[str, Any]], key: str) -> None:
    """`score` = sum of an item's tokens over the mean number of tokens: its mean over items is the token-weighted
    mean."""
    known = [row for row in rows if row.get(key) is not None]
    mean = sum(row["tokens"] for row in known) / len(known) if known else 1.0
    for row in known:
        row["score"] = row[key] * row["tokens"] / mean
