"""Any image network of timm: random weights, weights of this package, of a file, or of an installed package.
Image     (batch, 1 or 3, height, width) float32, 0 to 1; grey images are repeated for the three channels
Hidden    (batch, channels): features after timm's own pooling and norm; the task brings the classifier
Roles     of the family's profile (profiles/timm); convolutions and norms by their kind; without a profile all by kind
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core import profiles, weights
from core.contracts import Backbone, Output
from core.errors import ConfigError, DataError, Problem, did_you_mean
from domains.vision_medical.backbones import imagenet
from domains.vision_medical.backbones.images import prepared
from domains.vision_medical.backbones.structure import completed

EMBEDDED = Path(__file__).resolve().parent.parent / "weights"
PROFILES = Path(__file__).resolve().parent / "profiles" / "timm"


class TimmModel(Backbone):
    """name      of timm's network (`timm.list_models()`)
    source       embedded name, a .safetensors or .pth file of tensors, or `imagenet`: an installed package of weights
    options      further arguments of `timm.create_model` (depth, window_size, ...; drop_path_rate is 0 unless given)
    size         images are resized to size x size pixels; null: as they come, or as the network demands
    mean, std    per channel; null: those of the weights
    checkpointing  blocks are computed again in the backward pass, which saves memory
    pretrained   False keeps the network and starts anew from `seed`
    """

    def __init__(
        self,
        name: str,
        source: str | None = None,
        options: dict[str, Any] | None = None,
        size: int | None = None,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        checkpointing: bool = False,
        pretrained: bool = True,
        seed: int = 0,
    ):
        super().__init__()
        if pretrained and source is None:
            allowed = ["a file of weights", "imagenet", *weights.shipped(EMBEDDED)]
            raise ConfigError("backbone.source", "null", allowed, "pretrained=false starts from random weights")
        self.net = built(name, options or {}, seed)
        package = imagenet.find(name) if source == "imagenet" else None
        if pretrained:
            _filled(self.net, name, source)
        self.net.reset_classifier(0)
        if not any("drop" in key for key in options or {}):
            _still(self.net)
        self.fixed = _fixed(self.net)
        self.size = size if size is not None else self.fixed
        expected = package._asdict() if package else self.net.pretrained_cfg
        for key, given in (("mean", mean), ("std", std)):
            self.register_buffer(key, torch.tensor(list(given or expected[key])), persistent=False)
        self.width = getattr(self.net, "head_hidden_size", None) or self.net.num_features
        self._declare()
        if checkpointing:
            self.net.set_grad_checkpointing(True)

    def _declare(self) -> None:
        family = profiles.find(self.net, PROFILES, required=False)
        self.family = family.name if family else "by structure"
        self.roles = completed(self.net, family.roles if family else {}, linears=family is None)
        if family:
            self.heads, self.token_port, self.channel_axis = family.heads, family.port, family.channel_axis

    def refuses(self, shape: tuple[int, ...]) -> Problem | None:
        """Why an image (channels, *spatial) does not suit, or None."""
        if len(shape) != 3:
            return Problem("data", f"volumes {tuple(shape)}", "pictures", "a network for volumes: backbone=unet3d")
        if shape[0] not in (1, len(self.mean)):
            allowed = f"1 or {len(self.mean)} channels"
            return Problem("data", f"images of {shape[0]} channels", allowed, "data.prepare.channels=3")
        if self.fixed is not None and self.size != self.fixed:
            return Problem(
                "backbone.size", str(self.size), f"{self.fixed}, as the network was built", "options.img_size"
            )
        return None

    def example(self) -> tuple[tuple, dict[str, Any]]:
        side = self.size or 64
        image = torch.rand(2, len(self.mean), side, side, generator=torch.Generator().manual_seed(0))
        return ({"image": image},), {}

    def forward(self, batch: dict[str, Any]) -> Output:
        return Output(hidden=self.net(prepared(batch["image"], self.mean, self.std, self.size)))


def built(name: str, options: dict[str, Any], seed: int) -> nn.Module:
    """timm's network with random weights drawn from `seed`. ConfigError: unknown name or option."""
    import timm

    if not timm.is_model(name):
        known = timm.list_models()
        near = timm.list_models(f"{name.split('_')[0]}*")[:6] or known[:6]
        raise ConfigError(
            "backbone.name", name, f"{len(known)} names, such as {', '.join(near)}", did_you_mean(name, known)
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return timm.create_model(name, **options)
        except (TypeError, ValueError, AssertionError) as error:  # timm's ways to refuse an argument
            raise ConfigError("backbone.options", f"{options}: {error}", f"arguments of timm's {name}") from None


def _still(net: nn.Module) -> None:
    """Stochastic depth and dropout off, which some families turn on by themselves: a frozen network repeats itself."""
    for module in net.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        elif hasattr(module, "drop_prob"):
            module.drop_prob = 0.0


def _fixed(net: nn.Module) -> int | None:
    """Side in pixels that the network insists on (its positions are learned), or None."""
    patches = (module for module in net.modules() if getattr(module, "strict_img_size", False))
    return next((module.img_size[0] for module in patches if module.img_size is not None), None)


def _filled(net: nn.Module, name: str, source: str) -> None:
    """Copies the weights of `source` into `net`; a classifier of another shape is left out.

    ConfigError   names missing and mis-shaped tensors    DataError   unreadable    EnvironmentError_   no package"""
    if source == "imagenet":
        net.load_state_dict(imagenet.state(name, net), strict=False)
        return
    own = weights.embedded(EMBEDDED, source)
    path = own[0] if own else Path(source).expanduser()
    if not path.exists():
        allowed = ["an existing .safetensors or .pth file", "imagenet", *weights.shipped(EMBEDDED)]
        raise ConfigError("backbone.source", source, allowed, did_you_mean(source, weights.shipped(EMBEDDED)))
    tensors = _translated(_unwrapped(weights.state(path), path), net)
    classifier = tuple(f"{head}." for head in _classifiers(net))
    tensors = {key: value for key, value in tensors.items() if not key.startswith(classifier)}
    weights.fill(net, tensors, prefix="", optional=classifier, where=source)


def _classifiers(net: nn.Module) -> list[str]:
    names = net.pretrained_cfg.get("classifier") or ()
    return [names] if isinstance(names, str) else list(names)


def _unwrapped(tensors: dict[str, Any], path: Path) -> dict[str, Tensor]:
    """The state dict inside a training checkpoint: under `state_dict`, `model` ..., without DataParallel's prefix."""
    for key in ("state_dict_ema", "model_ema", "state_dict", "model", "teacher"):
        if isinstance(tensors.get(key), dict):
            tensors = tensors[key]
            break
    found = {key.removeprefix("module."): value for key, value in tensors.items() if isinstance(value, Tensor)}
    if not found:
        raise DataError(str(path), f"no tensors under {', '.join(map(str, list(tensors)[:4]))}", "a state dict")
    return found


def _translated(tensors: dict[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """timm's own reading of foreign names and of positions trained at another size, where the family has one."""
    filter_fn = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
    return filter_fn(tensors, net) if filter_fn is not None else tensors
