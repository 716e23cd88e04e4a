"""What a masked language model says about variants without any label.

masked marginal     sum over mutated i of  log p(mutant_i | x\\i) - log p(wild_i | x\\i),  x the wild type, i hidden
wild-type marginal  the same with nothing hidden: one forward per wild type         Meier et al. 2021, NeurIPS 34
pseudo-perplexity   exp of -mean over i of log p(x_i | x\\i), x the variant itself   Salazar et al. 2020, ACL

One position is hidden at a time. ESM rescales its embeddings by the share of <mask> tokens, so hiding many at once
changes the scale of everything that is left. Of a site-independent model both marginals are the profile's log odds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from core.contracts import Backbone
from core.errors import UnsupportedError
from core.modes import resting

Marginal = Literal["masked", "wildtype"]


def speaks(backbone: Backbone) -> bool:
    """True where the network has a trained language-model head and a token that hides a residue."""
    return getattr(backbone.tokenizer, "mask", None) is not None and getattr(backbone, "speaks", True)


def require(backbone: Backbone, what: str) -> None:
    if not speaks(backbone):
        raise UnsupportedError(
            what, f"{type(backbone).__name__} has no masked language-model head", "ESM, ProtBERT, AntiBERTy or Sapiens"
        )


def mutations(item: dict[str, Any]) -> list[int] | None:
    """0-based positions where the item differs from its wild type; None without one of the same length."""
    wildtype, sequence = item.get("wildtype"), item["sequence"]
    if not wildtype or len(wildtype) != len(sequence):
        return None
    return [i for i, (a, b) in enumerate(zip(wildtype, sequence, strict=True)) if a != b]


def possible(backbone: Backbone, items: Sequence[dict[str, Any]]) -> bool:
    """True where marginals exist for every item."""
    return speaks(backbone) and len(items) > 0 and all(mutations(item) is not None for item in items)


def marginals(backbone: Backbone, items: Sequence[dict[str, Any]], how: Marginal, batch: int = 32) -> np.ndarray:
    """(items,) score of each variant, 0 for the wild type; higher is fitter. Variants of one wild type share work."""
    require(backbone, "zero-shot marginals")
    wanted: dict[str, set[int]] = {}
    for item in items:
        wanted.setdefault(item["wildtype"], set()).update(mutations(item))
    ids = backbone.tokenizer.encode
    scores = {}
    for wildtype, positions in wanted.items():
        order = sorted(positions)
        table = log_probabilities(backbone, wildtype, order, masked=how == "masked", batch=batch)
        scores[wildtype] = {p: row - row[ids(wildtype[p])[0]] for p, row in zip(order, table, strict=True)}
    return np.array(
        [float(sum(scores[i["wildtype"]][p][ids(i["sequence"][p])[0]] for p in mutations(i))) for i in items]
    )


def log_probabilities(
    backbone: Backbone, sequence: str, positions: Sequence[int], *, masked: bool, batch: int = 32
) -> Tensor:
    """(positions, vocabulary) log p of every token at 0-based residue positions, each hidden in a copy of its own or
    (not masked) all read from one forward."""
    if not positions:
        return torch.empty(0, 0)
    if not masked:
        with resting(backbone):
            output = backbone(_to(backbone, backbone.tokenizer([sequence])))
            return output.logits[output.mask].float().log_softmax(-1).cpu()[list(positions)]
    return torch.cat([part for _, part in _hidden(backbone, [(sequence, p) for p in positions], batch)])


def pseudo_perplexity(backbone: Backbone, sequences: Sequence[str], batch: int = 32) -> np.ndarray:
    """(sequences,) exp of the mean negative log p of each residue when it alone is hidden; the number of tokens of the
    vocabulary is what a network without knowledge would reach."""
    return np.exp([-p.mean().item() for p in residue_log_likelihood(backbone, sequences, batch)])


def residue_log_likelihood(backbone: Backbone, sequences: Sequence[str], batch: int = 32) -> list[Tensor]:
    """(residues,) log p of each residue when it alone is hidden, per sequence."""
    require(backbone, "pseudo-perplexity")
    wanted = [(s, p) for s in sequences for p in range(len(s))]
    truth = torch.tensor([backbone.tokenizer.encode(s[p])[0] for s, p in wanted])
    table = torch.cat([part for _, part in _hidden(backbone, wanted, batch)])
    found = table.gather(1, truth.unsqueeze(1)).squeeze(1)
    return list(found.split([len(s) for s in sequences]))


def hide(tokens: Tensor, residues: Tensor, positions: Sequence[int], mask: int) -> Tensor:
    """Token index (rows,) of each 0-based residue position; `tokens` gets `mask` there, in place, one per row."""
    place = residues.long().argmax(1) + torch.as_tensor(list(positions))
    tokens[torch.arange(len(tokens)), place] = mask
    return place


def _hidden(backbone: Backbone, wanted: Sequence[tuple[str, int]], batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(token index, log p of the vocabulary there) of copies with one residue hidden, in the order asked."""
    with resting(backbone):
        for start in range(0, len(wanted), batch):
            part = wanted[start : start + batch]
            made = backbone.tokenizer([sequence for sequence, _ in part])
            place = hide(made["tokens"], made["residues"], [p for _, p in part], backbone.tokenizer.mask)
            logits = backbone(_to(backbone, made)).logits
            at = logits[torch.arange(len(part), device=logits.device), place.to(logits.device)]
            yield place, at.float().log_softmax(-1).cpu()


def _to(backbone: Backbone, made: dict[str, Tensor]) -> dict[str, Tensor]:
    device = next(backbone.parameters()).device
    return {name: value.to(device) for name, value in made.items()}
