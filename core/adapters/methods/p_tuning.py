"""P-tuning.  h_0' = [f(E); h_0]: prompt tuning whose vectors are the output of a small encoder f
Liu et al. 2021, arXiv 2103.10385
Parameters  p dim + encoder, H = hidden:  mlp dim H + H + H^2 + H + H dim + dim;  lstm two bidirectional layers from dim
            and from 2 H (8 H (dim + H + 2) + 8 H (3 H + 2)), then 4 H^2 + 2 H + 2 H dim + dim.
Start       E ~ N(0, 1), torch's own for the encoder. Not the identity.
Differs     virtual tokens stand in front (the paper puts them anywhere in a template). E, not words, goes in, as in the
            paper's code. The file keeps the encoder, so training can go on; `forward()` is the table (p, dim) that
            prompt tuning would hold in its place.
Hosts       networks with a token port.   Shapes  E (p, dim)
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import nn

from core.adapters.base import TokenMethod
from core.adapters.peft_form import PeftForm
from core.errors import ConfigError


class PTuning(TokenMethod):
    peft = PeftForm(
        "PROMPT_TUNING",
        names=("prompt_embeddings",),
        is_for=lambda config: False,  # the table alone comes back, as `prompt`
        write=lambda method, options: {"prompt_embeddings": method()},
    )

    def __init__(self, dim, *, tokens: int = 20, encoder: Literal["lstm", "mlp"] = "lstm", hidden: int = 128):
        super().__init__(tokens)
        if hidden < 1:
            raise ConfigError("adapter.hidden", hidden, "at least 1")
        self.value = nn.Parameter(torch.randn(tokens, dim))
        if encoder == "lstm":
            self.lstm = nn.LSTM(dim, hidden, num_layers=2, bidirectional=True, batch_first=True)
            widths = [2 * hidden, 2 * hidden, dim]
        elif encoder == "mlp":
            self.lstm, widths = None, [dim, hidden, hidden, dim]
        else:
            raise ConfigError("adapter.encoder", encoder, "lstm, mlp")
        layers = [layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())]
        self.mlp = nn.Sequential(*layers[:-1])

    def forward(self):
        x = self.value[None]
        return self.mlp(x if self.lstm is None else self.lstm(x)[0])[0]
