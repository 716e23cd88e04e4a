"""Weights from a local file or folder, a field's embedded files or the hub's cache; no pickle is ever executed.

Order of search for a name: the path itself, the local hub cache, the hub. What cannot be had is an error that says how.
"""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor, nn

from core.errors import ConfigError, DataError, EnvironmentError_, Problem

PATTERNS = ["*.json", "*.txt", "*.model", "*.safetensors", "pytorch_model.bin"]


def embedded(directory: Path, name: str) -> tuple[Path, Path] | None:
    """(tensors, configuration) of weights that ship with a field in `directory`, or None."""
    tensors, config = directory / f"{name}.safetensors", directory / f"{name}.json"
    return (tensors, config) if tensors.is_file() and config.is_file() else None


def shipped(directory: Path) -> list[str]:
    """Names of the weights that ship with a field."""
    return sorted(path.stem for path in directory.glob("*.safetensors"))


def folder(source: str) -> Path:
    """The folder that holds config.json and weights: `source` itself, or a snapshot of that hub repository."""
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.is_absolute() or source.startswith(".") or source.count("/") != 1:
        raise ConfigError(
            "backbone.source",
            source,
            "an existing folder with config.json and weights, or owner/name of a hub repository",
        )
    from huggingface_hub import snapshot_download

    patterns = PATTERNS
    try:
        return Path(snapshot_download(source, allow_patterns=patterns, local_files_only=True))
    except (OSError, ValueError):
        pass  # not cached: ask the hub
    try:
        return Path(snapshot_download(source, allow_patterns=patterns, etag_timeout=5))
    except Exception as error:  # the client raises many types for "offline", "gated" and "no such repository"
        raise EnvironmentError_(
            "backbone.source",
            f"{source}: not in the hub's cache, and the hub did not answer ({type(error).__name__})",
            "a cached repository, a reachable hub, or a local folder",
            f"on a machine with network run `hf download {source}`, copy the folder, and set backbone.source to it",
        ) from None


def configuration(path: Path) -> dict:
    """The parsed config.json. DataError: missing or not JSON."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        raise DataError(str(path), "missing", "a JSON configuration beside the weights") from None
    except ValueError as error:
        raise DataError(str(path), f"not JSON: {error}", "a JSON configuration") from None
    if not isinstance(found, dict):
        raise DataError(str(path), f"a JSON {type(found).__name__}", "a JSON configuration: names and values")
    return found


def state(path: Path) -> dict[str, Tensor]:
    """Tensors by name of a .safetensors file, or of the weights in a folder (safetensors first, else a .bin read as
    data only)."""
    if path.is_dir():
        files = sorted(path.glob("*.safetensors")) or sorted(path.glob("pytorch_model*.bin"))
        if not files:
            raise DataError(str(path), "no weights", "model.safetensors or pytorch_model.bin")
        merged: dict[str, Tensor] = {}
        for file in files:
            merged |= state(file)
        return merged
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        import torch

        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both readers raise many types for a damaged or foreign file
        raise DataError(
            str(path),
            f"cannot be read: {type(error).__name__}: {str(error)[:120]}",
            "tensors only; never a pickle with code",
        ) from None


def fill(net: nn.Module, tensors: dict[str, Tensor], *, prefix: str, optional: tuple[str, ...], where: str) -> set[str]:
    """Copies `tensors` into `net`; returns the names that were absent (all of them start with one of `optional`).

    prefix     name of the inner model: a checkpoint of the bare inner model has its keys without it
    ConfigError  lists missing and mis-shaped tensors; extra ones (poolers, other heads) are left out
    """
    tensors = {key.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): value
               for key, value in tensors.items()}  # fmt: skip  # names of the oldest BERT files
    if prefix and not any(key.startswith(f"{prefix}.") for key in tensors):
        tensors = {f"{prefix}.{key}": value for key, value in tensors.items()}
    own, problems, absent = net.state_dict(), [], set()
    shared = _tied(net)
    for key, value in own.items():
        if key in tensors:
            if tensors[key].shape != value.shape:
                problems.append(Problem(f"{where}: {key}", str(tuple(tensors[key].shape)), str(tuple(value.shape))))
        elif not (shared.get(key, set()) & tensors.keys()):
            absent.add(key)
            if not key.startswith(optional):
                problems.append(Problem(f"{where}: {key}", "missing", str(tuple(value.shape))))
    if problems:
        more = [Problem(where, f"{len(problems) - 8} more")] if len(problems) > 8 else []
        raise ConfigError(problems=[*problems[:8], *more])
    net.load_state_dict(tensors, strict=False)
    return absent


def _tied(net: nn.Module) -> dict[str, set[str]]:
    """Name -> other names of the same tensor."""
    names: dict[int, set[str]] = {}
    for key, value in net.state_dict(keep_vars=True).items():
        names.setdefault(id(value), set()).add(key)
    return {key: group - {key} for group in names.values() if len(group) > 1 for key in group}
