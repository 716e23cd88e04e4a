"""Gated prefix.  y = attention(q, K, V) + tanh(g) attention(q, P_K, P_V): a prefix with a softmax and a gate of its own
LLaMA-Adapter, Zhang et al. 2023, arXiv 2303.16199
Parameters  sum_l (2 p g_l d_l + g_l): keys, values and a gate per key/value head.
Start       g = 0, so y is the base's to the bit; P ~ N(0, 1), as large as what a frozen projection makes of a token.
Differs     keys and values are trained themselves (the paper trains hidden vectors and sends them through the layer's
            frozen projections: half the parameters, no use where projections are fused); in every layer (the paper: the
            topmost 30 of 32); one gate per key/value head, as in the paper's code (in its text one per layer). Real
            tokens keep their positions, virtual keys have none, as in the paper.
Hosts       networks whose token port names attentions that call scaled_dot_product_attention.
Shapes      l a layer with g key/value heads of d channels   P_K, P_V (g, p, d) per layer   g (g) per layer
"""

from __future__ import annotations

import torch
from torch import nn

from core.adapters.base import KeyValues, TokenMethod


class GatedPrefix(TokenMethod):
    seam = "kv"

    def __init__(self, shapes, *, tokens: int = 10):
        super().__init__(tokens)
        self.keys = nn.ParameterList(torch.randn(heads, tokens, channels) for heads, channels in shapes)
        self.values = nn.ParameterList(torch.randn(heads, tokens, channels) for heads, channels in shapes)
        self.gate = nn.ParameterList(torch.zeros(heads) for heads, _ in shapes)

    def forward(self, layer):
        return KeyValues(self.keys[layer], self.values[layer], self.gate[layer].tanh())
