"""Masked language modelling: go on with pretraining on your own sequences, through the network's own head.

Hidden residues become <mask>, all of them. BERT's 80/10/10 keeps 10 % of the targets visible: a network that has
learned nothing then shows an accuracy of .17 where .09 is the truth.
row      truth and prediction: the hidden residues and the guesses; score = mean -log p of them, in nat
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.bench import measures
from core.contracts import Backbone, Data, Metric, Output, Task
from core.errors import ConfigError
from core.modes import resting
from domains.protein import metrics, zero_shot
from domains.protein.backbones.tokens import STANDARD
from domains.protein.tasks import reading

IGNORE = -100


class MaskedLM(Task):
    """Headline: mean over proteins of -log p of hidden residues, nat per residue; lower is better.

    share   of the residues that are hidden, at least one per protein
    """

    metric, mode = "nll", "min"

    def __init__(self, share: float = 0.15):
        super().__init__()
        if not 0 < share < 1:
            raise ConfigError("task.share", share, "between 0 and 1, both excluded")
        self.share, self.letters = share, {}

    def check(self, data: Data, backbone: Backbone) -> None:
        zero_shot.require(backbone, "task")
        reading.check_lengths(data, backbone)
        self._name_tokens(backbone.tokenizer)

    def _name_tokens(self, tokenizer: Any) -> None:
        self.letters = {tokenizer.ids[letter]: letter for letter in STANDARD}

    def collate(self, items: list[dict[str, Any]], tokenizer: Any) -> dict[str, Any]:
        """`targets` (batch, tokens) int64: the hidden token, -100 elsewhere. Only standard residues are hidden."""
        self._name_tokens(tokenizer)  # a run that is only used for prediction is never checked
        _, batch = reading.read(items, tokenizer)
        tokens, standard = batch["tokens"], torch.tensor(tokenizer.standard)
        allowed = batch["residues"] & torch.isin(tokens, standard)
        chance = torch.rand(tokens.shape).masked_fill(~allowed, 2.0)
        hidden = chance < self.share
        first = chance.argmin(1)  # a short protein of which none was drawn: its smallest draw
        row = torch.arange(len(tokens))
        hidden[row, first] |= allowed[row, first]
        targets = tokens.masked_fill(~hidden, IGNORE)
        return {**batch, "tokens": tokens.masked_fill(hidden, tokenizer.mask), "targets": targets}

    def loss(self, output: Output, batch: dict[str, Any], head: nn.Module | None) -> tuple[Tensor, Tensor]:
        targets = batch["targets"]
        total = F.cross_entropy(
            output.logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum"
        )
        return total, (targets != IGNORE).sum()

    def predict(self, output: Output, batch: dict[str, Any], head: nn.Module | None):
        likely = output.logits.float().log_softmax(-1).cpu()
        targets = batch["targets"].cpu()
        for row, name in enumerate(batch["ids"]):
            at = targets[row] != IGNORE
            truth = targets[row, at]
            guess = likely[row, at].argmax(-1).tolist()
            nll = -likely[row, at].gather(1, truth.unsqueeze(1)).squeeze(1)
            yield {
                "id": name,
                "truth": "".join(self.letters[t] for t in truth.tolist()),
                "prediction": "".join(self.letters.get(g, "X") for g in guess),
                "score": nll.mean().item() if len(nll) else None,
            }

    def score(self, rows: list[dict[str, Any]]) -> dict[str, Metric]:
        """nll (mean over proteins), perplexity and accuracy over all hidden residues."""
        known = [row for row in rows if row["score"] is not None]
        weights = [len(row["truth"]) for row in known]
        total = sum(weights)
        nll = sum(row["score"] * w for row, w in zip(known, weights, strict=True)) / total if total else float("nan")
        right = sum(metrics.agreement(row["truth"], row["prediction"])[0] for row in known)
        mean = measures.mean([row["score"] for row in known], "nat", better=False)
        return {
            "nll": mean._replace(ci95=measures.headline("nll", known)),
            "perplexity": Metric(math.exp(nll), "", False, total),
            "masked_accuracy": Metric(right / total if total else float("nan"), n=total),
        }

    def zero_shot(self, backbone: Backbone, data: Data) -> list[dict[str, Any]] | None:
        """The frozen network on the test split, with masks from a seed of their own."""
        rows = []
        with torch.random.fork_rng(devices=[]), resting(backbone):
            torch.manual_seed(0)
            for item in data.items("test"):
                batch = self.collate([item], backbone.tokenizer)
                rows += [
                    {**row, "group": item.get("group", item["id"])}
                    for row in self.predict(backbone(batch), batch, None)
                ]
        return rows
