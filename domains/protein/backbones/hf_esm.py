"""ESM through transformers: embedded weights of this package, a local folder, or a hub repository.
Tokens      (batch, tokens) int64, <cls> 0 and <eos> 2 included, pad 1.     Hidden  (batch, tokens, channels)
Sublayers   `attn` and `mlp` are the projections before the residual sum: transformers adds inside `output`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from core import weights
from core.contracts import Backbone, Output, TokenPort
from core.errors import ConfigError, DataError
from domains.protein.backbones import tokens

EMBEDDED = Path(__file__).resolve().parent.parent / "weights"
LAYER = "esm.encoder.layer.*"
DROPOUT_OFF = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


class HFEsm(Backbone):
    """source: embedded name (`esm2_mini`, `esm2_small`), folder or hub repository; without one, random weights.

    pretrained   False keeps the shape of `source` and starts anew: embedded names by the initialiser that their own
                 pretraining started from, others by the library's"""

    roles = {
        "embed": "esm.embeddings.word_embeddings",
        "block": "esm.encoder.layer.*",
        "attn": "esm.encoder.layer.*.attention.output.dense",
        "attn.q": "esm.encoder.layer.*.attention.self.query",
        "attn.k": "esm.encoder.layer.*.attention.self.key",
        "attn.v": "esm.encoder.layer.*.attention.self.value",
        "attn.out": "esm.encoder.layer.*.attention.output.dense",
        "mlp": "esm.encoder.layer.*.output.dense",
        "mlp.in": "esm.encoder.layer.*.intermediate.dense",
        "mlp.out": "esm.encoder.layer.*.output.dense",
        "norm": ["esm.encoder.layer.*.attention.LayerNorm", "esm.encoder.layer.*.LayerNorm"],
        "norm.final": "esm.encoder.emb_layer_norm_after",
        "head": "lm_head.dense",
    }

    def __init__(
        self,
        source: str | None = None,
        layers: int = 2,
        width: int = 32,
        heads: int = 4,
        positions: Literal["rotary", "absolute"] = "rotary",
        token_dropout: bool = True,
        pretrained: bool = True,
        seed: int = 0,
    ):
        super().__init__()
        from transformers import EsmConfig

        if source is None and pretrained:
            allowed = [*weights.shipped(EMBEDDED), "a folder", "owner/name of a hub repository"]
            fix = "set pretrained=false for random weights of a given shape"
            raise ConfigError("backbone.source", "null", allowed, fix)
        own = weights.embedded(EMBEDDED, source) if source else None
        if source is None:
            config = EsmConfig(**_shape(layers, width, heads, positions, token_dropout))
        else:
            file = own[1] if own else weights.folder(source) / "config.json"
            config = EsmConfig(**{**weights.configuration(file), **DROPOUT_OFF})
            unset = [key for key in ("vocab_size", "pad_token_id", "mask_token_id") if getattr(config, key) is None]
            if unset:
                raise DataError(str(file), f"no {', '.join(unset)}", "the config.json of an ESM model")
        self.net = _build(config, seed, local_heads=bool(own) and not pretrained)
        absent: set[str] = set()
        if source is not None and pretrained:
            tensors = weights.state(own[0] if own else file.parent)
            optional = ("esm.contact_head.", "lm_head.", "esm.embeddings.position_ids", "esm.rotary_embeddings.")
            absent = weights.fill(self.net, tensors, prefix="esm", optional=optional, where=source)
        self.contacts_trained = pretrained and source is not None and "esm.contact_head.regression.weight" not in absent
        self.speaks = not any(name.startswith("lm_head.") for name in absent)
        self._declare(config)

    def _declare(self, config) -> None:
        absolute = config.position_embedding_type == "absolute"
        self.width, self.heads = config.hidden_size, config.num_attention_heads
        limit = config.max_position_embeddings - config.pad_token_id - 3 if absolute else None
        self.tokenizer = tokens.esm(limit)
        roles = dict(self.roles)
        if absolute:
            roles["pos"] = "esm.embeddings.position_embeddings"
        if config.emb_layer_norm_before:
            roles["norm.embed"] = "esm.embeddings.layer_norm"
        if not self.speaks:  # a bare EsmModel: its language-model head would be random
            del roles["head"]
        self.roles = roles
        self.token_port = TokenPort(
            blocks=LAYER,
            axis=1,
            bmask="attention_mask",
            bkind="add4d",
            rope=None if absolute else "position_embeddings",
            wrap="esm",
            tokens_out=("hidden_states",),
            dim=self.width,
            attn=f"{LAYER}.attention.self",
            heads="num_attention_heads",
            head_dim="attention_head_size",
            outer=("esm", None),
        )

    def example(self):
        return (self.tokenizer(["MKVLAG", "MKW"]),), {}

    def forward(self, batch) -> Output:
        hidden = self.net.esm(input_ids=batch["tokens"], attention_mask=batch["mask"]).last_hidden_state
        return Output(hidden, batch["residues"], self.net.lm_head(hidden) if self.speaks else None)

    def contacts(self, batch) -> Tensor:
        """(batch, residues, residues) contact probability; ConfigError without trained regression weights."""
        if not self.contacts_trained:
            allowed = "an ESM-2 or ESM-1b repository of facebook/"
            raise ConfigError("backbone.source", "no contact regression with these weights", allowed)
        before = self.net.config._attn_implementation
        self.net.set_attn_implementation("eager")  # the only one that returns attention maps
        try:
            return self.net.predict_contacts(batch["tokens"], batch["mask"])
        finally:
            self.net.set_attn_implementation(before)


def _shape(layers: int, width: int, heads: int, positions: str, token_dropout: bool) -> dict:
    return {
        "vocab_size": 33,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "position_embedding_type": positions,
        "max_position_embeddings": 1026,
        "layer_norm_eps": 1e-5,
        "token_dropout": token_dropout,
        "emb_layer_norm_before": False,
        "pad_token_id": 1,
        "mask_token_id": 32,
        **DROPOUT_OFF,
    }


def _build(config, seed: int, *, local_heads: bool):
    """A network from its initialiser under its own seed; the caller's random numbers stay as they were."""
    from transformers import EsmForMaskedLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = EsmForMaskedLM(config)
    if local_heads:
        from domains.protein.pretraining.initialiser import initialise

        initialise(net, seed)
    return net.eval()
