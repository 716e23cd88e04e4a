"""Text to token ids and back. A thin picklable layer over a tokenizer of `transformers`; embedded weights have
one of whole words in `weights/NAME.tokenizer.json`.

input_ids, attention_mask  (batch, tokens) int64, padded on the right
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from core.errors import DataError, EnvironmentError_


class Tokenizer:
    """`tokenizer(texts) -> {"input_ids", "attention_mask"}`.

    inner     the library's tokenizer
    pad, eos  ids. Where a tokenizer has no pad, it is eos: nothing here may tell a pad by its id, only by its place
    before    ids that stand in front of every text (a begin token, or none)
    stops     ids that end a generated text, eos among them
    limit     most tokens that the network can read, None where there is no limit
    one_sequence   a completion stands behind its prompt; False: the prompt goes to an encoder of its own
    DataError   an empty vocabulary; no token that ends a text
    """

    def __init__(self, inner: Any, limit: int | None = None, stops: Sequence[int] = (), where: str = "tokenizer"):
        words = len(inner.get_vocab())
        if words <= len(set(inner.all_special_tokens)):
            fix = "load it from the folder that holds tokenizer.json, or vocab.json with merges.txt"
            raise DataError(where, f"an empty vocabulary ({words} tokens)", "a tokenizer that knows words", fix)
        if inner.eos_token_id is None:
            raise DataError(where, "no token that ends a text", "eos_token in tokenizer_config.json")
        self.inner, self.limit, self.size = inner, limit, words
        self.eos = inner.eos_token_id
        self.pad = self.eos if inner.pad_token_id is None else inner.pad_token_id
        self.before = tuple(i for i in inner("")["input_ids"] if i != self.eos)
        self.stops = tuple(dict.fromkeys((self.eos, *stops)))
        self.template = bool(inner.chat_template)
        self.one_sequence = True

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone, nothing in front or behind."""
        return list(self.inner(text, add_special_tokens=False)["input_ids"])

    def unknown(self, ids: Sequence[int]) -> int:
        """How many of `ids` stand for what the vocabulary lacks."""
        return sum(i == self.inner.unk_token_id for i in ids) if self.inner.unk_token_id is not None else 0

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens left out, no blanks at its ends."""
        return self.inner.decode(list(ids), skip_special_tokens=True).strip()

    def chat(self, messages: Sequence[dict[str, str]], *, answer: bool) -> str:
        """The text of a conversation by the tokenizer's chat template; `answer`: an assistant's turn is begun.

        DataError   this tokenizer has no template"""
        if not self.template:
            raise DataError("messages", "this tokenizer has no chat template", "prompt and completion, or text")
        return self.inner.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=answer)

    def save(self, folder: Path) -> None:
        """Beside merged weights, so that the folder is a model that anyone can load."""
        self.inner.save_pretrained(str(folder))

    def __call__(self, texts: Sequence[str]) -> dict[str, Tensor]:
        return pad([[*self.before, *self.encode(text)] for text in texts], self.pad)


def pad(rows: Sequence[Sequence[int]], value: int, *, left: bool = False) -> dict[str, Tensor]:
    """Rows of ids as `input_ids` and `attention_mask`; padded on the left where the next token is asked for."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), value, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, place] = torch.tensor(row, dtype=torch.int64)
        mask[i, place] = 1
    return {"input_ids": ids, "attention_mask": mask}


def of_file(file: Path, *, pad: int, begin: int, end: int, limit: int | None = None) -> Tokenizer:
    """The tokenizer of a `tokenizer.json` alone, as embedded weights have one; `begin` stands in front of every text.

    pad, begin, end   ids. DataError: missing, damaged"""
    from tokenizers import Tokenizer as Fast
    from transformers import PreTrainedTokenizerFast

    try:
        fast = Fast.from_str(file.read_text(encoding="utf-8"))
    except Exception as error:  # the library's own type is a bare Exception
        raise DataError(str(file), str(error)[:120], "the JSON of a tokenizer") from None
    names = {
        key: fast.id_to_token(i) for key, i in (("pad_token", pad), ("bos_token", begin), ("eos_token", end))
    }  # fmt: skip
    if getattr(fast.model, "unk_token", None):  # a vocabulary of whole words: what it lacks is counted
        names["unk_token"] = fast.model.unk_token
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=fast, **names), limit, where=str(file))
    tokenizer.before = (begin,)
    return tokenizer


def of_folder(folder: Path, limit: int | None = None, stops: Sequence[int] = (), **options: str) -> Tokenizer:
    """The tokenizer in a model's folder, or (`gguf_file=NAME`) inside a GGUF file there."""
    from transformers import AutoTokenizer

    try:
        inner = AutoTokenizer.from_pretrained(str(folder), **options)
    except ImportError as error:
        fix = "pip install 'peft-atlas[text]'"
        raise EnvironmentError_("backbone", str(error).strip().splitlines()[0], "the text extra", fix) from None
    except Exception as error:  # the library raises many types for missing and damaged files
        got = f"cannot be read: {type(error).__name__}: {str(error).splitlines()[0][:120]}"
        raise DataError(str(folder), got, "tokenizer.json, or the files of a slow tokenizer") from None
    return Tokenizer(inner, limit, stops, where=str(folder))
