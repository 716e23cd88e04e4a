"""Heads on frozen or adapted features. Features are layer-normed first: one learning rate then fits every backbone.

hidden    (batch, tokens, channels)      residues, sites   (batch, tokens) bool
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pool = Literal["mean", "cls", "attention", "sites"]


def normed(x: Tensor) -> Tensor:
    """Zero mean, unit variance over channels, fp32: a head never computes in the base's half precision."""
    return F.layer_norm(x.float(), x.shape[-1:])


class ResidueHead(nn.Module):
    """hidden (batch, tokens, channels) -> scores (batch, tokens, classes)."""

    def __init__(self, width: int, classes: int, dropout: float = 0.0):
        super().__init__()
        self.dropout, self.linear = nn.Dropout(dropout), nn.Linear(width, classes)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.linear(self.dropout(normed(hidden)))


class ProteinHead(nn.Module):
    """One vector per protein, then a linear map or one hidden layer: (batch, outputs).

    pool         mean over residues | cls token | attention with one learned query | mean over the mutated sites
    hidden       width of a hidden layer, 0: none
    mean, scale  (1,) of a regression's training targets: saved with the head: without them an output has no unit
    """

    def __init__(self, width: int, outputs: int, pool: Pool = "mean", hidden: int = 0, dropout: float = 0.0):
        super().__init__()
        self.pool, self.dropout = pool, nn.Dropout(dropout)
        self.query = nn.Linear(width, 1, bias=False) if pool == "attention" else None
        layers = (
            [nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, outputs)] if hidden else [nn.Linear(width, outputs)]
        )
        self.layers = nn.Sequential(*layers)
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("scale", torch.ones(1))

    def forward(self, hidden: Tensor, residues: Tensor, sites: Tensor | None = None) -> Tensor:
        weights = None if self.query is None else self.query(normed(hidden)).squeeze(-1)
        return self.layers(self.dropout(normed(pooled(hidden, residues, self.pool, sites, weights))))


def pooled(
    hidden: Tensor, residues: Tensor, pool: Pool, sites: Tensor | None = None, weights: Tensor | None = None
) -> Tensor:
    """(batch, channels) fp32. Special tokens and padding never count; a protein without sites is averaged whole."""
    hidden = hidden.float()
    if pool == "cls":
        return hidden[:, 0]
    if pool == "attention":
        share = weights.masked_fill(~residues, float("-inf")).softmax(1)
    else:
        chosen = residues if pool == "mean" else torch.where(sites.any(1, keepdim=True), sites, residues)
        share = chosen / chosen.sum(1, keepdim=True)
    return (share.unsqueeze(1) @ hidden).squeeze(1)


def at_sites(residues: Tensor, sites: list[list[int]]) -> Tensor:
    """(batch, tokens) bool, True at the 0-based residue positions named for each protein."""
    place = residues.long().cumsum(1) - 1
    marks = torch.zeros_like(residues)
    for row, wanted in enumerate(sites):
        if len(wanted):
            marks[row] = residues[row] & torch.isin(place[row], torch.tensor(list(wanted)))
    return marks
