"""Tiny random networks with a token port each. `call(ids, mask)`: one vector per token (batch, tokens, channels)."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from core import profiles
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


# Keys and values: ports as the fields' own profiles and backbones declare them ----------------------------------------

DOMAINS = Path(__file__).resolve().parents[3] / "domains"


def _profiled(net, folder: str, call, decoder=False) -> Ported:
    return _ported(net, profiles.find(net, DOMAINS / folder).port, call, decoder)


def _decoder(net) -> Ported:
    return _profiled(net, "text/backbones/profiles", _named(net, lambda out: out.logits), decoder=True)


def kv_llama() -> Ported:
    return _decoder(llama().net)


def kv_gpt2() -> Ported:
    return _decoder(gpt2().net)


def kv_opt() -> Ported:
    from transformers import OPTConfig, OPTForCausalLM

    shape = {
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 16,
    }
    return _decoder(OPTForCausalLM(OPTConfig(vocab_size=64, max_position_embeddings=64, dropout=0.0, **shape)))


def kv_gpt_neox() -> Ported:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    return _decoder(GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=64, max_position_embeddings=64, **WIDTH)))


def kv_gemma3() -> Ported:
    """A sliding window of 4 in its first layer: the prefix stays visible there."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    more = {"head_dim": 8, "num_key_value_heads": 2, "sliding_window": 4, "max_position_embeddings": 64}
    kinds = ["sliding_attention", "full_attention"]
    return _decoder(Gemma3ForCausalLM(Gemma3TextConfig(vocab_size=64, layer_types=kinds, **more, **WIDTH)))


def kv_t5() -> Ported:
    host = t5()
    return _profiled(host.net, "text/backbones/profiles", host.call)


def kv_bert() -> Ported:
    from domains.protein.backbones.bert import ProteinBert

    backbone = ProteinBert(pretrained=False, family="bert")
    return _ported(backbone.net, backbone.token_port, _named(backbone.net, lambda out: out.logits))


def kv_esm() -> Ported:
    from domains.protein.backbones.hf_esm import HFEsm

    backbone = HFEsm(pretrained=False)
    return _ported(backbone.net, backbone.token_port, _named(backbone.net, lambda out: out.logits))


def kv_listener() -> Ported:
    from domains.speech.backbones.listener import Listener

    backbone = Listener(pretrained=False)

    def call(tokens, mask=None):
        mask = torch.ones_like(tokens) if mask is None else mask
        mel, real = drawn(tokens, 40).repeat_interleave(2, 1), mask.bool().repeat_interleave(2, 1)
        return backbone.net(mel, ~real)[0][-1]

    return _ported(backbone.net, backbone.token_port, call)


def kv_wav2vec2() -> Ported:
    from domains.speech.backbones.encoder import SpeechEncoder

    backbone = SpeechEncoder(pretrained=False)

    def call(tokens, mask=None):
        samples = drawn(tokens, 160).flatten(1)
        mask = None if mask is None else mask.repeat_interleave(160, 1)
        return backbone.net(samples, attention_mask=mask).last_hidden_state

    return _ported(backbone.net, backbone.token_port, call)


def drawn(tokens, width: int) -> torch.Tensor:
    """(batch, tokens, width) of noise that each token chooses."""
    table = torch.randn(64, width, generator=torch.Generator().manual_seed(5))
    return table[tokens]


def _timm(name: str, **options):
    import timm

    return timm.create_model(name, img_size=32, num_classes=0, **options)


def _picture(net) -> Any:
    def call(tokens, mask=None):
        return net.forward_features(drawn(tokens[:, :1], 3 * 32 * 32).view(-1, 3, 32, 32)).flatten(1, -2)

    return call


def _timm_ported(net) -> Ported:
    return _profiled(net, "vision_medical/backbones/profiles/timm", _picture(net))


def kv_vit() -> Ported:
    return _timm_ported(_timm("vit_tiny_patch16_224", depth=2, embed_dim=32, num_heads=4))


def kv_swin() -> Ported:
    shape = {"embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4, "drop_path_rate": 0.0}
    return _timm_ported(_timm("swin_tiny_patch4_window7_224", **shape))


def kv_beit() -> Ported:
    shape = {"depth": 2, "embed_dim": 32, "num_heads": 4, "use_rel_pos_bias": True}
    return _timm_ported(_timm("beit_base_patch16_224", **shape))


def kv_eva02() -> Ported:
    return _timm_ported(_timm("eva02_tiny_patch14_224", patch_size=8, depth=2, embed_dim=32, num_heads=4))


class Attending(nn.Module):
    """torch's own attention; `maps` asks it for attention maps, too."""

    def __init__(self, maps=False):
        super().__init__()
        self.maps = maps
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=self.maps)[0]


def kv_mha(maps=False) -> Ported:
    net = Attending(maps)
    port = TokenPort(attn="attention", heads="num_heads", head_dim="head_dim")
    return _ported(net, port, lambda tokens, mask=None: net(drawn(tokens, 32)))


DECODERS = {"llama": kv_llama, "gpt2": kv_gpt2, "opt": kv_opt, "gpt_neox": kv_gpt_neox, "gemma3": kv_gemma3}
TEXT = DECODERS | {"t5": kv_t5, "bert": kv_bert, "esm": kv_esm}
IMAGES = {"vit": kv_vit, "swin": kv_swin, "beit": kv_beit, "eva02": kv_eva02, "mha": kv_mha}
KV = TEXT | {"listener": kv_listener, "wav2vec2": kv_wav2vec2} | IMAGES


def kv_bert_deep() -> Ported:
    """BERT's blocks alone, so that prompts enter there."""
    host = kv_bert()
    host.net.token_port = replace(host.net.token_port, model=None)
    return host


DEEP = BLOCKS | {"bert": kv_bert_deep, "listener": kv_listener, "wav2vec2": kv_wav2vec2}


def build(name: str, zoo: dict | None = None) -> Ported:
    torch.manual_seed(0)
    return (zoo or ZOO)[name]()
