"""The two files of an adapter, written so that a kill at any moment leaves the old adapter or the new one, never a mix.

`adapter.safetensors` holds the tensors and, in its header, the whole record; `adapter.json` is the record for people
and other programs. Each is replaced atomically, the tensors first. The record names the digest of the tensors it
belongs to: where the two files disagree, a write was cut between the replacements, and the header's record counts.
Nothing is ever unpickled.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from core.errors import AdapterError, TrainingError

TENSORS, RECORD = "adapter.safetensors", "adapter.json"
FORMAT = 1


def digest(tensors: dict[str, Tensor]) -> str:
    """`sha256:<64 hex>` of names, shapes, dtypes and all values; tensors are contiguous, on the CPU."""
    total = hashlib.sha256()
    for key in sorted(tensors):
        t = tensors[key]
        total.update(f"{key}{tuple(t.shape)}{t.dtype}".encode())
        total.update(memoryview(t.reshape(-1).view(torch.uint8).numpy()))
    return f"sha256:{total.hexdigest()}"


def write(directory: str | Path, record: dict, tensors: dict[str, Tensor]) -> None:
    """Replace the adapter in `directory`, which is made where it is not. Errors as in `replace`."""
    tensors = plain(tensors)
    record = {"format": FORMAT, **record, "digest": digest(tensors)}
    text = json.dumps(record, indent=1, ensure_ascii=False, default=list)
    replace(
        directory,
        {
            TENSORS: lambda path: save_file(tensors, path, metadata={"record": text, "format": "pt"}),
            RECORD: lambda path: path.write_text(text + "\n", encoding="utf-8"),
        },
    )


def replace(directory: str | Path, writers: dict[str, Callable[[Path], Any]]) -> None:
    """Write every file beside its place, flush all to the disk, then move them there in the order given.

    AdapterError (no such folder, not writable) and TrainingError (disk full) leave the folder as it was."""
    folder = Path(directory)
    temporary = {name: folder / f"{name}.tmp" for name in writers}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, write_to in writers.items():
            write_to(temporary[name])
            _sync(temporary[name])
        for name, path in temporary.items():
            os.replace(path, folder / name)
        _sync(folder)
    except (OSError, SafetensorError) as error:
        for path in temporary.values():
            with suppress(OSError):
                path.unlink()
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
            raise TrainingError(str(folder), "disk full", "space for the adapter", "free space, run again") from error
        raise AdapterError(str(folder), str(error), "a folder that can be written", "choose another folder") from error


def read(directory: str | Path) -> tuple[dict, dict[str, Tensor]]:
    """(record, tensors). AdapterError: no adapter there, a pickle, a foreign file, a damaged one, an unknown format."""
    folder = Path(directory)
    path = folder / TENSORS
    if not path.is_file():
        raise AdapterError(str(folder), _instead(folder), f"a folder with {TENSORS}", _fix(folder))
    metadata, tensors = load(path)
    if "record" not in metadata:
        raise AdapterError(str(path), "safetensors of another program", f"{TENSORS} of save_adapter", _fix(folder))
    record = _record(folder / RECORD, json.loads(metadata["record"]))
    if record.get("format") != FORMAT:
        raise AdapterError(
            f"{folder / RECORD}: format", record.get("format"), FORMAT, "load it with the version that wrote it"
        )
    if record.get("digest") != digest(tensors):
        raise AdapterError(str(path), "tensors that do not match their digest", "an undamaged file", "copy it again")
    return record, tensors


def load(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """(header, tensors) of a safetensors file; AdapterError where it is none."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}
    except (OSError, SafetensorError, ValueError) as error:
        got = "a pickle, which is never read" if _pickled(path) else f"unreadable: {str(error)[:120]}"
        raise AdapterError(str(path), got, "safetensors", "copy the file again, or save the adapter again") from None


def _record(path: Path, header: dict) -> dict:
    """adapter.json where it belongs to these tensors, else the record of their own header."""
    if not path.is_file():
        return header
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise AdapterError(str(path), f"not JSON: {error}", "the record of an adapter", "copy the file again") from None
    if not isinstance(record, dict):
        raise AdapterError(str(path), type(record).__name__, "the record of an adapter", "copy the file again")
    return record if record.get("digest") == header.get("digest") else header


def plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, contiguous, no two sharing memory."""
    seen, plain = set(), {}
    for key, tensor in tensors.items():
        t = tensor.detach().cpu().contiguous()
        storage = t.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != t.nbytes:
            t = t.clone()
        seen.add(t.untyped_storage().data_ptr())
        plain[key] = t
    return plain


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _pickled(path: Path) -> bool:
    with open(path, "rb") as file:
        start = file.read(4)
    return start[:2] == b"PK" or start[:1] == b"\x80"


def _instead(folder: Path) -> str:
    if not folder.is_dir():
        return "no such folder"
    names = sorted(p.name for p in folder.iterdir())
    return ", ".join(names[:5]) or "an empty folder"


def _fix(folder: Path) -> str:
    if (folder / "adapter_config.json").is_file():
        return "a Hugging Face peft adapter: import_peft(model, directory)"
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.ckpt")):
        return "pickles are never read: convert it to safetensors where it was made"
    return "give the folder that save_adapter wrote"
