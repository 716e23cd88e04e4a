"""Items to batches and logits to losses, the same for every task.

input_ids, attention_mask  (batch, tokens) int64, padded on the right
labels                     (batch, tokens) int64, of a sequence-to-sequence model (batch, answer); -100: no loss
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from core.contracts import Backbone, Data, Output, Task
from core.errors import Problem, UnsupportedError, refuse
from core.modes import resting
from domains.text.backbones.tokens import Tokenizer, pad
from domains.text.data.rendering import IGNORE, Rendered, Rendering

SPLITS = ("train", "val", "test")


def batch(rendered: list[Rendered], tokenizer: Tokenizer) -> dict[str, Tensor]:
    """input_ids, attention_mask and labels of rendered items."""
    if tokenizer.one_sequence:
        made = pad([part.ids for part in rendered], tokenizer.pad)
        return made | {"labels": pad([part.labels for part in rendered], IGNORE)["input_ids"]}
    made = pad([[*part.ids[: part.prompt], tokenizer.eos] for part in rendered], tokenizer.pad)
    return made | {"labels": pad([part.labels[part.prompt :] for part in rendered], IGNORE)["input_ids"]}


def prompts(items: list[dict[str, Any]], rendering: Rendering, tokenizer: Tokenizer) -> dict[str, Tensor]:
    """prompt_ids and prompt_mask: what generation goes on from. Padded on the left, so that the last token is there for
    all rows; an encoder's on the right."""
    rows = [rendering.prompt(item, tokenizer) for item in items]
    if bound(rendering, tokenizer).max_length:
        rows = [row[-rendering.max_length :] for row in rows]
    if not tokenizer.one_sequence:
        rows = [[*row, tokenizer.eos] for row in rows]
    empty = [
        Problem(f"item {i['id']}", "an empty prompt", "one token") for i, r in zip(items, rows, strict=True) if not r
    ]
    refuse(empty)
    made = pad(rows, tokenizer.pad, left=tokenizer.one_sequence)
    return {"prompt_ids": made["input_ids"], "prompt_mask": made["attention_mask"]}


def bound(rendering: Rendering, tokenizer: Tokenizer) -> Rendering:
    """The rendering, under the network's own limit too: a finished run's new input has not met `check`."""
    limits = [n for n in (rendering.max_length, tokenizer.limit) if n]
    rendering.max_length = min(limits) if limits else None
    return rendering


def render(items: list[dict[str, Any]], rendering: Rendering, tokenizer: Tokenizer) -> list[Rendered]:
    """Every item as ids. DataError: too long where the policy is to drop, which only a split can do."""
    found = [bound(rendering, tokenizer)(item, tokenizer) for item in items]
    long = [item["id"] for item, part in zip(items, found, strict=True) if part is None]
    allowed = f"at most {rendering.max_length} tokens (task.too_long=drop)"
    refuse([Problem(f"item {name}", "too long", allowed, "shorten it, or task.too_long=left") for name in long])
    return found


def answered(item: dict[str, Any]) -> bool:
    """Whether an item says what the model should have written."""
    if "messages" in item:
        return item["messages"][-1]["role"] == "assistant"
    return "completion" in item or "text" in item


def losses(output: Output, batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Of every token with a loss: (row of the batch int64, -log p fp32, whether it is the likeliest bool).

    The shift by one happens here and nowhere else; a sequence-to-sequence model's decoder has read labels moved by one
    already."""
    targets = batch["labels"]
    if output.extras and "asked" in output.extras:
        targets = targets[:, 1:][:, output.extras["asked"]]
    kept = targets != IGNORE
    logits, truth = output.logits[kept].float(), targets[kept]
    return kept.nonzero()[:, 0], F.cross_entropy(logits, truth, reduction="none"), logits.argmax(-1) == truth


def per_row(values: Tensor, row: Tensor, rows: int) -> Tensor:
    """(rows,) sum of the values of each row."""
    return values.new_zeros(rows).index_add(0, row, values)


def every(data: Data) -> Iterable[tuple[str, dict[str, Any]]]:
    """(split, item) of all splits."""
    for split in SPLITS:
        for item in data.items(split):
            yield split, item


def check(data: Data, backbone: Backbone, rendering: Rendering) -> None:
    """Renders all items, so that lengths are tokens from here on.

    The network's own limit holds where `max_length` says nothing, by the same policy.
    DataError   an item in which nothing has a loss; texts that the tokenizer does not know
    """
    tokenizer = backbone.tokenizer
    bound(rendering, tokenizer)
    data.render(rendering, tokenizer)
    problems, tokens, unknown = [], 0, 0
    for split, item in every(data):
        seen = data.seen[item["id"]]
        tokens, unknown = tokens + seen.tokens, unknown + seen.unknown
        if not seen.supervised:
            got = f"none of {seen.tokens} tokens has a loss"
            if seen.cut:
                got += f": {seen.cut} are cut off by max_length {rendering.max_length}"
            problems.append(
                Problem(f"item {item['id']} ({split})", got, "at least one", "task.max_length, or task.loss_on")
            )
    if unknown > tokens / 2:
        got = f"{unknown} of {tokens} tokens are unknown to this tokenizer"
        problems.append(
            Problem("backbone", got, "texts in its vocabulary", "a backbone with word pieces reads any text")
        )
    refuse(problems)


def require_prompts(data: Data, backbone: Backbone, where: str) -> None:
    """UnsupportedError where a sequence-to-sequence model meets bare texts."""
    if not backbone.tokenizer.one_sequence and any("text" in item for _, item in every(data)):
        allowed = "prompt and completion, or messages"
        raise UnsupportedError(where, "bare texts for an encoder and decoder", allowed, "backbone=hf is a causal model")


def refuse_unanswered(items: list[dict[str, Any]]) -> None:
    """New input for a finished run has not met `check`."""
    allowed = "prompt and completion, messages that end with the assistant, or text"
    refuse([Problem(f"item {item['id']}", "no completion", allowed) for item in items if not answered(item)])


def rows(task: Task, model: Backbone, items: Sequence[dict[str, Any]], size: int = 16) -> list[dict[str, Any]]:
    """Prediction rows of `items` from the model as it is; every module's mode is put back."""
    found: list[dict[str, Any]] = []
    device = next(model.parameters()).device
    order = sorted(range(len(items)), key=lambda at: len(str(items[at])))  # like with like: less padding
    with resting(model):
        for start in range(0, len(order), size):
            part = [items[at] for at in order[start : start + size]]
            made = task.collate(part, model.tokenizer)
            made = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in made.items()}
            groups = {str(item["id"]): str(item.get("group", item["id"])) for item in part}
            found += [{**row, "group": groups[row["id"]]} for row in task.infer(model, made, None)]
    return found
