"""Tiny random networks of four fields, with the roles of each: the mechanism is tested without them.

`build(name) -> Subject`: model (seeded, eval), roles, example (args, kwargs), axes (role -> channel axis where needed).
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn


class Subject(NamedTuple):
    model: nn.Module
    roles: dict[str, Any]
    example: tuple[tuple, dict]
    axes: dict[str, int] = {}
    mixable: tuple[str, ...] = ()  # roles whose sites keep the batch on axis 0, on the call or act path


def ids(*shape, high=60):
    return torch.randint(4, high, shape)


def named(model: nn.Module, kind: type | str, where: str = "") -> list[str]:
    def fits(m):
        return type(m).__name__ == kind if isinstance(kind, str) else isinstance(m, kind)

    return [path for path, m in model.named_modules() if fits(m) and where in path]


def encoder_roles(
    prefix: str, q="self_attn.q_proj", k="self_attn.k_proj", v="self_attn.v_proj", out="self_attn.out_proj"
):
    return {f"attn.{r}": f"{prefix}.{p}" for r, p in (("q", q), ("k", k), ("v", v), ("out", out))}


def esm2() -> Subject:
    from esm.model.esm2 import ESM2

    model = ESM2(num_layers=2, embed_dim=32, attention_heads=4, alphabet="ESM-1b")
    return Subject(model, _fair_esm(), ((ids(2, 10, high=24),), {}))


def esm1b() -> Subject:
    import esm
    from esm.model.esm1 import ProteinBertModel

    args = argparse.Namespace(
        arch="roberta_large", layers=2, embed_dim=32, ffn_embed_dim=48, attention_heads=4, max_positions=64,
        emb_layer_norm_before=True, token_dropout=True,
    )  # fmt: skip
    model = ProteinBertModel(args, esm.Alphabet.from_architecture("ESM-1b"))
    return Subject(model, _fair_esm(), ((ids(2, 10, high=24),), {}))


def _fair_esm():
    return encoder_roles("layers.*") | {
        "attn": "layers.*.self_attn", "mlp.in": "layers.*.fc1", "mlp.out": "layers.*.fc2", "mlp": "layers.*.fc2",
        "norm": "layers.*.final_layer_norm", "block": "layers.*", "embed": "embed_tokens",
    }  # fmt: skip


def hf_esm() -> Subject:
    from transformers import EsmConfig, EsmForMaskedLM

    config = EsmConfig(
        vocab_size=33, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        pad_token_id=1,
        mask_token_id=32, position_embedding_type="rotary", max_position_embeddings=64,
    )  # fmt: skip
    a = "esm.encoder.layer.*"
    projections = [f"attention.self.{n}" for n in ("query", "key", "value")]
    roles = encoder_roles(a, *projections, "attention.output.dense") | {
        "attn": f"{a}.attention", "mlp.in": f"{a}.intermediate.dense", "mlp.out": f"{a}.output.dense",
        "mlp": f"{a}.output.dense", "block": a, "embed": "esm.embeddings.word_embeddings",
    }  # fmt: skip
    x = ids(2, 10, high=24)
    return Subject(
        EsmForMaskedLM(config),
        roles,
        ((), {"input_ids": x, "attention_mask": torch.ones_like(x)}),
        mixable=("attn.q", "mlp.out", "mlp"),
    )


def llama() -> Subject:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    a = "model.layers.*"
    roles = encoder_roles(a, out="self_attn.o_proj") | {
        "attn": f"{a}.self_attn", "mlp.gate": f"{a}.mlp.gate_proj", "mlp.in": f"{a}.mlp.up_proj",
        "mlp.out": f"{a}.mlp.down_proj", "mlp": f"{a}.mlp", "norm": f"{a}.input_layernorm", "block": a,
        "embed": "model.embed_tokens", "head": "lm_head",
    }  # fmt: skip
    return Subject(
        LlamaForCausalLM(config),
        roles,
        ((), {"input_ids": ids(2, 10), "use_cache": False}),
        mixable=("attn.q", "mlp.out", "mlp"),
    )


def gpt2() -> Subject:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64))
    a = "transformer.h.*"
    roles = {f"attn.{r}": f"{a}.attn.c_attn[{i}/3]" for i, r in enumerate("qkv")} | {
        "attn.out": f"{a}.attn.c_proj", "attn": f"{a}.attn", "mlp.in": f"{a}.mlp.c_fc", "mlp.out": f"{a}.mlp.c_proj",
        "mlp": f"{a}.mlp", "block": a, "embed": "transformer.wte",
    }  # fmt: skip
    return Subject(
        model, roles, ((), {"input_ids": ids(2, 10), "use_cache": False}), mixable=("attn.q", "attn.v", "mlp")
    )


def gpt_neox() -> Subject:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    a = "gpt_neox.layers.*"
    roles = {f"attn.{r}": f"{a}.attention.query_key_value[{i}/3*4]" for i, r in enumerate("qkv")} | {
        "attn.out": f"{a}.attention.dense", "attn": f"{a}.attention", "mlp.in": f"{a}.mlp.dense_h_to_4h",
        "mlp.out": f"{a}.mlp.dense_4h_to_h", "mlp": f"{a}.mlp", "block": a, "embed": "gpt_neox.embed_in",
    }  # fmt: skip
    return Subject(
        GPTNeoXForCausalLM(config),
        roles,
        ((), {"input_ids": ids(2, 10), "use_cache": False}),
        mixable=("attn.q", "attn.v"),
    )


def t5() -> Subject:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0)
    model = T5ForConditionalGeneration(config)
    attention = named(model, "T5Attention")
    dense = named(model, "T5DenseActDense")
    roles = {
        f"attn.{r}": [f"{a}.{p}" for a in attention] for r, p in (("q", "q"), ("k", "k"), ("v", "v"), ("out", "o"))
    }
    roles |= {
        "attn": attention,
        "mlp.in": [f"{d}.wi" for d in dense],
        "mlp.out": [f"{d}.wo" for d in dense],
        "mlp": dense,
    }
    roles |= {"block": ["encoder.block.*", "decoder.block.*"]}
    example = {"input_ids": ids(2, 10), "decoder_input_ids": ids(2, 6), "use_cache": False}
    return Subject(model, roles, ((), example), mixable=("attn.q", "mlp.out"))


def _timm(name: str, qkv: str = "attn.qkv", **options) -> Subject:
    import timm

    settings = {"img_size": 32, "num_classes": 5, "depth": 2, "embed_dim": 32, "num_heads": 4} | options
    model = timm.create_model(name, **settings)
    roles = {f"attn.{r}": f"blocks.*.{qkv}[{i}/3]" for i, r in enumerate("qkv")} | {
        "attn.out": "blocks.*.attn.proj", "attn": "blocks.*.attn", "mlp.in": "blocks.*.mlp.fc1",
        "mlp.out": "blocks.*.mlp.fc2", "mlp": "blocks.*.mlp", "block": "blocks.*", "conv": "patch_embed.proj",
        "head": "head",
    }  # fmt: skip
    return Subject(model, roles, ((torch.randn(2, 3, 32, 32),), {}), mixable=("mlp.in", "mlp"))


def vit() -> Subject:
    return _timm("vit_tiny_patch16_224")


def beit() -> Subject:
    return _timm("beit_base_patch16_224")


def eva02() -> Subject:
    subject = _timm("eva02_tiny_patch14_224", img_size=28)
    (
        subject.roles.pop("mlp.in"),
        subject.roles.update({"mlp.gate": "blocks.*.mlp.fc1_g", "mlp.in": "blocks.*.mlp.fc1_x"}),
    )
    if not named(subject.model, nn.Linear, "fc1_g"):
        subject.roles.pop("mlp.gate"), subject.roles.update({"mlp.in": "blocks.*.mlp.fc1"})
    return subject._replace(example=((torch.randn(2, 3, 28, 28),), {}))


def resnet() -> Subject:
    import timm

    model = timm.create_model("resnet10t", num_classes=5, zero_init_last=False)
    convs = named(model, nn.Conv2d, "layer")
    roles = {"conv": convs, "norm": "layer*.0.bn1", "features": ["layer1", "layer2", "layer3", "layer4"], "head": "fc"}
    return Subject(model, roles, ((torch.randn(2, 3, 64, 64),), {}), mixable=("conv", "features"))


def unet3d() -> Subject:
    from monai.networks.nets import UNet

    model = UNet(3, 1, 2, channels=(4, 8, 16), strides=(2, 2), num_res_units=1, norm="batch")
    up = named(model, nn.ConvTranspose3d)
    roles = {"conv": named(model, nn.Conv3d), "conv.up": up, "features": up}
    return Subject(model, roles, ((torch.randn(2, 1, 16, 16, 16),), {}), mixable=("conv", "conv.up"))


def swin_unetr() -> Subject:
    from monai.networks.nets import SwinUNETR

    model = SwinUNETR(
        in_channels=1,
        out_channels=2,
        feature_size=12,
        depths=(1, 1, 1, 1),
        num_heads=(2, 2, 2, 2),
        spatial_dims=2,
        use_checkpoint=False,
    )
    attention, mlp = named(model, "WindowAttention"), named(model, "MLPBlock")
    roles = {f"attn.{r}": [f"{a}.qkv[{i}/3]" for a in attention] for i, r in enumerate("qkv")} | {
        "attn.out": [f"{a}.proj" for a in attention], "attn": attention, "mlp.in": [f"{m}.linear1" for m in mlp],
        "mlp.out": [f"{m}.linear2" for m in mlp], "mlp": mlp, "conv": named(model, nn.Conv2d),
    }  # fmt: skip
    return Subject(model, roles, ((torch.randn(2, 1, 64, 64),), {}))


def speecht5() -> Subject:
    from transformers import SpeechT5Config, SpeechT5ForTextToSpeech

    config = SpeechT5Config(
        vocab_size=64, hidden_size=32, encoder_layers=2, encoder_attention_heads=4, encoder_ffn_dim=48,
        decoder_layers=2,
        decoder_attention_heads=4, decoder_ffn_dim=48, speech_decoder_prenet_units=16,
        speech_decoder_postnet_units=16,
        speaker_embedding_dim=8, num_mel_bins=8, max_speech_positions=64, max_text_positions=64,
        encoder_layerdrop=0.0,
        decoder_layerdrop=0.0, positional_dropout=0.0, speech_decoder_prenet_dropout=0.0,
    )  # fmt: skip
    model = SpeechT5ForTextToSpeech(config)
    attention, mlp = named(model, "SpeechT5Attention"), named(model, "SpeechT5FeedForward")
    roles = {f"attn.{r}": [f"{a}.{r}_proj" for a in attention] for r in ("q", "k", "v", "out")} | {
        "attn": attention, "mlp.in": [f"{m}.intermediate_dense" for m in mlp],
        "mlp.out": [f"{m}.output_dense" for m in mlp], "mlp": mlp, "conv": named(model, nn.Conv1d),
    }  # fmt: skip
    inputs = {
        "input_ids": ids(2, 10),
        "decoder_input_values": torch.randn(2, 6, 8),
        "speaker_embeddings": torch.randn(2, 8),
    }
    return Subject(model, roles, ((), inputs), mixable=("mlp.out",))


def wavlm() -> Subject:
    from transformers import WavLMConfig, WavLMModel

    config = WavLMConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, conv_dim=(8, 8),
        conv_stride=(5, 4),
        conv_kernel=(10, 8), num_feat_extract_layers=2, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2,
        layerdrop=0.0, apply_spec_augment=False, feat_extract_norm="group",
    )  # fmt: skip
    model = WavLMModel(config)
    a = "encoder.layers.*"
    roles = encoder_roles(a, *(f"attention.{r}_proj" for r in ("q", "k", "v", "out"))) | {
        "attn": f"{a}.attention", "mlp.in": f"{a}.feed_forward.intermediate_dense",
        "mlp.out": f"{a}.feed_forward.output_dense", "mlp": f"{a}.feed_forward",
        "conv": named(model, nn.Conv1d, "feature_extractor"),
    }  # fmt: skip
    return Subject(model, roles, ((torch.randn(2, 400),), {}))


class VitsWithGivenLengths(nn.Module):
    """VITS without its predicted durations, which change the length of the output."""

    def __init__(self, vits):
        super().__init__()
        self.vits = vits

    def forward(self, input_ids):
        mask = torch.ones_like(input_ids).unsqueeze(-1).float()
        prior = self.vits.text_encoder(input_ids=input_ids, padding_mask=mask, attention_mask=None).prior_means
        latents = self.vits.flow(prior.transpose(1, 2), mask.transpose(1, 2), reverse=True)
        return self.vits.decoder(latents)


def vits() -> Subject:
    from transformers import VitsConfig, VitsModel

    config = VitsConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=24, flow_size=16,
        spectrogram_bins=9,
        use_stochastic_duration_prediction=False, duration_predictor_filter_channels=16, upsample_initial_channel=16,
        upsample_rates=[2, 2], upsample_kernel_sizes=[4, 4], resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3]],
        prior_encoder_num_flows=2, prior_encoder_num_wavenet_layers=2, posterior_encoder_num_wavenet_layers=2,
        wavenet_kernel_size=3, layerdrop=0.0, noise_scale=0.0,
    )  # fmt: skip
    model = VitsWithGivenLengths(VitsModel(config))
    a = "vits.text_encoder.encoder.layers.*"
    roles = encoder_roles(a, *(f"attention.{r}_proj" for r in ("q", "k", "v", "out"))) | {
        "attn": f"{a}.attention", "mlp.in": f"{a}.feed_forward.conv_1", "mlp.out": f"{a}.feed_forward.conv_2",
        "mlp": f"{a}.feed_forward", "conv": named(model, nn.Conv1d, "flow"),
        "conv.up": named(model, nn.ConvTranspose1d), "conv.decoder": named(model, nn.Conv1d, "decoder.resblocks"),
    }  # fmt: skip
    return Subject(model, roles, ((ids(2, 8, high=38),), {}), axes={"mlp": -1})


def hifigan() -> Subject:
    from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

    model = SpeechT5HifiGan(
        SpeechT5HifiGanConfig(
            model_in_dim=8,
            upsample_initial_channel=16,
            upsample_rates=[2, 2],
            upsample_kernel_sizes=[4, 4],
            resblock_kernel_sizes=[3],
            resblock_dilation_sizes=[[1, 3]],
        )
    )
    model.apply_weight_norm()
    up = named(model, nn.ConvTranspose1d)
    convs = named(model, nn.Conv1d)
    return Subject(model, {"conv": convs, "conv.up": up, "features": up}, ((torch.randn(2, 6, 8),), {}))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(8, 12, 2, batch_first=True)
        self.out = nn.Linear(12, 3)

    def forward(self, x):
        return self.out(self.rnn(x)[0])


def lstm() -> Subject:
    roles = {"rnn": [f"rnn:weight_{k}_l{i}" for i in (0, 1) for k in ("ih", "hh")], "head": "out"}
    return Subject(Recurrent(), roles, ((torch.randn(2, 5, 8),), {}), mixable=("head",))


class Encoder(nn.Module):
    """torch's own encoder layers: a fused kernel in eval without gradients."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x):
        return self.encoder(x)


