"""The network, its batches and the training itself: next-token prediction on the completion, in many styles.

Draws are a function of (seed, step), as core.pretraining asks for. Copying a spelled value is what takes longest to
learn, so it is the meter: accuracy on the syllables of spelled words, which no frequency can guess.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from core import pretraining
from domains.text.data.world import SYLLABLES, corpus
from domains.text.pretraining.initialiser import initialise

IGNORE = -100


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights.

    width, layers, heads   of the network; the inner width is three times the width
    spread                 standard deviation of the initial weights
    texts                  in the corpus        batch   texts per step, of similar length
    """

    name: str
    width: int = 96
    layers: int = 3
    heads: int = 4
    spread: float = 0.06
    texts: int = 20_000
    steps: int = 1600
    batch: int = 32
    lr: float = 3e-3
    warmup: int = 50
    decay: float = 0.3
    clip: float = 1.0
    seed: int = 0


def network(recipe: Recipe, vocabulary: int):
    """A `LlamaForCausalLM` with the initial weights of the recipe's seed."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=recipe.width,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        intermediate_size=3 * recipe.width,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        attention_bias=True,
        initializer_range=recipe.spread,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return initialise(LlamaForCausalLM(config), recipe.seed)


Encoded = list[tuple[list[int], int]]  # (ids with begin and end, tokens of the prompt with begin)


def encode(items: Any, tokenizer: Any) -> Encoded:
    encoded = []
    for item in items:
        asked, text = (tokenizer(item[key], add_special_tokens=False)["input_ids"] for key in ("prompt", "completion"))
        encoded.append(([1, *asked, *text, 2], 1 + len(asked)))
    return encoded


def arrange(rows: Encoded) -> tuple[Tensor, Tensor]:
    """(input_ids, labels) (batch, tokens) int64; padding on the right, labels -100 on the prompt and on padding."""
    width = max(len(ids) for ids, _ in rows)
    inputs = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full_like(inputs, IGNORE)
    for row, (ids, asked) in enumerate(rows):
        inputs[row, : len(ids)] = torch.tensor(ids)
        labels[row, asked : len(ids)] = torch.tensor(ids[asked:])
    return inputs, labels


def scored(net, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(logits, targets) of the supervised tokens. Causal attention and padding on the right need no mask."""
    kept = labels[:, 1:] != IGNORE
    hidden = net.model(inputs).last_hidden_state[:, :-1][kept]
    return net.lm_head(hidden), labels[:, 1:][kept]


class Batches:
    """Batch of a step, from (seed, step) alone. Neighbours in length make a batch, so there is little padding."""

    def __init__(self, texts: Encoded, recipe: Recipe):
        self.texts, self.recipe = sorted(texts, key=lambda row: len(row[0])), recipe

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        rng, size = np.random.default_rng((self.recipe.seed, step)), self.recipe.batch
        window = min(4 * size, len(self.texts))
        first = rng.integers(0, len(self.texts) - window + 1)
        return arrange([self.texts[first + i] for i in rng.permutation(window)[:size]])


@torch.no_grad()
def evaluate(net, held: Encoded, spelled: Tensor, frequencies: Tensor) -> dict[str, float]:
    """Held-out figures: loss in nat per token, accuracy on all tokens and on syllables, what frequencies give."""
    net.eval()
    pairs = [scored(net, *arrange(held[start : start + 50])) for start in range(0, len(held), 50)]
    net.train()
    logits, targets = (torch.cat(part) for part in zip(*pairs, strict=True))
    right, copied = logits.argmax(-1) == targets, torch.isin(targets, spelled)
    return {
        "loss": F.cross_entropy(logits, targets).item(),
        "loss, frequencies alone": -frequencies.log()[targets].mean().item(),
        "accuracy": right.float().mean().item(),
        "accuracy, syllables": right[copied].float().mean().item(),
        "tokens": len(targets),
    }


def frequencies(texts: Encoded, vocabulary: int) -> Tensor:
    counts = np.bincount(np.concatenate([ids[asked:] for ids, asked in texts]), minlength=vocabulary) + 1.0
    return torch.from_numpy(counts / counts.sum()).float()


def train(recipe: Recipe, state: Path, **options: Any) -> tuple[Any, Any, dict[str, Any]]:
    """(network, tokenizer, facts); `options` as of core.pretraining.train: budget, every, keep.

    facts   also corpus (numbers of texts and tokens)
    """
    from domains.text.pretraining import tokens

    tokenizer = tokens.fast()
    texts, held = encode(corpus(recipe.texts, 0), tokenizer), encode(corpus(200, 7), tokenizer)
    net, batches = network(recipe, len(tokenizer)), Batches(texts, recipe)
    spelled = torch.tensor(tokenizer.convert_tokens_to_ids(SYLLABLES))
    alone = frequencies(texts, len(tokenizer))
    facts = pretraining.train(
        recipe,
        net,
        lambda step: F.cross_entropy(*scored(net, *batches(step))),
        lambda: evaluate(net, held, spelled, alone),
        lambda f: f"loss {f['loss']:.3f}, right {f['accuracy']:.3f}, copied {f['accuracy, syllables']:.3f}",
        state,
        **options,
    )
    counted = {
        "texts": len(texts),
        "tokens": sum(len(ids) for ids, _ in texts),
        "tokens with loss": sum(len(ids) - asked for ids, asked in texts),
    }
    return net.eval(), tokenizer, facts | {"corpus": counted}
