"""Residues to token ids, one residue one token, for every family. Plain data: picklable, no library behind it.

tokens    (batch, tokens) int64, padded on the right
mask      (batch, tokens) int64, 1 at tokens, 0 at padding: what a network's attention needs
residues  (batch, tokens) bool, True at residues: special tokens and padding are False
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.errors import DataError, Problem

STANDARD = "ACDEFGHIKLMNPQRSTVWY"
# The order of the ESM family (fair-esm "ESM-1b" alphabet, transformers EsmTokenizer): ids are positions.
ESM_ORDER = "LAGVSERTIDPKQNFYMHWCXBUZO.-"
# The order of ProtT5 and ProstT5.
PROT_T5_ORDER = "ALGVSREDTIPKFQNYMHWCX"


@dataclass(frozen=True)
class ResidueTokenizer:
    """`tokenizer(sequences) -> {"tokens", "mask", "residues"}`.

    ids            letter -> token id
    before, after  ids of the special tokens around the residues
    pad, mask      padding; the token that hides a residue, None where the network has none
    unknown        id of a letter without its own
    limit          most residues that the network can read, None where there is no limit
    """

    ids: dict[str, int]
    before: tuple[int, ...]
    after: tuple[int, ...]
    pad: int
    mask: int | None
    unknown: int
    limit: int | None = None

    def __call__(self, sequences: Sequence[str]) -> dict[str, Tensor]:
        """DataError lists every sequence that is empty, longer than the limit, or holds what is not a letter."""
        self.check(sequences)
        rows = [[*self.before, *self.encode(sequence), *self.after] for sequence in sequences]
        width = max(len(row) for row in rows)
        tokens = torch.tensor([row + [self.pad] * (width - len(row)) for row in rows])
        length = torch.tensor([len(row) for row in rows]).unsqueeze(1)
        place = torch.arange(width).unsqueeze(0)
        return {
            "tokens": tokens,
            "mask": (place < length).long(),
            "residues": (place >= len(self.before)) & (place < length - len(self.after)),
        }

    def encode(self, sequence: str) -> list[int]:
        """Ids of the residues alone."""
        return [self.ids.get(letter, self.unknown) for letter in sequence.upper()]

    def check(self, sequences: Sequence[str], names: Sequence[str] | None = None) -> None:
        """DataError with all findings: nothing is ever cut silently."""
        problems, too_long = [], 0
        for i, sequence in enumerate(sequences):
            where = f"sequence {names[i] if names else i}"
            if not sequence:
                problems.append(Problem(where, "empty", "one or more residues"))
            elif self.limit is not None and len(sequence) > self.limit:
                too_long += 1
                if too_long <= 3:
                    fix = "crop the data to this length, or choose a backbone without a limit"
                    problems.append(Problem(where, f"{len(sequence)} residues", f"at most {self.limit}", fix))
            strange = sorted({letter for letter in sequence.upper() if not self._known(letter)})
            if strange:
                problems.append(Problem(where, f"characters {strange}", "one-letter residue codes"))
        if too_long > 3:
            problems.append(
                Problem("sequences", f"{too_long} of {len(sequences)} are too long", f"at most {self.limit}")
            )
        if problems:
            raise DataError(problems=problems)

    def _known(self, letter: str) -> bool:
        return letter in self.ids or "A" <= letter <= "Z"

    @property
    def standard(self) -> list[int]:
        """Ids of the 20 standard residues, in the order of STANDARD."""
        return [self.ids[letter] for letter in STANDARD]


def esm(limit: int | None = None) -> ResidueTokenizer:
    """The 33-token ESM alphabet: <cls> 0, <pad> 1, <eos> 2, <unk> 3, residues from 4, <mask> 32."""
    ids = {letter: i for i, letter in enumerate(ESM_ORDER, 4)}
    return ResidueTokenizer(ids, (0,), (2,), pad=1, mask=32, unknown=ids["X"], limit=limit)


def prot_t5(before: tuple[int, ...] = ()) -> ResidueTokenizer:
    """ProtT5's alphabet: <pad> 0, </s> 1, <unk> 2, residues from 3; U, Z, O and B are read as X."""
    return merged({letter: i for i, letter in enumerate(PROT_T5_ORDER, 3)}, before, (1,), pad=0, unknown="X")


def merged(ids: dict[str, int], before: tuple, after: tuple, *, pad: int, unknown: str) -> ResidueTokenizer:
    """An alphabet in which rare residues U, Z, O, B share the id of `unknown`."""
    ids = {letter: i for letter, i in ids.items() if letter not in "UZOB"}
    return ResidueTokenizer(ids, before, after, pad=pad, mask=None, unknown=ids[unknown])


def lines(vocabulary: Sequence[str], limit: int | None) -> ResidueTokenizer:
    """A BERT-type vocabulary: ids are line numbers; [CLS] or <s> stands in front, [SEP] or </s> behind."""
    place = {token: i for i, token in enumerate(vocabulary)}

    def first(*names: str) -> int:
        found = [place[name] for name in names if name in place]
        if not found:
            raise DataError("vocab.txt", "no such line", " or ".join(names), "take the vocabulary of these weights")
        return found[0]

    ids = {token: i for token, i in place.items() if len(token) == 1 and token.isalpha()}
    missing = [letter for letter in STANDARD if letter not in ids]
    if missing:
        raise DataError("vocab.txt", f"no line for {', '.join(missing)}", "the 20 standard residues, one a line")
    return ResidueTokenizer(
        ids,
        (first("[CLS]", "<s>", "<cls>"),),
        (first("[SEP]", "</s>", "<eos>"),),
        pad=first("[PAD]", "<pad>"),
        mask=first("[MASK]", "<mask>"),
        unknown=ids.get("X", first("[UNK]", "<unk>")),
        limit=limit,
    )
