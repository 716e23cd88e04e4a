"""A small FastSpeech: phones, a speaker and a length per phone to a mel spectrogram.     The network: acoustic.py
Phones    (batch, phones) int64, indices into domains/speech/data/phones.py      Hidden  (batch, frames, channels)
Speakers  the base knows those of its pretraining by name. A new one has a vector in the adapter's head (`Voices`),
          which starts at the mean of the base's and is trained with it; the base alone speaks with that mean.
Forced    a batch with `durations`, `pitch` and `energy` is spoken with them; one without, freely.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from core import weights
from core.adapters import acting_head
from core.contracts import Backbone, Output, TokenPort
from core.errors import ConfigError
from domains.speech.backbones.acoustic import Acoustic
from domains.speech.backbones.voices import PhoneReader
from domains.speech.data.phones import PHONES
from domains.speech.features import MelRecipe

EMBEDDED = Path(__file__).resolve().parent.parent / "weights"
SHAPE = ("width", "inner", "heads", "encoder", "decoder", "predictor")


class FastSpeech(Backbone):
    """source: name of embedded weights (`acoustic_mini`, `acoustic_flite`) or a folder with <name>.json beside its
    safetensors; without one, random weights of the shape given, which know `speakers`.

    pretrained   False keeps the shape of `source` and starts anew from `seed`"""

    reads_head = True
    roles = {
        "embed": "phones",
        "block": ["encoder.*", "decoder.*"],
        "attn": ["encoder.*.attn", "decoder.*.attn"],
        "attn.q": ["encoder.*.attn.q", "decoder.*.attn.q"],
        "attn.k": ["encoder.*.attn.k", "decoder.*.attn.k"],
        "attn.v": ["encoder.*.attn.v", "decoder.*.attn.v"],
        "attn.out": ["encoder.*.attn.out", "decoder.*.attn.out"],
        "mlp": ["encoder.*.mlp", "decoder.*.mlp"],
        "mlp.in": ["encoder.*.mlp.inner", "decoder.*.mlp.inner"],
        "mlp.out": ["encoder.*.mlp.out", "decoder.*.mlp.out"],
        "conv": ["duration.first", "duration.second", "pitch.first", "pitch.second", "energy.first", "energy.second"],
        "features": "regulator",
        "norm": ["encoder.*.norm1", "encoder.*.norm2", "decoder.*.norm1", "decoder.*.norm2", "*.norm1", "*.norm2"],
        "norm.final": ["encoder_norm", "decoder_norm"],
        "head": "mel",
    }

    def __init__(
        self,
        source: str | None = None,
        speakers: list[str] | None = None,
        width: int = 32,
        inner: int = 48,
        heads: int = 2,
        encoder: int = 1,
        decoder: int = 1,
        predictor: int = 16,
        recipe: dict[str, float | str | bool] | None = None,
        pretrained: bool = True,
        seed: int = 0,
    ):
        super().__init__()
        shape = dict(zip(SHAPE, (width, inner, heads, encoder, decoder, predictor), strict=True))
        tensors = None
        if source is not None:
            tensors, written = files(source, {"shape", "speakers", "recipe"})
            shape, speakers, recipe = written["shape"], written["speakers"], written["recipe"]
        elif pretrained:
            allowed = [*weights.shipped(EMBEDDED), "a folder with FastSpeech weights"]
            fix = "set pretrained=false for random weights of a given shape"
            raise ConfigError("backbone.source", "null", allowed, fix)
        self.speakers = tuple(speakers or ("anyone",))
        self.recipe = MelRecipe(**(recipe or {}))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = Acoustic(len(PHONES), len(self.speakers), self.recipe.n_mels, **shape)
        if tensors is not None and pretrained:
            weights.fill(self.net, weights.state(tensors), prefix="", optional=(), where=str(source))
        self.width, self.heads = shape["width"], shape["heads"]
        self.tokenizer = PhoneReader(self.recipe, self.speakers)
        self.token_port = TokenPort(
            blocks="encoder.*",
            bmask="padding",
            bkind="pad2d",
            dim=self.width,
            attn=("encoder.*.attn", "decoder.*.attn"),
            heads="heads",
            head_dim="q.out_features/heads",
        )
        self.net.eval()

    def example(self):
        batch = self.tokenizer.read([["hh", "ax", "l", "ow", "pau"], ["ow", "k"]])
        batch["speaker"] = torch.tensor([0, len(self.speakers) - 1])
        counts = torch.tensor([[2, 1, 1, 3, 1], [2, 1, 0, 0, 0]])
        batch |= {"durations": counts, "pitch": 0.1 * counts, "energy": -5 + 0.3 * counts}
        return (batch,), {}

    def forward(self, batch) -> Output:
        """`extras`: mel, log_durations, pitch, energy as predicted, and the durations used."""
        forced = {name: batch[name] for name in ("durations", "pitch", "energy") if name in batch}
        said = self.net(batch["phones"], ~batch["phone_mask"], batch["speaker"], **forced, voices=self._new())
        hidden, padding = said.pop("hidden"), said.pop("padding")
        return Output(hidden, ~padding, extras=said)

    def synthesise(self, batch: dict) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """(mel (B, F, n_mels), frames of each (B,), what else it decided: durations, pitch), spoken freely."""
        output = self({name: batch[name] for name in ("phones", "phone_mask", "speaker")})
        extras = {name: output.extras[name] for name in ("durations", "pitch")}
        return output.extras["mel"], output.mask.sum(1), extras

    def voice_start(self) -> Tensor:
        """(C,) where a new speaker's vector begins: the mean of those the base knows."""
        return self.net.speakers.weight.detach().mean(0)

    def _new(self) -> Tensor:
        """(new speakers, C) of the acting adapter; one row, the mean voice, for the base alone."""
        own = acting_head(self)
        vectors = getattr(own, "vectors", None)
        return self.net.speakers.weight.mean(0, keepdim=True) if vectors is None else vectors


def files(source: str, keys: set[str]) -> tuple[Path, dict]:
    """(safetensors, parsed configuration with `keys`) of embedded or local weights."""
    found = weights.embedded(EMBEDDED, source)
    if found is None:
        folder = weights.folder(source)
        if len(files := sorted(folder.glob("*.safetensors"))) != 1:
            raise ConfigError("backbone.source", f"{source}: {len(files)} safetensors files", "a folder with one")
        found = files[0], files[0].with_suffix(".json")
    written = weights.configuration(found[1])
    if missing := keys - written.keys():
        raise ConfigError(str(found[1]), f"no {', '.join(sorted(missing))}", "what `domains.speech.pretrain` wrote")
    return found[0], written
