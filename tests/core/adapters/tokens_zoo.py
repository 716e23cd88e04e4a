"""Tiny random networks with a token port each. `call(ids, mask)`: one vector per token (batch, tokens, channels)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from core.contracts import TokenPort

WIDTH = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


@dataclass
class Ported:
    net: nn.Module
    call: Any
    decoder: bool = False


def ids(batch=3, length=9, seed=0, high=20) -> torch.Tensor:
    return torch.randint(4, high, (batch, length), generator=torch.Generator().manual_seed(seed))


def _ported(net, port: TokenPort, call, decoder=False) -> Ported:
    net.eval().token_port = port
    return Ported(net, call, decoder)


def _named(net, read):
    return lambda tokens, mask=None, **kw: read(net(input_ids=tokens, attention_mask=mask, **kw))


def llama() -> Ported:
    from transformers import LlamaConfig, LlamaForCausalLM

    net = LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=2, max_position_embeddings=64, **WIDTH))
    port = TokenPort(model="model", embed="embed_tokens", positions="position_ids", cache="cache|past_key_values")
    return _ported(net, port, _named(net, lambda out: out.logits), decoder=True)


def gpt2() -> Ported:
    from transformers import GPT2Config, GPT2LMHeadModel

    net = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64))
    port = TokenPort(
        model="transformer",
        embed="wte",
        positions="position_ids",
        fill=("token_type_ids", 0),
        cache="cache|past_key_values",
    )
    return _ported(net, port, _named(net, lambda out: out.logits), decoder=True)


def bert(leading=1) -> Ported:
    from transformers import BertConfig, BertForMaskedLM

    net = BertForMaskedLM(BertConfig(vocab_size=64, max_position_embeddings=64, **WIDTH))
    port = TokenPort(
        model="bert",
        embed="embeddings.word_embeddings",
        positions="position_ids",
        fill=("token_type_ids", 0),
        leading=leading,
    )
    return _ported(net, port, _named(net, lambda out: out.logits))


def t5() -> Ported:
    """Encoder and decoder: the decoder's cross-attention sees the prompt."""
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0)
    net = T5ForConditionalGeneration(config)
    port = TokenPort(model="encoder", embed="embed_tokens", memory=(("decoder", "encoder_attention_mask"),))

    def call(tokens, mask=None):
        mask = torch.ones_like(tokens) if mask is None else mask
        return net(input_ids=tokens, attention_mask=mask, decoder_input_ids=tokens[:, :1].expand(-1, 5)).logits

    return _ported(net, port, call)


def t5_encoder() -> Ported:
    from transformers import T5Config, T5EncoderModel

    net = T5EncoderModel(T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4))
    return _ported(
        net, TokenPort(model="encoder", embed="embed_tokens"), _named(net, lambda out: out.last_hidden_state)
    )


def hf_esm() -> Ported:
    from transformers import EsmConfig, EsmForMaskedLM

    config = EsmConfig(
        vocab_size=33,
        pad_token_id=1,
        mask_token_id=32,
        position_embedding_type="rotary",
        token_dropout=True,
        max_position_embeddings=64,
        attention_probs_dropout_prob=0.0,
        **WIDTH,
    )
    net = EsmForMaskedLM(config)
    port = TokenPort(
        blocks="esm.encoder.layer.*",
        bmask="attention_mask",
        bkind="add4d",
        rope="position_embeddings",
        wrap="esm",
        tokens_out=("hidden_states",),
        dim=32,
    )
    return _ported(net, port, _named(net, lambda out: out.logits))


def fair_esm() -> Ported:
    from esm.model.esm2 import ESM2

    net = ESM2(num_layers=2, embed_dim=32, attention_heads=4, alphabet="ESM-1b")
    port = TokenPort(
        blocks="layers.*",
        axis=0,
        bmask="self_attn_padding_mask",
        bkind="pad2d",
        wrap="",
        tokens_out=("representations",),
        dim=32,
    )

    def call(tokens, mask=None, **kw):
        tokens = tokens if mask is None else tokens.masked_fill(mask == 0, net.padding_idx)
        return net(tokens, **kw)["logits"]

    return _ported(net, port, call)


def vit() -> Ported:
    import timm

    net = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=5, depth=2, embed_dim=32, num_heads=4)

    def call(tokens, mask=None):
        image = torch.stack(
            [torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(int(t))) for t in tokens[:, 1]]
        )
        return net.forward_features(image)

    return _ported(net, TokenPort(blocks="blocks.*", dim=32), call)


EMBEDS = {"llama": llama, "gpt2": gpt2, "bert": bert, "t5": t5, "t5_encoder": t5_encoder}
BLOCKS = {"hf_esm": hf_esm, "fair_esm": fair_esm, "vit": vit}
ZOO = EMBEDS | BLOCKS


def build(name: str) -> Ported:
    torch.manual_seed(0)
    return ZOO[name]()
