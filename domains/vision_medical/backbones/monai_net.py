"""MONAI's segmentation networks in two and three dimensions: UNet, SegResNet, UNETR, SwinUNETR.
Image     (batch, channels, *spatial) float32, scaled by the data (data.prepare.intensity)
Hidden    (batch, channels, *spatial): what the network's last convolution would read; the task has its own, 1 x 1. UNet
          has no such place (its last unit adds a residual): its output is the hidden state, `out_channels` wide
Roles     conv, conv.up, norm, attn.*, mlp.*; each also by half: encoder.conv, decoder.norm, ...; encoder and decoder
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from core import profiles, weights
from core.contracts import Backbone, Output
from core.errors import ConfigError, Problem, did_you_mean
from domains.vision_medical.backbones import source as sources
from domains.vision_medical.backbones.structure import completed, halved

PROFILES = Path(__file__).resolve().parent / "profiles" / "monai"


class Kind(NamedTuple):
    """name     MONAI's class
    last        path of the module that holds the last convolution, null where the output is the hidden state
    width       option that is the number of hidden channels
    """

    name: str
    last: str | None
    width: str


NETWORKS = {
    "unet": Kind("UNet", None, "out_channels"),
    "segresnet": Kind("SegResNet", "conv_final.2", "init_filters"),
    "unetr": Kind("UNETR", "out.conv", "feature_size"),
    "swinunetr": Kind("SwinUNETR", "out.conv", "feature_size"),
}


class MonaiNet(Backbone):
    """network   the architecture; of embedded weights it comes from their description
    source       embedded name, a .safetensors or .pth file, or a folder of `atlas merge` (backbones/source.py)
    options      arguments of MONAI's class (spatial_dims, in_channels, channels, strides, img_size, ...)
    checkpointing  blocks are computed again in the backward pass (SwinUNETR)
    pretrained   False keeps the network and starts anew from `seed`
    """

    def __init__(
        self,
        network: Literal["unet", "segresnet", "unetr", "swinunetr"] = "segresnet",
        source: str | None = None,
        options: dict[str, Any] | None = None,
        checkpointing: bool = False,
        pretrained: bool = True,
        seed: int = 0,
    ):
        super().__init__()
        if pretrained and source is None:
            allowed = ["a file of weights", "a folder of `atlas merge`", *weights.shipped(sources.EMBEDDED)]
            raise ConfigError("backbone.source", "null", allowed, "pretrained=false starts from random weights")
        found = sources.find(source) if source else None
        self.network = (found and found.network) or network
        options = defaults(self.network, (found.options if found else {}) | (options or {}), checkpointing)
        kind, self.options = NETWORKS[self.network], options
        self.net = built(self.network, options, seed)
        self.start: dict[str, Tensor] | None = None
        self.classes = found.classes if found else []
        if pretrained:
            body, self.start = found.state(kind.last)
            weights.fill(self.net, body, prefix="", optional=(f"{kind.last}.",) if kind.last else (), where=source)
        if kind.last is not None:
            parent, _, name = kind.last.rpartition(".")
            setattr(self.net.get_submodule(parent), name, nn.Identity())
        self.width, self.channels = int(options[kind.width]), int(options["in_channels"])
        self.spatial = int(options["spatial_dims"])
        family = profiles.find(self.net, PROFILES)
        self.family, self.heads, self.token_port = family.name, family.heads, family.port
        self.roles = halved(self.net, completed(self.net, family.roles, without="norm_cross_attn"))

    def refuses(self, shape: tuple[int, ...]) -> Problem | None:
        """Why an image (channels, *spatial) does not suit, or None."""
        if len(shape) != self.spatial + 1:
            dimensions = f"{len(shape) - 1} dimensions"
            return Problem("data", f"images of {dimensions}", f"{self.spatial}", "backbone.options.spatial_dims")
        if shape[0] != self.channels:
            fix = f"data.prepare.channels={self.channels}, or backbone.options.in_channels"
            return Problem("data", f"images of {shape[0]} channels", f"{self.channels}", fix)
        return None

    def misfit(self, spatial: tuple[int, ...]) -> Problem | None:
        """Why a forward pass over images of this size is impossible, or None: a window then has to do."""
        side, least = step(self.network, self.options)
        if self.network == "unetr":
            wanted = _sides(self.options["img_size"], self.spatial)
            if tuple(spatial) != wanted:
                return Problem("image size", _times(spatial), _times(wanted), "task.window or data.prepare.size")
        elif any(n % side or n < least for n in spatial):
            allowed = f"multiples of {side}" + (f", at least {least}" if least > side else "")
            return Problem("image size", _times(spatial), allowed, "task.window, data.prepare.size or data.crop")
        return None

    def example(self) -> tuple[tuple, dict[str, Any]]:
        side, least = step(self.network, self.options)
        size = (
            _sides(self.options["img_size"], self.spatial)
            if self.network == "unetr"
            else [max(least, 2 * side)] * self.spatial
        )
        image = torch.randn(2, self.channels, *size, generator=torch.Generator().manual_seed(0))
        return ({"image": image},), {}

    def forward(self, batch: dict[str, Any]) -> Output:
        """No hidden state where the task looks through windows instead (`windows` of a batch, never in training).

        ConfigError   images of a size that the network cannot halve often enough"""
        if batch.get("windows") and not self.training:
            return Output()
        if problem := self.misfit(batch["image"].shape[2:]):
            raise ConfigError(problems=[problem])
        return Output(hidden=self.net(batch["image"]))


def defaults(network: str, options: dict[str, Any], checkpointing: bool) -> dict[str, Any]:
    """All that decides the network's shape, ours where the config is silent. ConfigError lists unknown options."""
    import monai.networks.nets as nets

    known = inspect.signature(getattr(nets, NETWORKS[network].name)).parameters
    problems = [Problem(f"backbone.options.{key}", repr(value), ", ".join(known), did_you_mean(key, known))
                for key, value in options.items() if key not in known]  # fmt: skip
    if checkpointing and "use_checkpoint" not in known:
        problems.append(Problem("backbone.checkpointing", "true", "swinunetr", f"{network} offers none"))
    if problems:
        raise ConfigError(problems=problems)
    standard = {key: p.default for key, p in known.items() if p.default is not p.empty}
    ours: dict[str, Any] = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2}
    if network == "unet":
        ours |= {"channels": [16, 32, 64, 128], "strides": [2, 2, 2], "num_res_units": 1, "out_channels": 16}
        ours["norm"] = ["instance", {"affine": True}]  # no statistics of another scanner are carried along
    elif network == "unetr":
        ours |= {"img_size": 64}
    elif network == "swinunetr":
        ours |= {"use_checkpoint": checkpointing}
    return standard | ours | options


def built(network: str, options: dict[str, Any], seed: int) -> nn.Module:
    """MONAI's network with its own start, drawn from `seed`. ConfigError: options that do not go together."""
    import monai.networks.nets as nets

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return getattr(nets, NETWORKS[network].name)(**options)
        except (TypeError, ValueError, AssertionError, KeyError) as error:  # MONAI's ways to refuse an argument
            raise ConfigError("backbone.options", str(error)[:200], f"options of {NETWORKS[network].name}") from None


def step(network: str, options: dict[str, Any]) -> tuple[int, int]:
    """(what every side must be a multiple of, the least side), in pixels."""
    if network == "swinunetr":
        return 32, 64  # smaller ones leave a single position to the deepest norm
    if network == "unetr":
        return 16, 16
    strides = options["strides"] if network == "unet" else [2] * (len(options["blocks_down"]) - 1)
    side = 1
    for stride in strides:
        side *= max(stride) if isinstance(stride, (list, tuple)) else stride
    return side, side


def _sides(size: int | list[int], dimensions: int) -> tuple[int, ...]:
    return (size,) * dimensions if isinstance(size, int) else tuple(size)


def _times(sides: tuple[int, ...]) -> str:
    return " x ".join(map(str, sides))
