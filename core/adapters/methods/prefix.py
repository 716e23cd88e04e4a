"""Prefix tuning.  attention(q, [P_K; K], [P_V; V]): p trained keys and values in front of every attention's own
Li and Liang 2021, arXiv 2101.00190. P-tuning v2, the same without the MLP: Liu et al. 2021, arXiv 2110.07602
Parameters  p sum_l 2 g_l d_l (2 L p dim where all heads have keys);  with the MLP, C that sum, D = g_1 d_1, H = hidden:
            p D + D H + H + H C + C.
Start       plain N(0, 0.02); MLP: E ~ N(0, 1), torch's own for the layers. Never the identity: zero values still take
            their share of the softmax.
Differs     plain prefixes start near zero (the paper: activations of real words, or a normal of 1, which is unstable in
            its own words). The file keeps the MLP, so training can go on. `shift` moves real tokens to positions p,
            p + 1, ... as the paper's code does; it has no effect where a network is not given positions (ViT, T5, ESM).
            Keys carry no rotary position and no relative bias.
Hosts       networks whose token port names attentions that call scaled_dot_product_attention.
Shapes      l a layer with g key/value heads of d channels   P (p, sum_l 2 g_l d_l), in l: keys, then values
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from core.adapters.base import KeyValues, TokenMethod
from core.adapters.peft_form import PeftForm
from core.errors import ConfigError


class Prefix(TokenMethod):
    peft = PeftForm(
        "PREFIX_TUNING",
        names=("prompt_embeddings",),
        writes={"prefix_projection": False},
        write=lambda method, options: {"prompt_embeddings": method.table()},
    )

    seam = "kv"

    def __init__(
        self,
        shapes,
        *,
        tokens: int = 10,
        encoder: Literal["none", "mlp"] = "none",
        hidden: int = 512,
        shift: bool = True,
    ):
        super().__init__(tokens)
        if encoder not in ("none", "mlp"):
            raise ConfigError("adapter.encoder", encoder, "none, mlp")
        self.shapes, self.shift = shapes, shift
        self.widths = [2 * heads * channels for heads, channels in shapes]
        total = sum(self.widths)
        self.inner = self.outer = None
        if encoder == "none":
            self.value = nn.Parameter(torch.empty(tokens, total).normal_(std=0.02))
            return
        if hidden < 1:
            raise ConfigError("adapter.hidden", hidden, "at least 1")
        self.value = nn.Parameter(torch.randn(tokens, self.widths[0] // 2))
        self.inner, self.outer = nn.Linear(self.widths[0] // 2, hidden), nn.Linear(hidden, total)

    def table(self):
        """(p, sum_l 2 g_l d_l): what a prefix without the MLP would hold in its place."""
        return self.value if self.inner is None else self.outer(self.inner(self.value).tanh())

    def forward(self, layer):
        rows = slice(sum(self.widths[:layer]), sum(self.widths[: layer + 1]))
        if self.inner is None:
            own = self.value[:, rows]
        else:
            own = F.linear(self.inner(self.value).tanh(), self.outer.weight[rows], self.outer.bias[rows])
        heads, channels = self.shapes[layer]
        keys, values = own.view(self.tokens, 2, heads, channels).permute(1, 2, 0, 3)
        return KeyValues(keys, values)
