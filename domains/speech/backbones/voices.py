"""What the speaking models share: how phones are read, and where a new speaker lives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from core.errors import DataError, Problem
from domains.speech.data.phones import INDEX
from domains.speech.features import MelRecipe


class Voices(nn.Module):
    """One trained vector per speaker whom the base does not know: the head of a speaking task.

    vectors   (new speakers, channels); the network reads them itself (core.adapters.acting_head)
    """

    def __init__(self, count: int, start: Tensor):
        super().__init__()
        self.vectors = nn.Parameter(start.detach().clone().expand(count, -1).contiguous())


class PhoneReader:
    """Symbols to indices, right-padded. Also says in which voices and by which recipe the model speaks."""

    reads = "phones"

    def __init__(self, recipe: MelRecipe, speakers: Sequence[str]):
        self.recipe, self.speakers = recipe, tuple(speakers)

    def inputs(self, items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """phones and phone_mask of items with `phones` [(symbol, seconds)]."""
        symbols = [[symbol for symbol, _ in item.get("phones") or ()] for item in items]
        return self.read(symbols, [str(item["id"]) for item in items])

    def read(self, sequences: Sequence[Sequence[str]], ids: Sequence[str] = ()) -> dict[str, Tensor]:
        """phones (B, T) int64, phone_mask (B, T) bool. DataError lists unknown symbols and empty sequences."""
        problems = []
        for at, symbols in enumerate(sequences):
            where = f"{ids[at] if ids else f'sequence {at}'}: phones"
            if not symbols:
                problems.append(Problem(where, "none", "at least one phone"))
            if unknown := sorted(set(symbols) - INDEX.keys()):
                problems.append(Problem(where, ", ".join(unknown), ", ".join(INDEX)))
        if problems:
            raise DataError(problems=problems)
        rows = [torch.tensor([INDEX[s] for s in symbols]) for symbols in sequences]
        lengths = torch.tensor([len(row) for row in rows])
        phones = pad_sequence(rows, batch_first=True)
        return {"phones": phones, "phone_mask": torch.arange(phones.shape[1]) < lengths[:, None]}
