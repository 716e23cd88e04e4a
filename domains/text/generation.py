"""Text by a model, greedy or by beams: no sampling, so that a run is repeatable.

prompt_ids, prompt_mask  (batch, tokens) int64, padded on the left (an encoder's on the right)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from core.adapters import network


class Written(NamedTuple):
    """ids of one answer without its end; whether it ended itself, within the limit"""

    ids: list[int]
    stopped: bool


def write(model: Any, batch: dict[str, Tensor], *, tokens: int, beams: int = 1, penalty: float = 1.0) -> list[Written]:
    """One answer per row of `prompt_ids`, with whatever adapter is active.

    tokens    most tokens of an answer; fewer where the network's own limit leaves no more room
    penalty   exponent of the length by which a beam's log-probability is divided
    """
    from transformers import GenerationConfig

    tokenizer, ids, net = model.tokenizer, batch["prompt_ids"], network(model)
    if tokenizer.one_sequence and tokenizer.limit:
        tokens = max(1, min(tokens, tokenizer.limit - ids.shape[1]))
    how = GenerationConfig(
        max_new_tokens=tokens,
        do_sample=False,
        num_beams=beams,
        length_penalty=penalty if beams > 1 else None,
        pad_token_id=tokenizer.pad,
        eos_token_id=list(tokenizer.stops),
        decoder_start_token_id=getattr(net.config, "decoder_start_token_id", None),
        use_cache=True,
    )
    with torch.no_grad():
        made = net.generate(input_ids=ids, attention_mask=batch["prompt_mask"], generation_config=how)
    start = ids.shape[1] if tokenizer.one_sequence else 1
    return [_cut(row, tokenizer.stops) for row in made[:, start:].tolist()]


def _cut(ids: list[int], stops: tuple[int, ...]) -> Written:
    """Up to the first end; what stands behind it is padding."""
    end = next((at for at, token in enumerate(ids) if token in stops), None)
    return Written(ids if end is None else ids[:end], end is not None)
