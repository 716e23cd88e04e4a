"""What causal and sequence-to-sequence backbones share: roles, heads and token port of the family's profile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from core import profiles
from core.contracts import Backbone
from core.errors import ConfigError
from domains.text.backbones import source as sources

PROFILES = Path(__file__).resolve().parent / "profiles"


class LanguageModel(Backbone):
    """A network of transformers, its tokenizer, and where its roles are."""

    def load(self, kind: Any, source: str, *, dtype: str, checkpointing: bool, pretrained: bool, seed: int) -> None:
        """Sets net, tokenizer, roles, heads, width, token_port.

        ConfigError   no profile fits the network; the tokenizer has more tokens than the network has rows"""
        found = sources.find(source)
        config = sources.config(found)
        self.net = sources.network(kind, found, config, dtype=dtype, pretrained=pretrained, seed=seed)
        self.tokenizer = sources.tokenizer(found, config, _stops(self.net))
        rows = self.net.get_input_embeddings().weight.shape[0]
        if self.tokenizer.size > rows:
            got = f"{self.tokenizer.size} tokens for {rows} rows of the embedding"
            raise ConfigError("backbone.source", got, "a tokenizer that belongs to the weights")
        family = profiles.find(self.net, PROFILES)
        self.roles, self.heads, self.token_port = family.roles, family.heads, family.port
        self.family, self.width = family.name, config.hidden_size
        _deterministic(self.net, self.tokenizer)
        if checkpointing:
            later = getattr(self.net, "activation_checkpointing_enable", None)  # the name since transformers 5.24
            (later or self.net.gradient_checkpointing_enable)({"use_reentrant": False})


def _stops(net: Any) -> tuple[int, ...]:
    """Ids that the weights' own generation settings end a text with."""
    ids = net.generation_config.eos_token_id if net.generation_config is not None else None
    return () if ids is None else tuple(ids) if isinstance(ids, (list, tuple)) else (ids,)


def _deterministic(net: Any, tokenizer: Any) -> None:
    """Generation settings without sampling and penalties that a folder may bring: greedy means greedy."""
    from transformers import GenerationConfig

    start = getattr(net.config, "decoder_start_token_id", None)
    net.generation_config = GenerationConfig(
        pad_token_id=tokenizer.pad,
        eos_token_id=list(tokenizer.stops),
        bos_token_id=net.config.bos_token_id,
        decoder_start_token_id=start,
    )
