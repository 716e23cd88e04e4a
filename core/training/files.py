"""Checkpoint files: one safetensors file, one JSON metadata entry, a sha256 over both. Nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from core.errors import DataError, TrainingError

ENTRY = "peft_atlas"  # one entry: safetensors writes several in random order, and equal content must give equal files


def pack(value: Any, tensors: dict[str, Tensor], place: str = "") -> Any:
    """JSON form of nested None, bool, int, float, str, list, tuple, dict and tensors; tensors go to `tensors` by place.

    TypeError names the place of anything else: better now than when the file is needed.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Tensor):
        tensors[place] = value.detach().cpu().contiguous()
        return {"tensor": place}
    if type(value) in (list, tuple):
        return {type(value).__name__: [pack(item, tensors, f"{place}/{i}") for i, item in enumerate(value)]}
    if isinstance(value, dict):
        pairs = []
        for key, item in value.items():
            if type(key) not in (bool, int, float, str):
                raise TypeError(f"{place}: key {key!r} of type {type(key).__name__} cannot be saved")
            pairs.append([key, pack(item, tensors, f"{place}/{key}")])
        return {"dict": pairs}
    raise TypeError(f"{place}: a {type(value).__name__} cannot be saved")


def unpack(node: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `pack`."""
    if not isinstance(node, dict):
        return node
    ((kind, content),) = node.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: unpack(item, tensors) for key, item in content}
    return (tuple if kind == "tuple" else list)(unpack(item, tensors) for item in content)


def encode(value: Any) -> bytes:
    """The file's bytes; equal values give equal bytes."""
    tensors: dict[str, Tensor] = {}
    text = json.dumps(pack(value, tensors), ensure_ascii=True)
    seen: set[int] = set()
    for name, tensor in tensors.items():
        if tensor.data_ptr() in seen:  # two names for one storage: safetensors wants one storage each
            tensors[name] = tensor.clone()
        seen.add(tensors[name].data_ptr())
    return save(tensors, {ENTRY: f"{_digest(text, tensors)}:{text}"})


def decode(blob: bytes, where: str = "checkpoint") -> Any:
    """The value. DataError: not a safetensors file, truncated, or a bit has changed."""
    try:
        size = int.from_bytes(blob[:8], "little")
        digest, text = json.loads(blob[8 : 8 + size])["__metadata__"][ENTRY].split(":", 1)
        tensors = load(blob)
        if digest != _digest(text, tensors):
            raise ValueError("its sha256 differs")
        return unpack(json.loads(text), tensors)
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        reason = f"not a whole checkpoint of this project ({type(error).__name__}: {str(error)[:80]})"
        raise DataError(where, f"{len(blob)} bytes, {reason}", "the file as it was written") from error


def _digest(text: str, tensors: dict[str, Tensor]) -> str:
    total = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return total.hexdigest()


def write(path: Path, value: Any, keep: Path | None = None) -> None:
    """Write `path` whole or not at all; what it replaces becomes `keep`.

    TrainingError: the disk refuses; earlier files are as before.
    """
    part = path.with_name(path.name + ".tmp")
    blob = encode(value)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            file.write(blob)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(part, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        if part.is_file():
            part.unlink()
        fix = "free some space; the run goes on from its last checkpoint"
        got = f"{error.strerror} (errno {error.errno})"
        raise TrainingError(str(path), got, "a disk that takes the file", fix) from error


def read(path: Path) -> Any:
    """The value of a file. DataError as `decode`; FileNotFoundError where there is none."""
    return decode(path.read_bytes(), str(path))


class SafeIO(CheckpointIO):
    """Lightning's checkpoints as safetensors: `Trainer(plugins=[SafeIO()])`; keeps the file before the newest one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        write(path, checkpoint, keep=path.with_name("previous" + path.suffix))

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> dict:
        return read(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)
