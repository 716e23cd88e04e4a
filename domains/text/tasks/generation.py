"""Generation: trains on completions as fine-tuning does, is judged by what the model then writes.

During training only the likelihood of the true completions is asked for: it chooses checkpoint and learning rate.
row     prediction (text), truth (list of references), stopped, and nll, tokens, accuracy where there is a completion
"""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from core.contracts import Backbone, Data, Metric
from core.errors import ConfigError
from domains.text import generation
from domains.text.data.rows import question
from domains.text.tasks import reading, scoring
from domains.text.tasks.fine_tuning import FineTuning, likelihood, spread_score


class Generation(FineTuning):
    """Headline: `measure` of greedy answers on test; more is better. Checkpoints are chosen by nll on validation.

    measure          rouge_l, bleu (of the whole set), slot_recall (share of slot values that the text says), exact
    max_new_tokens   of an answer
    beams            1: greedy
    length_penalty   of beams: above 1 favours longer answers
    zero             score the base as it is, too; false where a sweep has adapter=none, which is the same
    max_length, too_long, loss_on, chat, joint, general   as of FineTuning
    """

    mode, watch = "max", ("nll", "min")

    def __init__(
        self,
        measure: Literal["rouge_l", "bleu", "slot_recall", "exact"] = "rouge_l",
        max_new_tokens: int = 64,
        beams: int = 1,
        length_penalty: float = 1.0,
        zero: bool = True,
        max_length: int | None = None,
        too_long: Literal["left", "right", "drop", "error"] = "left",
        loss_on: Literal["completion", "last", "all"] = "completion",
        chat: Literal["auto", "always"] = "auto",
        joint: str = " ",
        general: int = 64,
    ):
        for name, value in (("max_new_tokens", max_new_tokens), ("beams", beams)):
            if value < 1:
                raise ConfigError(f"task.{name}", value, "1 or more")
        super().__init__(max_length, too_long, loss_on, chat, joint, general)
        self.metric, self.max_new_tokens, self.beams, self.length_penalty = (
            measure,
            max_new_tokens,
            beams,
            length_penalty,
        )
        self.zero = zero

    def collate(self, items: list[dict[str, Any]], tokenizer: Any) -> dict[str, Any]:
        """With prompt_ids, prompt_mask, `references` (a list each), `slots` and `prompts`; labels where all items have
        answers."""
        batch = {
            "ids": [str(item["id"]) for item in items],
            "references": [_references(item) for item in items],
            "slots": [item.get("slots") for item in items],
            "prompts": [question(item) for item in items],
            **reading.prompts(items, self.rendering, tokenizer),
        }
        if all(reading.answered(item) for item in items):
            batch |= reading.batch(reading.render(items, self.rendering, tokenizer), tokenizer)
        return batch

    def infer(self, model: nn.Module, batch: dict[str, Any], head: nn.Module | None, output=None, *, final=True):
        if "labels" in batch:
            rows = list(self.predict(model(batch) if output is None else output, batch, head))
        else:
            rows = [{"id": name} for name in batch["ids"]]
        if not final:
            yield from rows
            return
        written = generation.write(
            model, batch, tokens=self.max_new_tokens, beams=self.beams, penalty=self.length_penalty
        )
        asked = zip(batch["prompts"], batch["references"], batch["slots"], strict=True)
        for row, answer, (prompt, references, slots) in zip(rows, written, asked, strict=True):
            row |= {"prompt": prompt, "prediction": model.tokenizer.decode(answer.ids), "stopped": answer.stopped}
            yield row | ({"truth": references} if references else {}) | ({"slots": slots} if slots else {})

    def score(self, rows: list[dict[str, Any]]) -> dict[str, Metric]:
        """Text metrics where rows were generated, likelihood where they have it."""
        found = likelihood(rows) if any(row.get("nll") is not None for row in rows) else {}
        if not any("prediction" in row for row in rows):
            spread_score(rows, "nll")
            return found
        return scoring.written(rows, self.metric) | found

    def baselines(self, data: Data) -> dict[str, list[dict[str, Any]]]:
        """The answer to the most similar training prompt."""
        from domains.text import baselines

        found = baselines.nearest(data)
        return {"nearest": found} if found else {}

    def zero_shot(self, backbone: Backbone, data: Data) -> list[dict[str, Any]] | None:
        rows = super().zero_shot(backbone, data) if self.zero else None
        self.before = {row["id"]: row["prediction"] for row in rows or []}
        return rows

    def pictures(self, rows: list[dict[str, Any]], directory) -> list[str]:
        """The worst, the median and the best text beside what the base wrote; and one item as the model sees it."""
        from domains.text import pictures

        drawn = pictures.texts(rows, directory, name=self.metric, before=self.before)
        return drawn + super().pictures(rows, directory)


def _references(item: dict[str, Any]) -> list[str]:
    """All true answers of an item, [] where it has none."""
    if item.get("references"):
        return list(item["references"])
    if "messages" in item:
        last = item["messages"][-1]
        return [last["content"]] if last["role"] == "assistant" else []
    return [item["completion"]] if "completion" in item else []
