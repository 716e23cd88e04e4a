"""How the embedded listener was made: it says of every frame which phone is spoken, whether it is voiced and how high,
and of every utterance who speaks. The heads for that are not shipped.

Corpus    flite's voices at three lengths of the vocal tract, and the twin's base speakers; phones are known
Noise     each utterance and step: a random tilt of its spectrum and random noise under it, in the mel domain, so that
          the microphone matters less
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from core import pretraining
from domains.speech import features
from domains.speech.backbones.listener import RECIPE, Listener, centred
from domains.speech.data.phones import INDEX, PHONES
from domains.speech.tasks.utterances import samples_of

SHAPE = {"width": 96, "inner": 192, "heads": 4, "layers": 3}
IGNORE = -100


@dataclass(frozen=True)
class Recipe:
    """batch  utterances of a step       crop   frames of 10 ms that a step sees of each at most"""

    name: str = "listener"
    steps: int = 1500
    batch: int = 16
    crop: int = 160
    lr: float = 2e-3
    warmup: int = 100
    decay: float = 0.4
    clip: float = 1.0
    seed: int = 0


@dataclass
class Heard:
    """Rows of (mel (F, 40) half, phone (F,) int64, octaves above 150 Hz (F,) with NaN where not voiced, speaker)."""

    speakers: tuple[str, ...]
    rows: list[tuple[Tensor, Tensor, Tensor, int]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def add(self, item: dict[str, Any]) -> None:
        samples = samples_of(item, RECIPE.sample_rate)
        mel = features.mel(samples, RECIPE)
        counts = features.durations(item["phones"], len(mel), RECIPE)
        phone = torch.repeat_interleave(torch.tensor([INDEX[s] for s, _ in item["phones"]]), counts)
        f0 = features.pitch(samples, RECIPE)
        height = torch.where(f0 > 0, (f0.clamp(min=1) / 150).log2(), torch.full_like(f0, float("nan")))
        self.rows.append((mel.half(), phone, height, self.speakers.index(item["speaker"])))

    def seconds(self) -> float:
        return sum(len(row[0]) for row in self.rows) * RECIPE.hop_s


def corpora(folder: Path, utterances: int = 40, held: int = 3) -> tuple[Heard, Heard]:
    """(training, held-out): so many utterances of each of twenty speakers."""
    from domains.speech.data.world import World
    from domains.speech.pretraining import corpus

    world = World(0)
    spoken = corpus.flite_items(folder, utterances, held, RECIPE.sample_rate)
    speakers = (*corpus.flite_speakers(), *(voice.name for voice in world.base()))
    made = Heard(speakers), Heard(speakers)
    for part, items in zip(made, spoken, strict=True):
        for item in items:
            part.add(item)
    for part, stream, count in zip(made, ("pretrain", "held"), (utterances, held), strict=True):
        for voice in world.base():
            for item in world.sample(stream, voice, count):
                part.add(item)
    made[0].facts = {"speakers": len(speakers), "utterances": len(made[0].rows)}
    return made


class Pretraining(nn.Module):
    """The listener and the three heads beside it."""

    def __init__(self, recipe: Recipe, speakers: int):
        super().__init__()
        self.listener = Listener(pretrained=False, seed=recipe.seed, **SHAPE)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            width = SHAPE["width"]
            self.phone, self.height = nn.Linear(width, len(PHONES)), nn.Linear(width, 2)
            self.speaker = nn.Linear(width, speakers)

    def parts(self, batch: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """name -> (answers, targets) of what is asked; frames of 20 ms."""
        out = self.listener(batch)
        phone, height = batch["phone"][:, ::2], batch["height"][:, ::2]
        there = out.mask
        said = self.height(out.hidden)
        voiced = ~height.isnan()
        pooled = (out.hidden * there[..., None]).sum(1) / there.sum(1, keepdim=True)
        return {
            "phone": (self.phone(out.hidden)[there], phone[there]),
            "voiced": (said[..., 0][there], voiced[there].float()),
            "height": (said[..., 1][there & voiced], height[there & voiced]),
            "speaker": (self.speaker(pooled), batch["speaker"]),
        }


def loss(scored: dict[str, tuple[Tensor, Tensor]]) -> Tensor:
    return (
        F.cross_entropy(*scored["phone"])
        + F.binary_cross_entropy_with_logits(*scored["voiced"])
        + F.l1_loss(*scored["height"])
        + 0.3 * F.cross_entropy(*scored["speaker"])
    )


def batch_of(heard: Heard, rows: Any, crop: int | None, rng: np.random.Generator | None) -> dict[str, Tensor]:
    """mel, mel_mask, phone, height (B, F), speaker (B,); cropped, tilted and noisy where `rng` is given."""
    mels, phones, heights = [], [], []
    for i in rows:
        mel, phone, height, _ = heard.rows[i]
        mel = mel.float()
        if rng is not None:
            start = int(rng.integers(0, max(0, len(mel) - crop) + 1))
            mel, phone, height = (part[start : start + crop] for part in (mel, phone, height))
            slope = float(rng.normal(0, 1.0)) * torch.linspace(-1, 1, mel.shape[1])
            noise = (
                float(mel.mean()) + float(rng.uniform(-6, -1)) + torch.from_numpy(rng.normal(0, 0.4, mel.shape)).float()
            )
            mel = torch.logaddexp(mel, noise) + slope
        mels.append(centred(mel))
        phones.append(phone)
        heights.append(height)
    lengths = torch.tensor([len(mel) for mel in mels])
    mel = pad_sequence(mels, batch_first=True)
    return {
        "mel": mel,
        "mel_mask": torch.arange(mel.shape[1]) < lengths[:, None],
        "phone": pad_sequence(phones, batch_first=True, padding_value=IGNORE),
        "height": pad_sequence(heights, batch_first=True, padding_value=float("nan")),
        "speaker": torch.tensor([heard.rows[i][3] for i in rows]),
    }


@torch.no_grad()
def evaluate(model: Pretraining, held: Heard) -> dict[str, float]:
    """Held-out, without noise: phone accuracy, loss (nat) and the most frequent phone's share; voicing and speaker
    accuracy; octaves off."""
    model.eval()
    order = sorted(range(len(held.rows)), key=lambda i: len(held.rows[i][0]))
    parts: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for start in range(0, len(order), 16):
        for name, pair in model.parts(batch_of(held, order[start : start + 16], None, None)).items():
            parts.setdefault(name, []).append(pair)
    model.train()
    answers = {name: tuple(torch.cat(side) for side in zip(*pairs, strict=True)) for name, pairs in parts.items()}
    phone, target = answers["phone"]
    return {
        "phone accuracy": (phone.argmax(1) == target).float().mean().item(),
        "phone loss": F.cross_entropy(phone, target).item(),
        "phone, most frequent": (target == target.mode().values).float().mean().item(),
        "voiced accuracy": ((answers["voiced"][0] > 0) == (answers["voiced"][1] > 0.5)).float().mean().item(),
        "octaves off": (answers["height"][0] - answers["height"][1]).abs().mean().item(),
        "speaker accuracy": (answers["speaker"][0].argmax(1) == answers["speaker"][1]).float().mean().item(),
    }


def train(
    recipe: Recipe, heard: Heard, held: Heard, state: Path, *, budget: float | None = None
) -> tuple[Pretraining, dict[str, Any]]:
    """(model, facts). Draws are a function of (seed, step) alone."""
    model = Pretraining(recipe, len(heard.speakers)).train()

    def step_loss(step: int) -> Tensor:
        rng = np.random.default_rng((recipe.seed, step))
        rows = rng.integers(len(heard.rows), size=recipe.batch)
        return loss(model.parts(batch_of(heard, rows, recipe.crop, rng)))

    facts = pretraining.train(
        recipe,
        model,
        step_loss,
        lambda: evaluate(model, held),
        lambda figures: "  ".join(f"{name} {value:.3f}" for name, value in figures.items()),
        state,
        budget=budget,
    )
    return model.eval(), facts


def shipped(model: Pretraining, heard: Heard, held: Heard) -> tuple[nn.Module, dict[str, Any], dict[str, float]]:
    """(network without the heads, its configuration, no further figures)."""
    return model.listener.net, {"shape": SHAPE, "recipe": asdict(RECIPE)}, {}
