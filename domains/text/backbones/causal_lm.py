"""Any causal language model of transformers (AutoModelForCausalLM); its family's profile says where the roles are.
Tokens      input_ids, attention_mask (batch, tokens) int64; 1 at tokens; padded on the right, on the left to generate
Logits      (batch, tokens, vocabulary): at position t for token t + 1. With `labels` in the batch only the positions
            that some row is asked at: `extras["asked"]` (kept,) int64, so a head of 49,152 rows is not computed in vain
"""

from __future__ import annotations

from typing import Literal

import torch

from core.contracts import Output
from domains.text.backbones.shell import LanguageModel


class CausalLM(LanguageModel):
    """source: embedded name, folder, .gguf file, package://NAME/FILE.gguf, or hub repository (backbones/source.py).

    dtype           of the network; adapters are fp32 whatever it is
    checkpointing   recompute each block in backward: less memory, a third more time
    pretrained      False keeps the shape and starts anew: embedded names by the initialiser that their own pretraining
                    started from, others by the library's
    """

    def __init__(
        self,
        source: str,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        checkpointing: bool = False,
        pretrained: bool = True,
        seed: int = 0,
    ):
        super().__init__()
        from transformers import AutoModelForCausalLM

        self.load(
            AutoModelForCausalLM, source, dtype=dtype, checkpointing=checkpointing, pretrained=pretrained, seed=seed
        )

    def example(self):
        draw = torch.Generator().manual_seed(0)
        ids = torch.randint(0, self.tokenizer.size, (2, 6), generator=draw)
        return ({"input_ids": ids, "attention_mask": torch.ones_like(ids)},), {}

    def forward(self, batch) -> Output:
        options, extras = {}, None
        if "labels" in batch:
            asked = (batch["labels"][:, 1:] >= 0).any(0).nonzero().squeeze(1)
            options, extras = {"logits_to_keep": asked}, {"asked": asked}
        mask = batch["attention_mask"]
        logits = self.net(input_ids=batch["input_ids"], attention_mask=mask, use_cache=False, **options).logits
        return Output(mask=mask.bool(), logits=logits, extras=extras)
