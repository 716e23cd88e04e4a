"""The training itself: masked prediction with pure `<mask>`, conservation classes, or both in one forward pass.

Draws are a function of (seed, step), as core.pretraining asks for.

Masking     every chosen residue becomes `<mask>`. BERT's 80/10/10 leaves 10 % of the answers in sight, and a model
            that has learned nothing then shows .17 accuracy instead of the unigram's .09.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from core import pretraining
from domains.protein.pretraining.corpus import BOS, CLASSES, EOS, FIRST, MASK, PAD, VOCABULARY, Corpus
from domains.protein.pretraining.initialiser import initialise


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, given a corpus.

    width, layers, heads   of the network; the inner width is four times the width
    crop                   residues per protein and step; longer proteins are cut at a random place
    masked                 share of residues that become `<mask>`; 0 trains no masked prediction
    masked_weight          of the masked loss
    masked_from            step from which residues are masked; before it conservation is learned alone
    conservation           weight of the conservation loss; 0 for none
    decay                  share of the steps over which the rate falls to 2 %
    """

    name: str
    width: int = 128
    layers: int = 4
    heads: int = 8
    steps: int = 1500
    batch: int = 32
    crop: int = 128
    lr: float = 2e-3
    warmup: int = 100
    decay: float = 0.3
    masked: float = 0.2
    masked_weight: float = 1.0
    masked_from: int = 0
    conservation: float = 0.0
    clip: float = 1.0
    seed: int = 0


def config(recipe: Recipe):
    from transformers import EsmConfig

    return EsmConfig(
        vocab_size=VOCABULARY,
        hidden_size=recipe.width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        intermediate_size=4 * recipe.width,
        position_embedding_type="rotary",
        # Off: it would zero `<mask>` and rescale all embeddings by how many masks a sequence has.
        token_dropout=False,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=PAD,
        mask_token_id=MASK,
        max_position_embeddings=1026,
    )


