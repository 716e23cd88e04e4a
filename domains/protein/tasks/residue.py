"""One label per residue: secondary structure, conservation, binding sites, any alphabet of single characters.

item     label (str, one character per residue), resolved (str of 0 and 1, optional: 0 is neither trained on nor scored)
row      truth and prediction as strings, "-" where nothing is scored; score = share of right residues of this protein
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core.bench import measures
from core.contracts import Backbone, Data, Metric, Output, Task
from core.errors import ConfigError, Problem, refuse
from domains.protein import metrics
from domains.protein.tasks import reading
from domains.protein.tasks.heads import ResidueHead

IGNORE = -100  # torch's cross entropy leaves these out


class ResidueClassification(Task):
    """Headline: mean over proteins of the share of right residues, so that long proteins do not outvote short ones.

    classes   one character each; null: the characters of the training labels, sorted
    merge     character -> class, for finer alphabets ({G: H, B: E, ...})
    unknown   characters that mean "not observed"
    measure   name of the headline: accuracy, q3, q8
    weights   balanced: every class weighs as much as every other in the loss
    """

    def __init__(
        self,
        classes: str | None = None,
        merge: dict[str, str] | None = None,
        unknown: str = "-?.",
        measure: str = "accuracy",
        weights: Literal["equal", "balanced"] = "equal",
        dropout: float = 0.0,
    ):
        super().__init__()
        self.classes, self.merge, self.unknown = classes, dict(merge or {}), unknown
        self.metric, self.weights, self.dropout = measure, weights, dropout
        self.register_buffer("class_weight", None)

    def check(self, data: Data, backbone: Backbone) -> None:
        reading.check_lengths(data, backbone)
        problems, seen, labelled = [], {}, set()
        for split, item in reading.every(data):
            where, label = f"{item['id']} ({split})", item.get("label")
            if not isinstance(label, str) or len(label) != len(item["sequence"]):
                got = f"{len(label)} characters" if isinstance(label, str) else repr(label)
                problems.append(Problem(f"{where}: label", got, f"{len(item['sequence'])}, one per residue"))
                continue
            resolved = item.get("resolved")
            if resolved is not None and (len(resolved) != len(label) or set(resolved) - {"0", "1"}):
                problems.append(Problem(f"{where}: resolved", resolved[:20], f"{len(label)} characters 0 or 1"))
                continue
            characters = set(self._label(item)) - {metrics.UNSCORED}
            labelled |= {split} if characters else set()
            for character in characters:
                seen.setdefault(character, (split, where))
        # One protein without a label is not scored (a crop may miss its resolved part); a whole split is a fault.
        dark = [split for split in reading.SPLITS if data.items(split) and split not in labelled]
        problems += [Problem(f"split {split}: label", "no residue with a label", "at least one") for split in dark]
        refuse(problems)
        train = {c for item in data.items("train") for c in self._label(item)} - {metrics.UNSCORED}
        if self.classes is None:
            self.classes = "".join(sorted(train))
        strange = sorted(set(seen) - set(self.classes))
        refuse([Problem(f"{seen[c][1]}: label", c, f"classes {self.classes}") for c in strange])
        if len(self.classes) < 2:
            raise ConfigError("task.classes", self.classes, "at least two classes")
        if self.weights == "balanced":
            text = "".join(self._label(item) for item in data.items("train"))
            count = torch.tensor([max(1, text.count(c)) for c in self.classes], dtype=torch.float32)
            self.class_weight = count.sum() / (len(count) * count)

    def head(self, backbone: Backbone) -> nn.Module:
        if self.classes is None:
            raise ConfigError("task.classes", "null", "one character per class, or labelled training data")
        return ResidueHead(backbone.width, len(self.classes), self.dropout)

    def _label(self, item: dict[str, Any]) -> str:
        """Classes per residue with "-" at unresolved and unknown ones."""
        text = "".join(metrics.UNSCORED if c in self.unknown else self.merge.get(c, c) for c in item["label"])
        if item.get("resolved") is None:
            return text
        return "".join(c if r == "1" else metrics.UNSCORED for c, r in zip(text, item["resolved"], strict=True))

    def collate(self, items: list[dict[str, Any]], tokenizer: Any) -> dict[str, Any]:
        """`targets` (batch, tokens) int64: the class at each residue, -100 at what is not scored."""
        items, batch = reading.read(items, tokenizer)
        targets = torch.full_like(batch["tokens"], IGNORE)
        if all(item.get("label") is not None for item in items):
            index = {c: i for i, c in enumerate(self.classes)} | {metrics.UNSCORED: IGNORE}
            # Boolean indexing runs row by row from the left: exactly the residues in their order.
            targets[batch["residues"]] = torch.tensor([index[c] for item in items for c in self._label(item)])
            batch["labelled"] = True
        return {**batch, "targets": targets}

    def loss(self, output: Output, batch: dict[str, Any], head: nn.Module | None) -> tuple[Tensor, Tensor]:
        scores, targets = head(output.hidden).flatten(0, 1), batch["targets"].flatten()
        weight = None if self.class_weight is None else self.class_weight.to(scores.device)
        total = F.cross_entropy(scores, targets, weight, ignore_index=IGNORE, reduction="sum")
        return total, (targets != IGNORE).sum()

    def predict(self, output: Output, batch: dict[str, Any], head: nn.Module | None):
        best, known = head(output.hidden).argmax(-1).cpu(), batch["residues"].cpu()
        targets = batch["targets"].cpu()
        for row, name in enumerate(batch["ids"]):
            at = known[row]
            out = {"id": name, "prediction": "".join(self.classes[i] for i in best[row, at].tolist())}
            if batch.get("labelled"):
                truth = targets[row, at].tolist()
                out["truth"] = "".join(metrics.UNSCORED if t == IGNORE else self.classes[t] for t in truth)
            yield out

    def score(self, rows: list[dict[str, Any]]) -> dict[str, Metric]:
        """The headline, the same over all residues, and macro F1 over residues. Writes each protein's `score`."""
        counts = [metrics.agreement(row["truth"], row["prediction"]) for row in rows]
        for row, (right, scored) in zip(rows, counts, strict=True):
            row["score"] = right / scored if scored else None
        scored_rows = [row for row in rows if row["score"] is not None]
        right, scored = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
        headline = measures.mean([row["score"] for row in rows])
        return {
            self.metric: headline._replace(ci95=measures.headline(self.metric, scored_rows)),
            f"{self.metric}_residue": Metric(right / scored if scored else float("nan"), n=scored),
            "macro_f1": Metric(self._macro_f1(rows), n=scored),
        }

    def _macro_f1(self, rows: list[dict[str, Any]]) -> float:
        import numpy as np

        truth = "".join(row["truth"] for row in rows)
        prediction = "".join(row["prediction"] for row in rows)
        index = {c: i for i, c in enumerate(self.classes)}
        pairs = [(index[t], index[p]) for t, p in zip(truth, prediction, strict=True) if t in index and p in index]
        if not pairs:
            return float("nan")
        table = np.zeros((len(index), len(index)))
        np.add.at(table, tuple(np.array(pairs).T), 1)
        known = table.sum(1) > 0
        return float(np.mean((2 * table.diagonal() / np.maximum(table.sum(0) + table.sum(1), 1))[known]))

    def baselines(self, data: Data) -> dict[str, list[dict[str, Any]]]:
        from domains.protein import baselines

        return baselines.residues(data, self._label)

    def pictures(self, rows: list[dict[str, Any]], directory) -> list[str]:
        from domains.protein import pictures

        return pictures.strips(rows, self.classes, directory, name=self.metric)
