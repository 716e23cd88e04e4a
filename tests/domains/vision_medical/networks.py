"""Tiny random networks of every family that the field names."""

from domains.vision_medical.backbones.monai_net import MonaiNet
from domains.vision_medical.backbones.timm_model import TimmModel

SWIN = {"img_size": 32, "window_size": 4, "embed_dim": 12, "depths": (1, 1), "num_heads": (2, 2)}
VIT = {"img_size": 32, "depth": 2, "embed_dim": 32, "num_heads": 4}
STAGES = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 16)}


def timm(name, family, **options):
    return lambda: TimmModel(name, options=options, pretrained=False), family


def monai(network, **options):
    return lambda: MonaiNet(network, options=options, pretrained=False), network


TIMM = {
    "vit": timm("vit_tiny_patch16_224", "vit", **VIT),
    "beit": timm("beit_base_patch16_224", "beit_eva", **VIT),
    "eva02_fused": timm("eva02_tiny_patch14_224", "beit_eva", **VIT | {"img_size": 28}),
    "eva02": timm("eva02_base_patch14_224", "eva02", **VIT | {"img_size": 28}),
    "swin": timm("swin_tiny_patch4_window7_224", "swin", **SWIN),
    "swinv2": timm("swinv2_tiny_window8_256", "swin", **SWIN),
    "resnet": timm("resnet10t", "resnet", channels=(8, 8, 8, 8), stem_width=8),
    "efficientnet": timm("test_efficientnet", "efficientnet"),
    "mobilenetv2": timm("mobilenetv2_035", "efficientnet"),
    "convnext_conv": timm("convnext_atto", "convnext", **STAGES),
    "convnext_linear": timm("convnext_tiny", "convnext", **STAGES),
    "densenet": timm("densenet121", "densenet", growth_rate=4, block_config=(1, 1, 1, 1)),
    "maxvit": timm("test_maxvit", "by structure", img_size=64),
}
MONAI = {
    "unet": monai("unet", channels=[4, 8, 16], strides=[2, 2], out_channels=4, norm="batch"),
    "unet3d": monai("unet", spatial_dims=3, channels=[4, 8, 16], strides=[2, 2], out_channels=4, num_res_units=0),
    "segresnet": monai("segresnet", blocks_down=[1, 1, 1], blocks_up=[1, 1]),
    "unetr": monai("unetr", img_size=32, feature_size=4, hidden_size=12, mlp_dim=16, num_heads=2),
    "swinunetr": monai("swinunetr", feature_size=12, depths=(1, 1, 1, 1), num_heads=(2, 2, 2, 2)),
}
ALL = TIMM | MONAI
