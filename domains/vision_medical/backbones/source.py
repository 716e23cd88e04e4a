"""Where a MONAI network's weights and shape come from: weights of this package, a file, what `atlas merge` wrote.

NAME.safetensors    the network's state dict, its last layer included or not; NAME.json beside it, where there is one:
                    {"network": "segresnet", "options": {...}, "classes": ["background", ...]}
FOLDER              of `atlas merge`: model.safetensors, head.safetensors, merge.json
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from core import weights
from core.errors import ConfigError, did_you_mean

EMBEDDED = Path(__file__).resolve().parent.parent / "weights"


@dataclass(frozen=True)
class Source:
    """tensors   file of the state dict       head      file of a segmentation head, where it lies apart
    network      None: the file does not say  options   of the library's class
    classes      that the last layer answers for, [] where unknown
    """

    tensors: Path
    head: Path | None = None
    network: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)

    def state(self, last: str | None) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
        """(tensors of the body, weight and bias of the last layer or None); `last` is the path of that layer."""
        tensors = weights.state(self.tensors)
        end = f"{last}." if last else None
        body = {key: value for key, value in tensors.items() if not (end and key.startswith(end))}
        apart = weights.state(self.head) if self.head else {k: v for k, v in tensors.items() if k not in body}
        start = {key.rpartition(".")[2]: value for key, value in apart.items()}
        return body, start if set(start) == {"weight", "bias"} else None


def find(source: str) -> Source:
    """ConfigError: neither an embedded name nor a file or folder that exists."""
    if own := weights.embedded(EMBEDDED, source):
        return _described(*own)
    path = Path(source).expanduser()
    if path.is_dir() and (path / "merge.json").is_file():
        return _merged(path)
    if path.is_file():
        beside = path.with_suffix(".json")
        return _described(path, beside) if beside.is_file() else Source(path)
    allowed = ["an existing .safetensors or .pth file", "a folder of `atlas merge`", *weights.shipped(EMBEDDED)]
    raise ConfigError("backbone.source", source, allowed, did_you_mean(source, weights.shipped(EMBEDDED)))


def _described(tensors: Path, description: Path) -> Source:
    content = weights.configuration(description)
    return Source(tensors, None, content.get("network"), content.get("options", {}), content.get("classes", []))


def _merged(folder: Path) -> Source:
    facts = weights.configuration(folder / "merge.json")
    backbone, head = facts["backbone"], folder / "head.safetensors"
    base = find(backbone["source"]) if backbone.get("source") else Source(folder)
    return Source(
        tensors=folder / "model.safetensors",
        head=head if head.is_file() else None,
        network=base.network or backbone.get("network"),
        options=base.options | dict(backbone.get("options") or {}),
        classes=facts.get("task", {}).get("classes") or [],
    )
