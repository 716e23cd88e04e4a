"""The same ESM weights in both libraries: fair-esm names <-> transformers names. Covers ESM-2, ESM-1b and ESM-1v.

Both are plain renamings; each library's derived tensors (rotary frequencies, tied decoder) are left to it.
"""

from __future__ import annotations

import re

from torch import Tensor

# fair-esm -> transformers, in order; every pair is reversible.
BLOCK = [
    ("self_attn.q_proj", "attention.self.query"),
    ("self_attn.k_proj", "attention.self.key"),
    ("self_attn.v_proj", "attention.self.value"),
    ("self_attn.out_proj", "attention.output.dense"),
    ("self_attn_layer_norm", "attention.LayerNorm"),
    ("fc1", "intermediate.dense"),
    ("fc2", "output.dense"),
    ("final_layer_norm", "LayerNorm"),
]
WHOLE = [
    ("embed_tokens.weight", "esm.embeddings.word_embeddings.weight"),
    ("embed_positions.weight", "esm.embeddings.position_embeddings.weight"),
    ("emb_layer_norm_before", "esm.embeddings.layer_norm"),
    ("emb_layer_norm_after", "esm.encoder.emb_layer_norm_after"),
    ("contact_head", "esm.contact_head"),
]
DERIVED = ("rot_emb.inv_freq", "rotary_embeddings.inv_freq", "lm_head.weight", "lm_head.decoder.weight", "position_ids")


def to_transformers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """State of a fair-esm ESM2 or ProteinBertModel -> state of an EsmForMaskedLM."""
    out = {}
    for key, value in tensors.items():
        if key.endswith(DERIVED):
            continue
        block = re.match(r"layers\.(\d+)\.(.+)\.(weight|bias)$", key)
        if block:
            key = f"esm.encoder.layer.{block[1]}.{dict(BLOCK)[block[2]]}.{block[3]}"
        else:
            key = _start(key, WHOLE)
        out[key] = value
    return out


def to_fair(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """State of an EsmForMaskedLM -> state of a fair-esm ESM2 or ProteinBertModel."""
    blocks, wholes = {hf: fair for fair, hf in BLOCK}, [(hf, fair) for fair, hf in WHOLE]
    out = {}
    for key, value in tensors.items():
        if key.endswith(DERIVED):
            continue
        block = re.match(r"esm\.encoder\.layer\.(\d+)\.(.+)\.(weight|bias)$", key)
        key = f"layers.{block[1]}.{blocks[block[2]]}.{block[3]}" if block else _start(key, wholes)
        out[key] = value
    out["lm_head.weight"] = out["embed_tokens.weight"]
    return out


def _start(key: str, pairs: list[tuple[str, str]]) -> str:
    for old, new in pairs:
        if key.startswith(old):
            return new + key[len(old) :]
    return key
