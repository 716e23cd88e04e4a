"""Which residues touch: a symmetric map of contact probabilities from pairs of features.

item     contacts (0-based pairs)
row      prediction: the most probable pairs [i, j, p], as many as the protein has residues (`length`); truth: contacts;
         precision: every P@; score: the headline's
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.bench import measures
from core.contracts import Backbone, Data, Metric, Output, Task
from core.errors import Problem, refuse
from core.modes import resting
from domains.protein import metrics
from domains.protein.tasks import reading
from domains.protein.tasks.heads import normed

SEPARATIONS, DIVISORS = (6, 12, 24), (1, 2, 5)


class ContactHead(nn.Module):
    """hidden (batch, tokens, channels), residues (batch, tokens) bool -> scores (batch, tokens, tokens), symmetric.

    Products and distances of projected features, then two small convolutions: contacts come in stripes. Pairs with
    padding are zero before each, so a protein's map does not depend on its batch."""

    def __init__(self, width: int, features: int, channels: int, kernel: int):
        super().__init__()
        self.project, self.pair = nn.Linear(width, features), nn.Conv2d(2 * features, channels, 1)
        self.stripe = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)
        self.score = nn.Conv2d(channels, 1, kernel, padding=kernel // 2)
        nn.init.constant_(self.score.bias, -4.0)  # about one pair in fifty is a contact

    def forward(self, hidden: Tensor, residues: Tensor) -> Tensor:
        z = self.project(normed(hidden))
        a, b = z.unsqueeze(2), z.unsqueeze(1)
        pairs = torch.cat([a * b, (a - b).abs()], -1).permute(0, 3, 1, 2)
        inside = (residues.unsqueeze(1) & residues.unsqueeze(2)).unsqueeze(1)
        h = F.gelu(self.pair(pairs)) * inside
        h = F.gelu(self.stripe(h)) * inside
        score = self.score(h).squeeze(1)
        return (score + score.transpose(1, 2)) / 2


class Contacts(Task):
    """Headline: precision of the L/5 most probable pairs at least `separation` residues apart, mean over proteins.

    separation   of the headline, and the least that is trained on
    features     width of the projection that pairs are made from; channels, kernel: of the convolutions over pairs
    """

    def __init__(
        self,
        separation: Literal[6, 12, 24] = 6,
        features: int = 24,
        channels: int = 16,
        kernel: Literal[1, 3, 5, 7, 9] = 7,
    ):
        super().__init__()
        self.separation, self.features, self.channels, self.kernel = separation, features, channels, kernel
        self.metric = _name(5, separation)

    def check(self, data: Data, backbone: Backbone) -> None:
        reading.check_lengths(data, backbone, whole=True)
        problems = []
        for split, item in reading.every(data):
            where, pairs, length = f"{item['id']} ({split}): contacts", item.get("contacts"), len(item["sequence"])
            if pairs is None:
                problems.append(Problem(where, "missing", "a list of 0-based pairs"))
            elif any(len(pair) != 2 or not all(0 <= i < length for i in pair) for pair in pairs):
                problems.append(Problem(where, "a pair outside the protein", f"positions 0..{length - 1}"))
        refuse(problems)

    def head(self, backbone: Backbone) -> nn.Module:
        return ContactHead(backbone.width, self.features, self.channels, self.kernel)

    def collate(self, items: list[dict[str, Any]], tokenizer: Any) -> dict[str, Any]:
        """`targets` (batch, tokens, tokens) fp32 0 or 1; `pairs` bool, True at residue pairs far enough apart."""
        crops = [item for item in items if item.get("crop")]
        refuse([Problem(f"{i['id']}: crop", "contacts of a cut protein", "whole proteins") for i in crops])
        _, batch = reading.read(items, tokenizer)
        inside, width = batch["residues"], batch["tokens"].shape[1]
        apart = (torch.arange(width).unsqueeze(0) - torch.arange(width).unsqueeze(1)).abs() >= self.separation
        batch["pairs"] = inside.unsqueeze(1) & inside.unsqueeze(2) & apart
        if all(item.get("contacts") is not None for item in items):
            batch["targets"] = torch.zeros(len(items), width, width)
            for row, item in enumerate(items):
                first = int(inside[row].long().argmax())
                for i, j in item["contacts"]:
                    batch["targets"][row, first + i, first + j] = batch["targets"][row, first + j, first + i] = 1.0
        return batch

    def loss(self, output: Output, batch: dict[str, Any], head: nn.Module | None) -> tuple[Tensor, Tensor]:
        pairs = batch["pairs"]
        score = head(output.hidden, output.mask)
        total = F.binary_cross_entropy_with_logits(score, batch["targets"], weight=pairs.float(), reduction="sum")
        return total, pairs.sum()

    def predict(self, output: Output, batch: dict[str, Any], head: nn.Module | None):
        probability, inside = head(output.hidden, output.mask).sigmoid().cpu(), batch["residues"].cpu()
        for row, name in enumerate(batch["ids"]):
            at = inside[row]
            truth = batch["targets"][row].cpu()[at][:, at].triu(1).nonzero().tolist() if "targets" in batch else None
            yield self.row(name, probability[row][at][:, at].double().numpy(), truth)

    def row(self, name: str, probability: np.ndarray, truth: list | None) -> dict[str, Any]:
        """A prediction row of one map (residues, residues)."""
        i, j = np.triu_indices(len(probability), self.separation)
        best = np.argsort(-probability[i, j], kind="stable")[: len(probability)]
        pairs = [[int(i[b]), int(j[b]), round(float(probability[i[b], j[b]]), 4)] for b in best]
        row = {"id": name, "prediction": pairs, "length": len(probability)}
        if truth is not None:
            row["truth"] = [list(map(int, pair)) for pair in truth]
            row["precision"] = {
                _name(d, s): metrics.contact_precision(truth, probability, s, d) for s in SEPARATIONS for d in DIVISORS
            }
        return row

    def score(self, rows: list[dict[str, Any]]) -> dict[str, Metric]:
        """P@L, P@L/2, P@L/5 at 6, 12 and 24 residues apart; a protein without such pairs does not count."""
        for row in rows:
            row["score"] = row["precision"][self.metric]
        known = [row for row in rows if row["score"] is not None]
        names = [self.metric, *(_name(d, s) for s in SEPARATIONS for d in DIVISORS if _name(d, s) != self.metric)]
        out = {name: measures.mean([row["precision"][name] for row in rows]) for name in names}
        out[self.metric] = out[self.metric]._replace(ci95=measures.headline(self.metric, known))
        return out

    def zero_shot(self, backbone: Backbone, data: Data) -> list[dict[str, Any]] | None:
        """From the attention maps and the library's own regression, where its weights are there."""
        if not getattr(backbone, "contacts_trained", False):
            return None
        rows = []
        with resting(backbone):
            for item in data.items("test"):
                found = backbone.contacts(backbone.tokenizer([item["sequence"]]))[0].double().cpu().numpy()
                row = self.row(str(item["id"]), found, item["contacts"])
                rows.append({**row, "group": item.get("group", item["id"])})
        return rows

    def pictures(self, rows: list[dict[str, Any]], directory) -> list[str]:
        from domains.protein import pictures

        return pictures.maps(rows, directory, name=self.metric)


def _name(divisor: int, separation: int) -> str:
    return f"P@L{'' if divisor == 1 else f'/{divisor}'} ({separation}+)"
