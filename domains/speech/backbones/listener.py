"""A small encoder of speech: log mel spectrogram to frames of 20 ms.     Blocks as in acoustic.py
Mel       (batch, frames, 40), 100 frames per second, 50 to 4,000 Hz, so that telephone speech fits too; each utterance
          minus its mean over time, which takes the channel away, and how loud it is: on the twin's emotions, which
          differ in loudness, statistics of MFCCs do better
Hidden    (batch, frames / 2, channels)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from core import weights
from core.contracts import Backbone, Output, TokenPort
from core.errors import ConfigError
from domains.speech import features
from domains.speech.backbones.acoustic import Block
from domains.speech.backbones.fastspeech import EMBEDDED, files
from domains.speech.features import MelRecipe
from domains.speech.tasks.utterances import samples_of

RECIPE = MelRecipe(16000, 512, 160, 400, 40, 50.0, 4000.0, "natural", 1e-5, True)
SHAPE = ("width", "inner", "heads", "layers")


class Encoder(nn.Module):
    def __init__(self, n_mels: int, width: int, inner: int, heads: int, layers: int):
        super().__init__()
        self.first = nn.Conv1d(n_mels, width, 3, padding=1)
        self.second = nn.Conv1d(width, width, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(Block(width, inner, heads, 3) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, mel: Tensor, padding: Tensor) -> tuple[list[Tensor], Tensor]:
        """([(B, F / 2, C) behind the convolutions and behind each block, the last one normed], padding (B, F / 2))."""
        x = mel.masked_fill(padding[..., None], 0.0).transpose(1, 2)
        x = nn.functional.gelu(self.first(x)).masked_fill(padding[:, None], 0.0)
        x, padding = nn.functional.gelu(self.second(x)).transpose(1, 2), padding[:, ::2]
        states = [x]
        for block in self.blocks:
            x = block(x, padding=padding)
            states.append(x)
        states[-1] = self.norm(x)
        return states, padding


class Listener(Backbone):
    """source: name of embedded weights (`listener`) or a folder as `domains.speech.pretrain` writes it; without one,
    random weights of the shape given.

    pretrained   False keeps the shape of `source` and starts anew from `seed`"""

    roles = {
        "conv": ["first", "second"],
        "features": "norm",
        "block": "blocks.*",
        "attn": "blocks.*.attn",
        "attn.q": "blocks.*.attn.q",
        "attn.k": "blocks.*.attn.k",
        "attn.v": "blocks.*.attn.v",
        "attn.out": "blocks.*.attn.out",
        "mlp": "blocks.*.mlp",
        "mlp.in": "blocks.*.mlp.inner",
        "mlp.out": "blocks.*.mlp.out",
        "norm": ["blocks.*.norm1", "blocks.*.norm2"],
        "norm.final": "norm",
    }

    def __init__(
        self,
        source: str | None = None,
        width: int = 32,
        inner: int = 48,
        heads: int = 2,
        layers: int = 2,
        pretrained: bool = True,
        seed: int = 0,
    ):
        super().__init__()
        shape = dict(zip(SHAPE, (width, inner, heads, layers), strict=True))
        tensors = None
        if source is not None:
            tensors, written = files(source, {"shape", "recipe"})
            shape, recipe = written["shape"], MelRecipe(**written["recipe"])
            features.same_recipe(listener=RECIPE, weights=recipe)
        elif pretrained:
            allowed = [*weights.shipped(EMBEDDED), "a folder with Listener weights"]
            fix = "set pretrained=false for random weights of a given shape"
            raise ConfigError("backbone.source", "null", allowed, fix)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = Encoder(RECIPE.n_mels, **shape).eval()
        if tensors is not None and pretrained:
            weights.fill(self.net, weights.state(tensors), prefix="", optional=(), where=str(source))
        self.recipe, self.width, self.heads = RECIPE, shape["width"], shape["heads"]
        self.tokenizer = SpectrumReader(RECIPE)
        self.token_port = TokenPort(
            blocks="blocks.*",
            bmask="padding",
            bkind="pad2d",
            dim=self.width,
            attn="blocks.*.attn",
            heads="heads",
            head_dim="q.out_features/heads",
        )

    def example(self):
        mel = torch.linspace(0, 60, 2 * 9 * RECIPE.n_mels).sin().view(2, 9, -1)
        mask = torch.tensor([[True] * 9, [True] * 5 + [False] * 4])
        return ({"mel": mel, "mel_mask": mask},), {}

    def forward(self, batch) -> Output:
        states, padding = self.net(batch["mel"], ~batch["mel_mask"])
        return Output(states[-1], ~padding, extras={"layers": states})


class SpectrumReader:
    """Recordings to one padded spectrogram; those of one id are computed once."""

    reads = "samples"

    def __init__(self, recipe: MelRecipe):
        self.recipe, self.rate = recipe, recipe.sample_rate
        self._known: dict[str, Tensor] = {}

    def inputs(self, items: list[dict[str, Any]]) -> dict[str, Tensor]:
        """mel (B, F, n_mels), mel_mask (B, F) bool. ConfigError: another sample rate."""
        rows = [self.mel(item) for item in items]
        lengths = torch.tensor([len(row) for row in rows])
        mel = pad_sequence(rows, batch_first=True)
        return {"mel": mel, "mel_mask": torch.arange(mel.shape[1]) < lengths[:, None]}

    def mel(self, item: dict[str, Any]) -> Tensor:
        key = str(item["id"])
        if key not in self._known:
            self._known[key] = centred(features.mel(samples_of(item, self.rate), self.recipe))
        return self._known[key]


def centred(mel: Tensor) -> Tensor:
    """The spectrogram minus its mean over time, in units of 2 nat."""
    return (mel - mel.mean(0)) / 2
