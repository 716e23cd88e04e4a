"""Tiny stand-ins with known answers: data from lists, and backbones whose output is written down."""

import torch
from torch import nn

from core.contracts import Audit, Backbone, Data, Output
from domains.protein.backbones.tokens import STANDARD, ResidueTokenizer


class Rows(Data):
    """Items as given; `val` and `test` default to the training items."""

    def __init__(self, train, val=None, test=None):
        self.splits = {"train": train, "val": train if val is None else val, "test": train if test is None else test}

    def setup(self):
        pass

    def items(self, split):
        return self.splits[split]

    def audit(self):
        return Audit()


def alphabet(limit=None):
    ids = {letter: i for i, letter in enumerate(STANDARD, 4)}
    return ResidueTokenizer(ids, (0,), (2,), pad=1, mask=3, unknown=4, limit=limit)


class Profile(Backbone):
    """A site-independent model: logits at position i are log p_i, whatever the sequence says; hidden is one-hot.

    probabilities   (positions, 20) in the order of STANDARD
    """

    roles = {"embed": "table"}
    width = 24

    def __init__(self, probabilities):
        super().__init__()
        self.net = nn.Module()
        self.net.table = nn.Embedding.from_pretrained(torch.eye(24), freeze=False)
        self.register_buffer("logp", torch.log(torch.as_tensor(probabilities, dtype=torch.float32)))
        self.tokenizer = alphabet()
        self.calls = []

    def forward(self, batch):
        tokens = batch["tokens"]
        self.calls.append(tokens)
        logits = torch.full((*tokens.shape, 24), -1e9)
        length = tokens.shape[1] - 2
        logits[:, 1 : 1 + length, 4:] = self.logp[:length] + 1.7  # a constant shift: softmax must not care
        return Output(self.net.table(tokens), batch["residues"], logits)
