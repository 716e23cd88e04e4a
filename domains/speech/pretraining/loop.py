"""A step of pretraining: utterances of every speaker, spoken with their true durations, pitch and energy.

Draws are a function of (seed, step) and of nothing else; core.pretraining keeps weights, optimiser and step number.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from core import pretraining
from domains.speech.backbones.fastspeech import FastSpeech
from domains.speech.data.phones import PHONES
from domains.speech.pretraining.corpus import Corpus, indices
from domains.speech.tasks.losses import terms, weighted

SHAPE = {"width": 128, "inner": 192, "heads": 4, "encoder": 2, "decoder": 2, "predictor": 64}


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, given a corpus.

    batch    utterances of a step
    decay    share of the steps over which the rate falls to 2 %
    """

    name: str
    steps: int = 1500
    batch: int = 16
    lr: float = 1e-3
    warmup: int = 100
    decay: float = 0.4
    clip: float = 1.0
    seed: int = 0


def network(recipe: Recipe, corpus: Corpus) -> FastSpeech:
    return FastSpeech(
        speakers=list(corpus.speakers), recipe=asdict(corpus.recipe), pretrained=False, seed=recipe.seed, **SHAPE
    )


class Batches:
    """Batch of a step, from (seed, step) alone. Neighbours in length make a batch, so there is little padding."""

    def __init__(self, corpus: Corpus, reader: Any, recipe: Recipe):
        self.corpus, self.reader, self.recipe = corpus, reader, recipe
        self.order = np.array(sorted(range(len(corpus.spoken)), key=lambda i: len(corpus.spoken[i].mel)))

    def __call__(self, step: int) -> dict[str, Tensor]:
        n, size = len(self.order), self.recipe.batch
        rng = np.random.default_rng((self.recipe.seed, step))
        window = min(6 * size, n)
        first = int(np.clip(rng.integers(-window // 2, n - window // 2), 0, n - window))
        return self.corpus.batch(self.reader, self.order[first + rng.permutation(window)[:size]])


@torch.no_grad()
def evaluate(model: FastSpeech, held: Corpus, size: int = 16) -> dict[str, float]:
    """Held-out means of every term, spoken with true durations, pitch and energy."""
    model.eval()
    order = sorted(range(len(held.spoken)), key=lambda i: len(held.spoken[i].mel))
    parts: dict[str, list[Tensor]] = {}
    for start in range(0, len(order), size):
        batch = held.batch(model.tokenizer, order[start : start + size])
        for name, value in terms(model(batch), batch).items():
            parts.setdefault(name, []).append(value)
    model.train()
    return {name: torch.cat(values).mean().item() for name, values in parts.items()}


def mean_frame(train: Corpus, held: Corpus) -> float:
    """Mel L1 of saying the mean frame of each phone of the training data: what needs no network."""
    total = torch.zeros(len(PHONES), train.recipe.n_mels)
    count = torch.zeros(len(PHONES))
    for symbols, one in zip(train.phones, train.spoken, strict=True):
        owner = torch.repeat_interleave(indices(symbols), one.durations)
        total.index_add_(0, owner, one.mel.float())
        count.index_add_(0, owner, torch.ones(len(owner)))
    table = total / count.clamp(min=1)[:, None]
    errors = [
        (table[torch.repeat_interleave(indices(symbols), one.durations)] - one.mel.float()).abs().mean()
        for symbols, one in zip(held.phones, held.spoken, strict=True)
    ]
    return torch.stack(errors).mean().item()


def train(
    recipe: Recipe, corpus: Corpus, held: Corpus, state: Path, *, budget: float | None = None, every: int = 100
) -> tuple[FastSpeech, dict[str, Any]]:
    """(model, facts). Continues `state` if it is there; stops after `budget` seconds with the state saved."""
    model = network(recipe, corpus).train()
    batches = Batches(corpus, model.tokenizer, recipe)

    def loss(step: int) -> Tensor:
        batch = batches(step)
        return weighted(terms(model(batch), batch)).mean()

    facts = pretraining.train(
        recipe,
        model,
        loss,
        lambda: evaluate(model, held),
        lambda figures: "  ".join(f"{name} {value:.3f}" for name, value in figures.items()),
        state,
        budget=budget,
        every=every,
    )
    return model.eval(), facts


def shipped(model: FastSpeech, corpus: Corpus, held: Corpus) -> tuple[nn.Module, dict[str, Any], dict[str, float]]:
    """(network, its configuration, figures of what needs no network)."""
    settings = {"shape": SHAPE, "speakers": list(corpus.speakers), "recipe": asdict(corpus.recipe)}
    return model.net, settings, {"mel, each phone's mean frame": mean_frame(corpus, held)}