class Pretraining(nn.Module):
    """The language model and the conservation head beside it (which is not shipped)."""

    def __init__(self, recipe: Recipe):
        from transformers import EsmForMaskedLM

        super().__init__()
        self.recipe = recipe
        self.net = initialise(EsmForMaskedLM(config(recipe)), recipe.seed)
        self.net.esm.contact_head.requires_grad_(False)  # no loss reaches it
        self.asked = [name for name in ("masked", "conservation") if getattr(recipe, name)]
        self.conservation = nn.Linear(recipe.width, CLASSES) if recipe.conservation else None
        if self.conservation is not None:
            nn.init.zeros_(self.conservation.weight)
            nn.init.zeros_(self.conservation.bias)

    def trained(self) -> list[nn.Parameter]:
        return [p for p in self.parameters() if p.requires_grad]

    def parts(self, tokens: Tensor, classes: Tensor, chosen: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """name -> (logits, targets) of the items scored.

        tokens    (batch, tokens) int64      classes  (batch, tokens) int64, -1 unknown
        chosen    (batch, tokens) bool, replaced by `<mask>` and asked for
        """
        real = tokens != PAD
        mask = None if bool(real.all()) else real.long()
        hidden = self.net.esm(tokens.masked_fill(chosen, MASK), attention_mask=mask).last_hidden_state
        scored = {}
        if chosen.any():
            scored["masked"] = (self.net.lm_head(hidden[chosen])[:, FIRST : FIRST + 20], tokens[chosen] - FIRST)
        if self.conservation is not None and bool((classes >= 0).any()):
            known = classes >= 0
            scored["conservation"] = (self.conservation(F.layer_norm(hidden, hidden.shape[-1:])[known]), classes[known])
        return scored


@contextlib.contextmanager
def one_gelu() -> Iterator[None]:
    """The library spells GELU out in four elementwise passes, a third of a small model's step; torch has it in one."""
    from transformers.models.esm import modeling_esm

    spelled, modeling_esm.gelu = modeling_esm.gelu, F.gelu
    try:
        yield
    finally:
        modeling_esm.gelu = spelled


def arrange(corpus: Corpus, rows, crop: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """(tokens, classes) (batch, tokens) int64: BOS, up to `crop` residues from a random place, EOS, padding."""
    starts = [int(rng.integers(0, max(0, len(corpus.tokens[i]) - crop) + 1)) for i in rows]
    width = 2 + max(min(crop, len(corpus.tokens[i])) for i in rows)
    tokens = np.full((len(rows), width), PAD, np.int64)
    classes = np.full((len(rows), width), -1, np.int64)
    for r, (i, start) in enumerate(zip(rows, starts, strict=True)):
        part = corpus.tokens[i][start : start + crop]
        tokens[r, 0], tokens[r, 1 : len(part) + 1], tokens[r, len(part) + 1] = BOS, part, EOS
        if corpus.classes[i] is not None:
            classes[r, 1 : len(part) + 1] = corpus.classes[i][start : start + crop]
    return torch.from_numpy(tokens), torch.from_numpy(classes)


def choose(tokens: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """(batch, tokens) bool: each of the 20 residues with probability `share`, never a special token or X."""
    drawn = torch.from_numpy(rng.random(tuple(tokens.shape)) < share)
    return drawn & (tokens >= FIRST) & (tokens < FIRST + 20)


class Batches:
    """Batch of a step, from (seed, step) alone. Neighbours in length make a batch, so there is little padding."""

    def __init__(self, corpus: Corpus, recipe: Recipe):
        self.corpus, self.recipe = corpus, recipe
        order = sorted(range(len(corpus.tokens)), key=lambda i: min(len(corpus.tokens[i]), recipe.crop))
        self.all = np.array(order)
        self.labelled = np.array([i for i in order if corpus.classes[i] is not None])

    def __call__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        recipe = self.recipe
        masked = recipe.masked if step >= recipe.masked_from else 0.0
        order = self.all if masked else self.labelled
        n = len(order)
        rng = np.random.default_rng((recipe.seed, step))
        window = min(6 * recipe.batch, n)
        first = int(np.clip(rng.integers(-window // 2, n - window // 2), 0, n - window))
        rows = order[first + rng.permutation(window)[: recipe.batch]]
        tokens, classes = arrange(self.corpus, rows, recipe.crop, rng)
        return tokens, classes, choose(tokens, masked, rng)


@torch.no_grad()
def evaluate(model: Pretraining, held: Corpus, train: Corpus, share: float = 0.15) -> dict[str, float]:
    """Held-out figures of each task: loss (nats), perplexity, accuracy, and what frequencies alone give."""
    rng, rows = np.random.default_rng(1), np.argsort([len(t) for t in held.tokens], kind="stable")
    logits: dict[str, list[Tensor]] = {}
    targets: dict[str, list[Tensor]] = {}
    model.eval()
    for start in range(0, len(rows), 32):
        tokens, classes = arrange(held, rows[start : start + 32], model.recipe.crop, rng)
        chosen = choose(tokens, share, rng)
        # Classes are asked of the whole sequence, without masks.
        for asked in model.asked:
            scored = model.parts(tokens, classes, chosen if asked == "masked" else torch.zeros_like(chosen))
            if asked in scored:
                logits.setdefault(asked, []).append(scored[asked][0])
                targets.setdefault(asked, []).append(scored[asked][1])
    model.train()
    figures: dict[str, float] = {}
    for name in logits:
        scores, target = torch.cat(logits[name]), torch.cat(targets[name])
        loss = F.cross_entropy(scores, target).item()
        trivial = _frequencies(train, name)
        figures |= {
            f"{name} loss": loss,
            f"{name} perplexity": math.exp(loss),
            f"{name} accuracy": (scores.argmax(-1) == target).float().mean().item(),
            f"{name} loss, frequencies alone": -trivial.log()[target].mean().item(),
            f"{name} accuracy, most frequent": (target == trivial.argmax()).float().mean().item(),
            f"{name} items": len(target),
        }
    return figures


def _frequencies(corpus: Corpus, name: str) -> Tensor:
    if name == "masked":
        values = np.concatenate(corpus.tokens).astype(np.int64) - FIRST
        values = values[(values >= 0) & (values < 20)]
        return torch.from_numpy(np.bincount(values, minlength=20) / len(values)).float()
    values = np.concatenate([c for c in corpus.classes if c is not None]).astype(np.int64)
    values = values[values >= 0]
    return torch.from_numpy(np.bincount(values, minlength=CLASSES) / len(values)).float()


@one_gelu()
def train(
    recipe: Recipe, corpus: Corpus, held: Corpus, state: Path, **options: Any
) -> tuple[Pretraining, dict[str, Any]]:
    """(model, facts); `options` as of core.pretraining.train: budget, every, keep."""
    model, batches = Pretraining(recipe), Batches(corpus, recipe)

    def loss(step: int) -> Tensor:
        losses = {name: F.cross_entropy(*pair) for name, pair in model.parts(*batches(step)).items()}
        return recipe.masked_weight * losses.get("masked", 0.0) + recipe.conservation * losses.get("conservation", 0.0)

    def show(figures: dict[str, float]) -> str:
        shown = "  ".join(f"{n} {figures[f'{n} loss']:.4f} / {figures[f'{n} accuracy']:.4f}" for n in model.asked)
        return f"loss / accuracy  {shown}"

    facts = pretraining.train(recipe, model, loss, lambda: evaluate(model, held, corpus), show, state, **options)
    return model.eval(), facts
