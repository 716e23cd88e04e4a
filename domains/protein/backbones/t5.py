"""ProtT5, ProstT5 and Ankh: the encoder of a T5.
Papers      Elnaggar et al. 2022, TPAMI 44; Heinzinger et al. 2024, NAR Genom. Bioinform. 6; Elnaggar et al. 2023
Tokens      one per residue (as in the space-separated text that they were trained on), </s> behind, pad 0; no <cls>.
            U, Z, O, B are read as X. ProstT5 wants <AA2fold> in front.     Hidden  (batch, tokens, channels)
Precision   fp32 or bf16; in fp16 the T5 family overflows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from core import weights
from core.contracts import Backbone, Output, TokenPort
from core.errors import ConfigError, DataError
from domains.protein.backbones import tokens
from domains.protein.backbones.tokens import ResidueTokenizer


class ProteinT5(Backbone):
    """source: folder or hub repository; without one, random weights of the shape given (gated: two input projections).

    prefix   token in front of the residues, by name"""

    roles = {
        "embed": "encoder.embed_tokens",
        "pos.bias": "encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
        "block": "encoder.block.*",
        "attn": "encoder.block.*.layer.0.SelfAttention",
        "attn.q": "encoder.block.*.layer.0.SelfAttention.q",
        "attn.k": "encoder.block.*.layer.0.SelfAttention.k",
        "attn.v": "encoder.block.*.layer.0.SelfAttention.v",
        "attn.out": "encoder.block.*.layer.0.SelfAttention.o",
        "mlp": "encoder.block.*.layer.1.DenseReluDense",
        "mlp.gate": "encoder.block.*.layer.1.DenseReluDense.wi_0",
        "mlp.in": "encoder.block.*.layer.1.DenseReluDense.wi",
        "mlp.out": "encoder.block.*.layer.1.DenseReluDense.wo",
        "norm": ["encoder.block.*.layer.0.layer_norm", "encoder.block.*.layer.1.layer_norm"],
        "norm.final": "encoder.final_layer_norm",
    }

    def __init__(
        self,
        source: str | None = None,
        prefix: str | None = None,
        layers: int = 2,
        width: int = 32,
        heads: int = 4,
        gated: bool = False,
        dtype: Literal["float32", "bfloat16"] = "float32",
        pretrained: bool = True,
        seed: int = 0,
    ):
        super().__init__()
        from transformers import T5Config

        if source is None:
            if pretrained:
                fix = "set pretrained=false for random weights of a given shape"
                raise ConfigError("backbone.source", "null", "a folder or owner/name of a hub repository", fix)
            config = T5Config(**_shape(layers, width, heads, gated))
            self.tokenizer = tokens.prot_t5(before=(tokens.prot_t5().ids["X"] + 1,) if prefix else ())
        else:
            path = weights.folder(source)
            config = T5Config(**{**weights.configuration(path / "config.json"), "dropout_rate": 0.0})
            self.tokenizer = _tokenizer(path, prefix)
        self.net = _build(config, seed)
        if source is not None and pretrained:
            weights.fill(self.net, weights.state(path), prefix="", optional=(), where=source)
        self.net = self.net.to(getattr(torch, dtype)).eval()
        self.width, self.heads = config.d_model, config.num_heads
        self.roles = _roles(self.roles, config.is_gated_act)
        self.token_port = TokenPort(
            model="encoder",
            embed="embed_tokens",
            dim=config.d_model,
            attn="encoder.block.*.layer.0.SelfAttention",
            heads="n_heads",
            head_dim="key_value_proj_dim",
        )

    def example(self):
        return (self.tokenizer(["MKVLAG", "MKW"]),), {}

    def forward(self, batch) -> Output:
        hidden = self.net(input_ids=batch["tokens"], attention_mask=batch["mask"]).last_hidden_state
        return Output(hidden, batch["residues"])


def _roles(roles: dict, gated: bool) -> dict:
    """A gated block has `wi_0` (gate) and `wi_1`; a plain one has `wi`."""
    if gated:
        return roles | {"mlp.in": roles["mlp.in"] + "_1"}
    return {role: pattern for role, pattern in roles.items() if role != "mlp.gate"}


def _shape(layers: int, width: int, heads: int, gated: bool) -> dict:
    return {
        "vocab_size": 32,
        "d_model": width,
        "d_kv": width // heads,
        "d_ff": 4 * width,
        "num_layers": layers,
        "num_heads": heads,
        "dropout_rate": 0.0,
        "feed_forward_proj": "gated-gelu" if gated else "relu",
    }


def _build(config, seed: int):
    """A network from the library's initialiser under its own seed; the caller's random numbers stay as they were."""
    from transformers import T5EncoderModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return T5EncoderModel(config)


def _tokenizer(path: Path, prefix: str | None) -> ResidueTokenizer:
    """Residue ids from the folder's own vocabulary, whose pieces are `_A` (sentencepiece) or `A`."""
    vocabulary = _vocabulary(path)
    ids = {a: vocabulary.get(f"▁{a}", vocabulary.get(a)) for a in tokens.ESM_ORDER if a.isalpha()}
    ids = {letter: i for letter, i in ids.items() if i is not None}
    absent = [name for name in (*tokens.STANDARD, "X") if name not in ids]
    absent += [name for name in filter(None, (prefix, "</s>", "<pad>")) if name not in vocabulary]
    if absent:
        raise DataError(str(path), f"no token for {', '.join(absent)}", "a vocabulary of single residues")
    before = (vocabulary[prefix],) if prefix else ()
    return tokens.merged(ids, before, (vocabulary["</s>"],), pad=vocabulary["<pad>"], unknown="X")


def _vocabulary(path: Path) -> dict[str, int]:
    """Piece -> id of tokenizer.json, or of spiece.model with added_tokens.json."""
    if (path / "tokenizer.json").is_file():
        content = weights.configuration(path / "tokenizer.json")
        pieces = content["model"]["vocab"]
        found = dict(pieces) if isinstance(pieces, dict) else {piece: i for i, (piece, _) in enumerate(pieces)}
        return found | {token["content"]: token["id"] for token in content.get("added_tokens", [])}
    if not (path / "spiece.model").is_file():
        raise DataError(str(path), "no vocabulary", "tokenizer.json or spiece.model")
    from sentencepiece import SentencePieceProcessor

    try:
        model = SentencePieceProcessor(model_file=str(path / "spiece.model"))
    except RuntimeError as error:
        raise DataError(str(path / "spiece.model"), str(error)[:120], "a sentencepiece model") from None
    found = {model.id_to_piece(i): i for i in range(model.get_piece_size())}
    added = path / "added_tokens.json"
    return found | (weights.configuration(added) if added.is_file() else {})
