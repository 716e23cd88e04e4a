"""A vocoder that learns a voice: from the true mel spectrogram back to the sound, compared as spectrograms.

item     read
row      mel_l1, nat: log mel spectrogram of what the vocoder gives against the recording's; score = mel_l1
Differs  HiFi-GAN was trained with discriminators beside this term; here it is the only one, which keeps a good
         generator good and does not make one
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from core.bench import measures
from core.contracts import Backbone, Data, Metric, Output, Task
from core.errors import ConfigError
from domains.speech import features
from domains.speech.tasks.utterances import samples_of


class Vocoding(Task):
    """Headline: mean absolute difference of log mel spectrograms of re-synthesis and recording.

    frames   of every utterance that a batch has, from a random place: HiFi-GAN is slow (null: all of it)
    """

    metric, mode = "mel_l1", "min"

    def __init__(self, frames: int | None = 32):
        super().__init__()
        if frames is not None and frames < 8:
            raise ConfigError("task.frames", frames, "8 or more, or null")
        self.frames = frames
        self._samples: dict[str, Tensor] = {}

    def check(self, data: Data, backbone: Backbone) -> None:
        if not isinstance(getattr(backbone, "recipe", None), features.MelRecipe) or hasattr(backbone, "synthesise"):
            raise ConfigError("backbone", type(backbone).__name__, "a vocoder: hifigan_ljspeech, hifigan_universal")
        for split in ("train", "val", "test"):
            for item in data.items(split)[:1]:
                samples_of(item, backbone.recipe.sample_rate)

    def collate(self, items: list[dict[str, Any]], tokenizer: Any) -> dict[str, Any]:
        """mel (B, F, n_mels) and what was recorded under it, samples (B, F * hop); as long as the shortest item."""
        recipe, sounds = tokenizer.recipe, []
        for item in items:
            key = str(item["id"])
            if key not in self._samples:
                self._samples[key] = samples_of(item, recipe.sample_rate)
            sounds.append(self._samples[key])
        least = min(len(x) // recipe.hop for x in sounds)
        frames = least if self.frames is None else min(self.frames, least)
        cut = []
        for x in sounds:
            start = int(torch.randint(len(x) // recipe.hop - frames + 1, ())) * recipe.hop
            cut.append(x[start : start + frames * recipe.hop])
        mel = torch.stack([features.mel(x, recipe) for x in cut])
        return {"ids": [str(item["id"]) for item in items], "mel": mel, "samples": torch.stack(cut)}

    def loss(self, output: Output, batch: dict[str, Any], head: nn.Module | None) -> tuple[Tensor, Tensor]:
        value = self._distance(output, batch)
        return value.sum(), torch.tensor(len(value), device=value.device)

    def predict(self, output: Output, batch: dict[str, Any], head: nn.Module | None) -> Iterator[dict[str, Any]]:
        for name, value in zip(batch["ids"], self._distance(output, batch).tolist(), strict=True):
            yield {"id": name, "mel_l1": value, "score": value}

    def _distance(self, output: Output, batch: dict[str, Any]) -> Tensor:
        """(B,) of what is heard, compared on the CPU: the filters live there."""
        said = output.extras["samples"].cpu()
        return torch.stack([
            (features.mel(x, features.LJSPEECH) - truth).abs().mean()
            for x, truth in zip(said, batch["mel"].cpu(), strict=True)
        ])  # fmt: skip

    def score(self, rows: list[dict[str, Any]]) -> dict[str, Metric]:
        found = measures.mean([row["mel_l1"] for row in rows], "nat", better=False)
        return {"mel_l1": found._replace(ci95=measures.headline("mel_l1", rows))}

    def infer(
        self,
        model: nn.Module,
        batch: dict[str, Any],
        head: nn.Module | None,
        output: Output | None = None,
        *,
        final: bool = True,
    ) -> Iterator[dict[str, Any]]:
        """Rows of the cuts in a validation; at the end of the middle of each utterance, four times as long."""
        if not final:
            yield from self.predict(model(batch) if output is None else output, batch, head)
            return
        recipe, device = model.recipe, next(model.parameters()).device
        for name in batch["ids"]:
            sound = self._samples[name]
            frames = len(sound) // recipe.hop
            kept = frames if self.frames is None else min(4 * self.frames, frames)
            start = (frames - kept) // 2 * recipe.hop
            mel = features.mel(sound[start : start + kept * recipe.hop], recipe)[None]
            one = {"ids": [name], "mel": mel.to(device)}
            yield from self.predict(model(one), one, head)

    def zero_shot(self, backbone: Backbone, data: Data) -> list[dict[str, Any]] | None:
        """The vocoder as it is."""
        rows = []
        for item in data.items("test"):
            batch = self.collate([item], backbone.tokenizer)
            rows += [{**row, "group": str(item["group"])} for row in self.infer(backbone, batch, None)]
        return rows
