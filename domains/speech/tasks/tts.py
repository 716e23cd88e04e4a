"""Speak as a speaker of whom there are minutes: trained on true durations and pitch, judged on what it says freely.

item     phones (or text, where the backbone reads letters), speaker, read
row      mel_l1_forced, nat: the mel error with true durations and pitch, which selects the checkpoint; and, at the end,
         of the sentence spoken freely: mcd, mel_l1, f0_rmse, f0_cents, vuv, gross (domains/speech/metrics.py),
         duration_error (ms per phone), length_error (%), rtf; what the judges say; score = mcd
Speakers those whom the base knows keep their voice; a new one has a vector in the head. The base alone speaks a new
         speaker's sentences in the mean of its voices: the zero-shot row.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from core.bench import measures
from core.contracts import Backbone, Data, Metric, Output, Task
from core.errors import ConfigError, DataError, Problem
from domains.speech import features, metrics
from domains.speech.backbones import vocoder as vocoders
from domains.speech.backbones.voices import Voices
from domains.speech.tasks import known, panel, utterances
from domains.speech.tasks.losses import terms, weighted

SPLITS = ("train", "val", "test")
FORCED = "mel_l1_forced"
UNITS = {  # of what rows carry -> (unit, whether more is better)
    "mcd": ("dB", False),
    "mel_l1": ("nat", False),
    FORCED: ("nat", False),
    "f0_rmse": ("Hz", False),
    "f0_cents": ("cent", False),
    "vuv": ("", False),
    "gross": ("", False),
    "duration_error": ("ms", False),
    "length_error": ("%", False),
    "rtf": ("", False),
    **panel.UNITS,
}


class TTS(Task):
    """Headline: mel-cepstral distortion of free-running synthesis, frames paired by warping.

    vocoder    for pitch, judges and players; rounds of Griffin-Lim
    sounds     utterances of the test split that get players and pictures, the worst one first
    judges     recogniser, similarity, quality (domains/speech/judges.py); each needs its package
    forgetting   held-out utterances of each of the base's own speakers, measured before and after; 0: none
    speakers   new ones, in the order of their vectors; null: those of the training data
    """

    metric, mode = "mcd", "min"
    watch = (FORCED, "min")
    retained = FORCED

    def __init__(
        self,
        vocoder: Literal["griffin_lim", "hifigan_ljspeech", "hifigan_universal"] = "griffin_lim",
        rounds: int = 16,
        sounds: int = 2,
        judges: list[Literal["recogniser", "similarity", "quality"]] | None = None,
        forgetting: int = 2,
        speakers: list[str] | None = None,
    ):
        super().__init__()
        self.vocoder, self.rounds, self.sounds = vocoder, rounds, sounds
        self.judges, self.forgetting, self.speakers = list(judges or ()), forgetting, speakers
        self._features: dict[str, utterances.Utterance] = {}
        self._voice = None
        self._recipe: features.MelRecipe | None = None
        self._panel = panel.Panel(self.judges, {})
        self.takes: dict[str, dict[str, Any]] = {}  # id -> what pictures and players show
        self.before: dict[str, dict[str, Any]] = {}  # the same, of the base alone

    def check(self, data: Data, backbone: Backbone) -> None:
        if not hasattr(backbone, "synthesise"):
            raise ConfigError("backbone", type(backbone).__name__, "one that speaks: fastspeech, speecht5")
        self._recipe = backbone.recipe
        if self.vocoder != "griffin_lim":
            features.same_recipe(model=backbone.recipe, vocoder=features.LJSPEECH)
            vocoders.located(self.vocoder)
        for split in SPLITS:
            utterances.check(data.items(split), split, backbone.tokenizer.reads)
            for item in data.items(split)[:1]:
                utterances.samples_of(item, backbone.recipe.sample_rate)
        panel.check(self.judges)
        self._panel = panel.Panel(self.judges, panel.references(data.items("train")))
        seen = {item["speaker"] for item in data.items("train")}
        if self.speakers is None:
            self.speakers = sorted(seen - set(backbone.speakers))
        strange = sorted(
            {item["speaker"] for split in SPLITS[1:] for item in data.items(split)} - seen - set(backbone.speakers)
        )
        if strange:
            allowed = "speakers with training data, or of the base"
            raise DataError(problems=[Problem(f"speaker {name}", "val or test only", allowed) for name in strange])

    def head(self, backbone: Backbone) -> nn.Module | None:
        return Voices(len(self.speakers), backbone.voice_start()) if self.speakers else None

    def collate(self, items: list[dict[str, Any]], tokenizer: Any) -> dict[str, Any]:
        """The reader's own inputs, `speaker` (B,) int64; of items with sound also mel, mel_mask, durations, pitch,
        energy, and `sounds`, what reads each item's samples."""
        names = [*tokenizer.speakers, *(self.speakers or ())]
        chosen = [item.get("speaker") or (self.speakers or names)[0] for item in items]
        strange = [
            Problem(f"{i['id']}: speaker", c, ", ".join(names))
            for i, c in zip(items, chosen, strict=True)
            if c not in names
        ]
        if strange:
            raise DataError(problems=strange)
        batch = tokenizer.inputs(items)
        batch["ids"] = [str(item["id"]) for item in items]
        batch["speaker"] = torch.tensor([names.index(name) for name in chosen])
        batch |= {"texts": [item.get("text", "") for item in items], "speakers": chosen}
        if all("read" in item for item in items):
            found = [self._utterance(item, tokenizer.recipe) for item in items]
            batch |= utterances.padded(found)
            batch["sounds"] = [partial(item["read"]) for item in items]  # hidden from what moves a batch to a device
        return batch

    def _utterance(self, item: dict[str, Any], recipe: features.MelRecipe) -> utterances.Utterance:
        key = str(item["id"])
        if key not in self._features:
            self._features[key] = utterances.utterance(item, recipe)
        return self._features[key]

    def loss(self, output: Output, batch: dict[str, Any], head: nn.Module | None) -> tuple[Tensor, Tensor]:
        value = weighted(terms(output, batch))
        return value.sum(), torch.tensor(len(value), device=value.device)

    def predict(self, output: Output, batch: dict[str, Any], head: nn.Module | None) -> Iterator[dict[str, Any]]:
        """Teacher-forced rows: `mel_l1_forced`."""
        for name, value in zip(batch["ids"], terms(output, batch)["mel"].tolist(), strict=True):
            yield {"id": name, FORCED: value}

    def infer(
        self,
        model: nn.Module,
        batch: dict[str, Any],
        head: nn.Module | None,
        output: Output | None = None,
        *,
        final: bool = True,
    ) -> Iterator[dict[str, Any]]:
        """Forced rows in a validation; else every sentence spoken freely, one at a time, beside its truth."""
        forced = "mel" in batch
        rows: list[dict[str, Any]] = [{} for _ in batch["ids"]]
        if forced:
            rows = list(self.predict(model(batch) if output is None else output, batch, head))
        for at, row in enumerate(rows):
            yield row | (self._spoken(model, batch, at) if final else {})

    def _spoken(self, model: nn.Module, batch: dict[str, Any], at: int) -> dict[str, Any]:
        one, recipe, name = single(batch, at), model.recipe, batch["ids"][at]
        began = time.perf_counter()
        mel, frames, decided = model.synthesise(one)
        mel = mel[0, : int(frames[0])].float().cpu()
        samples = self._sound(mel, recipe)
        seconds = len(mel) * recipe.hop_s
        row = {"id": name, "prediction": batch["texts"][at], "seconds": seconds}
        row["rtf"] = (time.perf_counter() - began) / seconds
        if "stopped" in decided:
            row["stopped"] = bool(decided["stopped"][0])
        take = {"text": batch["texts"][at], "mel": mel.numpy(), "samples": samples.numpy()}
        if "mel" in one:
            take["truth_mel"] = one["mel"][0].cpu().numpy()
            take["truth_samples"] = np.asarray(batch["sounds"][at]()[0], np.float32)
            row |= self._errors(one, take, decided, recipe)
        row |= self._panel(
            name, take["text"], batch["speakers"][at], take["samples"], take.get("truth_samples"), recipe.sample_rate
        )
        self.takes[name] = take
        return row

    def _errors(self, one: dict, take: dict, decided: dict, recipe: features.MelRecipe) -> dict[str, Any]:
        truth, said = take["truth_mel"], take["mel"]
        pitches = [features.pitch(torch.from_numpy(take[k]), recipe).numpy() for k in ("truth_samples", "samples")]
        row = metrics.utterance(truth, said, *pitches, log=recipe.log)
        row["length_error"] = 100 * abs(len(said) - len(truth)) / len(truth)
        if "durations" in decided:
            pair = [counts[0].cpu() * recipe.hop_s * 1000 for counts in (one["durations"], decided["durations"])]
            row["duration_error"] = metrics.duration_error(*(counts.tolist() for counts in pair))
        row = {key: value if np.isfinite(value) else None for key, value in row.items()}
        return row | {"truth": take["text"], "score": row["mcd"]}

    def _sound(self, mel: Tensor, recipe) -> Tensor:
        if self._voice is None:
            self._voice = vocoders.make(self.vocoder, recipe, self.rounds)
        return self._voice(mel)

    def score(self, rows: list[dict[str, Any]]) -> dict[str, Metric]:
        """Means over utterances of what the rows have; mcd with its interval."""
        found = {}
        for name, (unit, better) in UNITS.items():
            values = [row[name] for row in rows if row.get(name) is not None]
            if values:
                found[name] = measures.mean(values, unit, better=better)
        if "mcd" in found:
            found["mcd"] = found["mcd"]._replace(ci95=measures.headline("mcd", rows))
        return found

    def baselines(self, data: Data) -> dict[str, list[dict[str, Any]]]:
        from domains.speech import baselines

        return baselines.spoken(data, lambda item: self._utterance(item, self._recipe).mel.numpy(), self._recipe.log)

    def zero_shot(self, backbone: Backbone, data: Data) -> list[dict[str, Any]] | None:
        """The base in the mean of its voices (in its own, for speakers whom it knows)."""
        takes, self.takes, rows = self.takes, {}, []
        for item in data.items("test"):
            batch = self.collate([item], backbone.tokenizer)
            rows += [row | {"group": str(item["group"])} for row in self.infer(backbone, batch, None)]
        self.before, self.takes = self.takes, takes
        return rows

    def retention(self, model: Backbone, data: Data) -> Metric | None:
        """Forced mel error on held-out sentences of the speakers whom the base knows."""
        items = known.sentences(model, data, self.forgetting)
        if not items:
            return None
        values = []
        for start in range(0, len(items), 8):
            batch = self.collate(items[start : start + 8], model.tokenizer)
            batch = {k: v.to(next(model.parameters()).device) if isinstance(v, Tensor) else v for k, v in batch.items()}
            values += terms(model(batch), batch)["mel"].tolist()
        return measures.mean(values, "nat", better=False)

    def pictures(self, rows: list[dict[str, Any]], directory) -> list[str]:
        """Mel pictures and players of the worst utterance and of evenly spaced ones, best last."""
        from domains.speech import pictures

        order = sorted((row for row in rows if row["id"] in self.takes), key=lambda row: -(row.get("mcd") or 0.0))
        count = min(self.sounds, len(order))
        chosen = [order[round(i * (len(order) - 1) / max(1, count - 1))] for i in range(count)]
        takes = []
        for row in chosen:
            before = self.before.get(row["id"], {})
            takes.append(
                {"id": row["id"], "mcd": row.get("mcd"), **self.takes[row["id"]]}
                | {f"before_{key}": before[key] for key in ("mel", "samples") if key in before}
            )
        return pictures.takes(takes, directory, self._recipe)


def single(batch: dict[str, Any], at: int) -> dict[str, Tensor]:
    """Tensors of one utterance, without padding: what is said must not depend on neighbours in the batch."""
    one = {key: value[at : at + 1] for key, value in batch.items() if isinstance(value, Tensor)}
    of_mask = {
        "phone_mask": ("phones", "durations", "pitch", "energy"),
        "attention_mask": ("input_ids",),
        "mel_mask": ("mel",),
    }
    for mask, names in of_mask.items():
        if mask in one:
            count = int(one[mask].sum())
            one |= {name: one[name][:, :count] for name in (mask, *names) if name in one}
    return one