def torch_encoder() -> Subject:
    a = "encoder.layers.*"
    roles = {f"attn.{r}": f"{a}.self_attn:in_proj_weight[{i}/3]" for i, r in enumerate("qkv")} | {
        "attn.out": f"{a}.self_attn.out_proj", "mlp.in": f"{a}.linear1", "mlp.out": f"{a}.linear2",
        "mlp": f"{a}.linear2",
    }  # fmt: skip
    return Subject(Encoder(), roles, ((torch.randn(2, 7, 32),), {}))


NETWORKS: dict[str, tuple[Callable[[], Subject], str]] = {
    "esm1b": (esm1b, "esm"), "esm2": (esm2, "esm"), "hf_esm": (hf_esm, "transformers"),
    "llama": (llama, "transformers"),
    "gpt2": (gpt2, "transformers"), "gpt_neox": (gpt_neox, "transformers"), "t5": (t5, "transformers"),
    "vit": (vit, "timm"),
    "beit": (beit, "timm"), "eva02": (eva02, "timm"), "resnet": (resnet, "timm"), "unet3d": (unet3d, "monai"),
    "swin_unetr": (swin_unetr, "monai"), "speecht5": (speecht5, "transformers"), "wavlm": (wavlm, "transformers"),
    "vits": (vits, "transformers"), "hifigan": (hifigan, "transformers"), "lstm": (lstm, "torch"),
    "torch_encoder": (torch_encoder, "torch"),
}  # fmt: skip
NAMES = list(NETWORKS)


def build(name: str, seed: int = 0) -> Subject:
    """The seeded subject; skips where its library is not installed."""
    make, library = NETWORKS[name]
    pytest.importorskip(library)
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        subject = make()
    subject.model.eval()
    return subject
