"""Any sequence-to-sequence model of the T5 family (AutoModelForSeq2SeqLM): T5, Flan-T5, mT5, ByT5.
Tokens      input_ids, attention_mask (batch, tokens) int64 of the prompt, padded on the right;
            labels (batch, answer) int64, -100 at padding: the decoder reads them moved by one
Logits      (batch, answer, vocabulary): at position t for label t.      fp16 overflows in this family: fp32 or bf16
"""

from __future__ import annotations

from typing import Literal

import torch

from core.contracts import Output
from domains.text.backbones.shell import LanguageModel


class Seq2Seq(LanguageModel):
    """source, checkpointing, pretrained: as of CausalLM."""

    def __init__(
        self,
        source: str,
        dtype: Literal["float32", "bfloat16"] = "float32",
        checkpointing: bool = False,
        pretrained: bool = True,
        seed: int = 0,
    ):
        super().__init__()
        from transformers import AutoModelForSeq2SeqLM

        self.load(
            AutoModelForSeq2SeqLM, source, dtype=dtype, checkpointing=checkpointing, pretrained=pretrained, seed=seed
        )
        self.tokenizer.one_sequence = False

    def example(self):
        draw = torch.Generator().manual_seed(0)
        ids = torch.randint(0, self.tokenizer.size, (2, 6), generator=draw)
        return ({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, :4]},), {}

    def forward(self, batch) -> Output:
        labels, mask = batch["labels"], batch["attention_mask"]
        start = self.net.config.decoder_start_token_id
        shifted = torch.cat([labels.new_full((len(labels), 1), start), labels[:, :-1]], 1)
        logits = self.net(
            input_ids=batch["input_ids"],
            attention_mask=mask,
            decoder_input_ids=shifted.masked_fill(shifted < 0, self.tokenizer.pad),
            use_cache=False,
        ).logits
        return Output(mask=mask.bool(), logits=logits)
