"""Multi-organ segmentation with random contrast: the organs stay, their brightness, bias field, noise and blur do not.

A network that learns this knows shapes and places, not grey values: what carries over to another scanner.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from core import pretraining
from domains.vision_medical.data.world import World
from domains.vision_medical.pretraining.network import CLASSES, build, dice, dice_and_entropy

HELD = 96  # patients that the held-out figures are measured on


@dataclass(frozen=True)
class Recipe:
    """batch   slices, each of another patient       ill   share of patients with lesions and cysts, which are not asked
    warmup  steps until the full rate              decay   share of the steps over which the rate falls
    """

    name: str
    steps: int
    lr: float = 3e-3
    batch: int = 12
    warmup: int = 50
    decay: float = 0.5
    clip: float = 1.0
    ill: float = 0.5
    world: int = 0
    seed: int = 0


def sample(world: World, *words: str | int, share: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """(image (64, 64) float32, organ (64, 64) int64) of one slice of the patient of that name, in a random contrast."""
    rng = world.rng("scan", *words)
    ill = bool(rng.random() < share)
    patient = world.patient(*words, lesions=ill, cysts=ill)
    tissue, organ = world.tissues(patient, rng.uniform(-0.2, 0.2))
    return world.image(tissue, world.random_scanner(rng), rng), organ.astype(np.int64)


def batch(world: World, names: list[tuple], ill: float) -> tuple[Tensor, Tensor]:
    """(image (batch, 1, 64, 64) float32, mask (batch, 64, 64) int64) of the patients of those names."""
    made = [sample(world, *name, share=ill) for name in names]
    images, masks = (np.stack(part) for part in zip(*made, strict=True))
    return torch.from_numpy(images[:, None]), torch.from_numpy(masks)


def held_out(recipe: Recipe) -> tuple[Tensor, Tensor]:
    return batch(World(recipe.world), [("held", i) for i in range(HELD)], recipe.ill)


def train(recipe: Recipe, state: Path, *, budget: float | None = None, every: int = 100) -> tuple[nn.Module, dict]:
    """(network, facts): facts as of core.pretraining.train, with the held-out figures by step."""
    world, net = World(recipe.world), build(recipe.seed)
    images, masks = held_out(recipe)

    def loss(step: int) -> Tensor:
        names = [("pretrain", recipe.seed, step, i) for i in range(recipe.batch)]
        seen, asked = batch(world, names, recipe.ill)
        return dice_and_entropy(net(seen), asked)

    facts = pretraining.train(
        recipe,
        net,
        loss,
        lambda: evaluate(net, images, masks),
        lambda figures: f"Dice {figures['Dice']:.3f}",
        state,
        budget=budget,
        every=every,
    )
    return net.eval(), facts


@torch.no_grad()
def evaluate(net: nn.Module, images: Tensor, masks: Tensor) -> dict[str, float]:
    """Held-out figures: mean Dice over organs that occur, of each organ, and pixel accuracy."""
    net.eval()
    found = torch.cat([net(part).argmax(1) for part in images.split(32)])
    net.train()
    scores = dice(found, masks, len(CLASSES)).nanmean(0)
    out: dict[str, Any] = {"Dice": scores.mean().item()}
    out |= {f"Dice {name}": value for name, value in zip(CLASSES[1:], scores.tolist(), strict=True)}
    return out | {"pixel accuracy": (found == masks).float().mean().item()}


def place_alone(recipe: Recipe, patients: int = 400) -> dict[str, float]:
    """The figures of a guess that sees no image: the commonest class at each pixel over `patients` patients."""
    world = World(recipe.world)
    masks = batch(world, [("place", i) for i in range(patients)], recipe.ill)[1]
    counts = torch.stack([(masks == k).sum(0) for k in range(len(CLASSES))])
    guess = counts.argmax(0)
    truth = held_out(recipe)[1]
    scores = dice(guess.expand_as(truth), truth, len(CLASSES)).nanmean(0)
    return {"Dice": scores.mean().item(), "pixel accuracy": (guess == truth).float().mean().item()}
