"""The networks of the bench. Each function returns (build, roles, example, loss, entrance, targets of HF peft):

build      () -> a fresh network                  loss       (model, inputs=None) -> scalar of one batch
example    (args, kwargs) for a forward           entrance   (model) -> the input whose gradient the limit asks for
"""

from __future__ import annotations

import torch
from torch import nn

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def llama(width: int = 320, layers: int = 4, batch: int = 8):
    from transformers import LlamaConfig, LlamaForCausalLM

    heads = max(1, width // 64)
    config = LlamaConfig(
        hidden_size=width, intermediate_size=width * 8 // 3 // 8 * 8, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, vocab_size=1024, max_position_embeddings=512,
    )  # fmt: skip
    a = "model.layers.*"
    roles = {"attn.q": f"{a}.self_attn.q_proj", "attn.k": f"{a}.self_attn.k_proj", "attn.v": f"{a}.self_attn.v_proj",
             "attn.out": f"{a}.self_attn.o_proj", "mlp.gate": f"{a}.mlp.gate_proj", "mlp.in": f"{a}.mlp.up_proj",
             "mlp.out": f"{a}.mlp.down_proj"}  # fmt: skip
    x = torch.randint(0, 1024, (batch, 256))
    example = ((), {"input_ids": x[:1, :16], "use_cache": False})
    return (lambda: LlamaForCausalLM(config)), roles, example, *_reading(x, use_cache=False), LINEAR


def esm2():
    """ESM-2 8M's shape, 6 layers x 320, through transformers (HF peft's own ground)."""
    from transformers import EsmConfig, EsmForMaskedLM

    config = EsmConfig(
        vocab_size=33, hidden_size=320, num_hidden_layers=6, num_attention_heads=20, intermediate_size=1280,
        pad_token_id=1, mask_token_id=32, position_embedding_type="rotary", max_position_embeddings=1026,
        token_dropout=False, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    a = "esm.encoder.layer.*"
    roles = {f"attn.{r[0]}": f"{a}.attention.self.{r}" for r in ("query", "key", "value")} | {
        "attn.out": f"{a}.attention.output.dense", "mlp.in": f"{a}.intermediate.dense", "mlp.out": f"{a}.output.dense",
    }  # fmt: skip
    x = torch.randint(4, 24, (8, 254))
    mask = torch.ones_like(x)
    example = ((), {"input_ids": x[:1, :16], "attention_mask": mask[:1, :16]})
    targets = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]
    return (lambda: EsmForMaskedLM(config)), roles, example, *_reading(x, attention_mask=mask), targets


def _reading(x, **fixed):
    """(loss, entrance) of a network that reads ids x, or their embeddings."""

    def loss(model, inputs=None):
        read = {"input_ids": x} if inputs is None else {"inputs_embeds": inputs}
        return model(**read, labels=x, **fixed).loss

    return loss, lambda model: model.get_input_embeddings()(x).detach().requires_grad_(True)


def _looking(x):
    """(loss, entrance) of a network that looks at images x."""

    def loss(model, inputs=None):
        return model(x if inputs is None else inputs).square().mean()

    return loss, lambda model: x.clone().requires_grad_(True)


def vit():
    import timm

    def build():
        return timm.create_model("vit_small_patch16_224", num_classes=10)

    roles = {f"attn.{r}": f"blocks.*.attn.qkv[{i}/3]" for i, r in enumerate("qkv")} | {
        "attn.out": "blocks.*.attn.proj", "mlp.in": "blocks.*.mlp.fc1", "mlp.out": "blocks.*.mlp.fc2",
    }  # fmt: skip
    x = torch.randn(8, 3, 224, 224)
    return build, roles, ((x[:1],), {}), *_looking(x), ["qkv", "attn.proj", "fc1", "fc2"]


def resnet():
    import timm

    def build():
        return timm.create_model("resnet50", num_classes=10)

    model = build()
    roles = {"conv": [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]}
    x = torch.randn(8, 3, 224, 224)
    targets = r".*(conv\d|downsample\.0)"
    return build, roles, ((x[:1],), {}), *_looking(x), targets


def unet3d():
    """MONAI's 3-D U-Net; HF peft has no transposed convolutions, so neither side adapts them."""
    from monai.networks.nets import UNet

    def build():
        return UNet(3, 1, 2, channels=(16, 32, 64, 128), strides=(2, 2, 2), num_res_units=2)

    # 1x1x1 convolutions are left out: HF peft trains them, but crashes when it merges them.
    convs = [n for n, m in build().named_modules() if isinstance(m, nn.Conv3d) and m.kernel_size == (3, 3, 3)]
    roles = {"conv": convs}
    x = torch.randn(1, 1, 64, 64, 64)
    return build, roles, ((x[:, :, :16, :16, :16],), {}), *_looking(x), convs


NETWORKS = {
    "llama320": lambda: llama(320), "llama768": lambda: llama(768), "esm2": esm2, "vit": vit, "resnet50": resnet,
    "unet3d": unet3d,
}  # fmt: skip
QUICK = {"quick": lambda: llama(320, layers=2, batch=4)}
