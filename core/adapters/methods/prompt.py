"""Prompt tuning.  h_0' = [P; h_0]: p trained vectors in front of the input embeddings
Lester et al. 2021, arXiv 2104.08691
Parameters  p dim, once per network.   Start  N(0, 0.02), or the embeddings of p tokens drawn from the vocabulary.
            Not the identity: real tokens attend to the vectors from the first step on.
Differs     the vocabulary is drawn from evenly (the paper: its 5,000 most frequent tokens). Where the network offers no
            embedding seam the vectors enter before the first block and positions stay. Outputs keep their length, so
            labels stay as they are: the last virtual token is not trained to predict the first real one.
Hosts       networks with a token port.   Shapes  P (p, dim)
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from core.adapters.base import TokenMethod
from core.adapters.peft_form import PeftForm
from core.errors import ConfigError, UnsupportedError


class Prompt(TokenMethod):
    peft = PeftForm(
        "PROMPT_TUNING",
        names=("prompt_embeddings",),
        also=("P_TUNING",),  # theirs saves the table that the encoder makes
        write=lambda method, options: {"prompt_embeddings": method()},
    )

    def __init__(self, dim, *, tokens: int = 20, init: Literal["normal", "vocabulary"] = "normal"):
        super().__init__(tokens)
        if init not in ("normal", "vocabulary"):
            raise ConfigError("adapter.init", init, "normal, vocabulary")
        self.init = init
        self.value = nn.Parameter(torch.empty(tokens, dim).normal_(std=0.02))

    def start(self, table):
        if self.init == "normal":
            return
        if table is None:
            raise UnsupportedError("adapter.init", "vocabulary", "normal", "no token embedding here: init=normal")
        drawn = torch.randint(len(table), (len(self.value),))
        self.value.data.copy_(table[drawn.to(table.device)])

    def forward(self):
        return self.value
