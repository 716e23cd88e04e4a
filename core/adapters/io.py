"""Save and load an adapter, its head included, and know the base that it was trained on.

    save_adapter(model, "adapter")          adapter.safetensors and adapter.json (core/adapters/files.py)
    load_adapter(model, "adapter")          attaches and fills; another base is a FingerprintError
    fingerprint(model)                      sha256:<16 hex> of the base, unchanged by attach

A tensor's key is its site's, whatever path bound it: a file written on the call path loads on the weight path. `full`
saves all parameters and buffers, and needs a base of the same names and shapes only: every value is replaced.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor, nn

from core.adapters import files, together
from core.adapters.combine import asked, saved
from core.adapters.model import STATE, attach, detach, network, record, state_of
from core.errors import AdapterError, ConfigError, FingerprintError, Problem

SAMPLES = 64  # values of each tensor that enter the fingerprint


# The base ------------------------------------------------------------------------------------------------------------


def fingerprint(model: nn.Module) -> str:
    """`sha256:<16 hex>` of the base: names, shapes, dtypes and sampled values of parameters and persistent buffers."""
    total = hashlib.sha256()
    for key, tensor in _base(model).items():
        total.update(f"{key}{tuple(tensor.shape)}{tensor.dtype}".encode())
        flat = tensor.reshape(-1)
        sample = flat[:: max(1, flat.numel() // SAMPLES)].contiguous().cpu()
        total.update(sample.view(torch.uint8).numpy().tobytes())
    return f"sha256:{total.hexdigest()[:16]}"


def structure(model: nn.Module) -> str:
    """`sha256:<16 hex>` of the base's names and shapes alone."""
    total = hashlib.sha256()
    for key, tensor in _base(model).items():
        total.update(f"{key}{tuple(tensor.shape)}".encode())
    return f"sha256:{total.hexdigest()[:16]}"


def _base(model: nn.Module) -> dict[str, Tensor]:
    """State-dict key -> tensor of the network, adapters left out, in order of name."""
    tensors = network(model).state_dict()
    return {k: t.detach() for k, t in sorted(tensors.items()) if isinstance(t, Tensor) and not _ours(k)}


def _ours(key: str) -> bool:
    return key.split(".", 1)[0] == STATE


def _dtypes(model: nn.Module) -> str:
    return ", ".join(sorted({str(t.dtype) for t in _base(model).values() if t.is_floating_point()}))


# Tensors of an adapter -----------------------------------------------------------------------------------------------


def adapter_tensors(model: nn.Module, name: str) -> dict[str, Tensor]:
    """tensor key -> tensor of one adapter: trained and frozen ones of its methods; its head's as `head|...`."""
    state, adapter = state_of(model), record(model, name)
    if adapter.in_place:
        found = {f"{_site(key)}|full|value": t for key, t in _base_once(model).items()}
    else:
        found = {f"{bound.key}|{key}": t for bound, key, t in state.tensors(adapter)}
        if name in state.tokens:
            found |= {f"tokens|{key}": t for key, t in state.tokens[name].state_dict(keep_vars=True).items()}
    if name in state.heads:
        found |= {f"head|{key}": t for key, t in state.heads[name].state_dict(keep_vars=True).items()}
    return found


def sketches(model: nn.Module, name: str) -> dict[str, list[float]]:
    """buffer name -> [elements, a weighted sum, norm] of those that a seed makes again and no file holds, over all
    sites: numbers that another seed or generator would not give. Not a hash: processors round differently."""
    state, adapter = state_of(model), record(model, name)
    holders = [state.method(bound) for bound in adapter.bound]
    holders += [state.tokens[name]] if name in state.tokens else []
    found: dict[str, list[Tensor]] = {}
    seen = set()
    for holder in holders:
        kept = holder.state_dict(keep_vars=True)
        for key, tensor in holder.named_buffers():
            own = key not in kept and key not in getattr(holder, "resumes", ())
            if own and id(tensor) not in seen:
                seen.add(id(tensor))
                found.setdefault(key, []).append(tensor)
    return {key: _sketch(tensors) for key, tensors in sorted(found.items())}


@torch.no_grad()
def _sketch(tensors: list[Tensor]) -> list[float]:
    total = square = 0.0
    for number, tensor in enumerate(tensors, 1):
        flat = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).reshape(-1)
        sample = flat[:: max(1, flat.numel() // SAMPLES)].double().cpu()
        weights = torch.cos(number * torch.arange(1.0, len(sample) + 1, dtype=torch.float64))
        total, square = total + float(sample @ weights), square + float(sample @ sample)
    return [sum(t.numel() for t in tensors), total, square**0.5]


def _base_once(model: nn.Module) -> dict[str, Tensor]:
    """As `_base`, live, tied tensors once, under their first name."""
    seen, found = set(), {}
    for key, tensor in network(model).state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and not _ours(key) and id(tensor) not in seen:
            seen.add(id(tensor))
            found[key] = tensor
    return found


def _site(key: str) -> str:
    path, _, parameter = key.rpartition(".")
    return f"{path}:{parameter}"


# Save ----------------------------------------------------------------------------------------------------------------


def save_adapter(
    model: nn.Module, directory: str | Path, name: str = "default", *, head: nn.Module | None = None
) -> None:
    """Write one adapter and its head; the files in `directory` are replaced together or not at all.

    head   saved in the place of the adapter's own
    AdapterError: unwritable folder, a merged base; TrainingError: disk full"""
    state, adapter = state_of(model), record(model, name)
    if any(a.merged for a in state.adapters.values()):
        raise AdapterError(f"adapter {name}", "a merged base", "the base as it was loaded", "unmerge(model) first")
    tensors = adapter_tensors(model, name)
    if head is not None:
        tensors = {k: t for k, t in tensors.items() if not k.startswith("head|")}
        tensors |= {f"head|{key}": t for key, t in head.state_dict().items()}
    roles = {role: state.roles[role] for role in adapter.targets if role in state.roles}
    content = {
        "name": name,
        "method": adapter.method,
        "options": adapter.options,
        "targets": list(adapter.targets),
        "path": adapter.path,
        "roles": roles,
        "sites": [bound.key for bound in adapter.bound],
        "seeded": sketches(model, name),
        "in_place": adapter.in_place,
        "budget": adapter.budget and asdict(adapter.budget),
        "parts": saved(adapter),
        "head": any(key.startswith("head|") for key in tensors),
        "base": {
            "fingerprint": (adapter.in_place and state.base_fingerprint) or fingerprint(model),
            "structure": structure(model),
            "dtypes": _dtypes(model),
            "backbone": type(model).__name__,
        },
        "versions": {"peft-atlas": _version("peft-atlas"), "torch": torch.__version__},
    }
    files.write(directory, content, tensors)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


# Load ----------------------------------------------------------------------------------------------------------------


class SavedHead(nn.Module):
    """A head's tensors without its code: saved again with the adapter; calling it says what to pass."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        super().__init__()
        for key, tensor in tensors.items():
            *path, leaf = key.split(".")
            owner: nn.Module = self
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, nn.Module())
                owner = owner._modules[part]
            if tensor.is_floating_point():
                owner.register_parameter(leaf, nn.Parameter(tensor.clone()))
            else:
                owner.register_buffer(leaf, tensor.clone())

    def forward(self, *args, **kwargs):
        raise ConfigError(
            "head", "a head loaded without its module", "the task's head", "load_adapter(..., head=module)"
        )


def load_adapter(
    model: nn.Module,
    directory: str | Path,
    *,
    name: str | None = None,
    strict: bool = True,
    head: nn.Module | None = None,
    method: type | Mapping[str, type] | None = None,
    path: str | None = None,
    roles: Mapping | None = None,
    example: tuple[tuple, dict] | Callable | None = None,
) -> nn.Module:
    """The same model with the saved adapter attached, filled and active. A failure leaves the model as it was.

    name    under which it is attached; the saved name where None
    strict  False: another base is accepted; tensors missing, extra or of another shape are passed over
    head    the module that the saved head's tensors fill; without it they wait as a SavedHead
    method  the class, where the adapter's method is not among the installed ones; part -> class of a combination
    path    call | hook | weight | auto instead of the saved choice
    FingerprintError: another base. AdapterError lists every tensor that is missing, extra or of another shape."""
    content, tensors = files.read(directory)
    name = name or content["name"]
    _same_base(model, content, directory, strict)
    parts = {k.removeprefix("head|"): t for k, t in tensors.items() if k.startswith("head|")}
    if head is None and parts:
        head = SavedHead(parts)
    if content["in_place"] and strict:  # cannot be taken back: everything is checked first
        expected = {f"{_site(key)}|full|value": t for key, t in _base_once(model).items()}
        _compare(expected, {k: t for k, t in tensors.items() if not k.startswith("head|")}, directory)
    attach(
        model,
        name=name,
        path=path or content["path"],
        roles=roles if roles is not None else {**getattr(model, "roles", {}), **content["roles"]},
        example=example,
        head=head,
        seed=0,
        **asked(content, method),
    )
    try:
        together.make_room(model, name, {key: tuple(t.shape) for key, t in tensors.items()})
        expected = adapter_tensors(model, name)
        if strict:
            _compare(expected, tensors, directory)
            _same_seeded(sketches(model, name), content.get("seeded", {}), content, directory)
        with torch.no_grad():
            for key, tensor in expected.items():
                if key in tensors and tensors[key].shape == tensor.shape:
                    tensor.copy_(tensors[key])
    except BaseException:
        if not content["in_place"]:
            detach(model, name)
        raise
    return model


def _same_base(model: nn.Module, content: dict, directory, strict: bool) -> None:
    saved = content["base"]
    if STATE in model._modules and any(a.merged for a in state_of(model).adapters.values()):
        raise AdapterError("model", "a merged base", "the base as it was loaded", "unmerge(model) first")
    if not strict:
        return
    same_shapes = saved["structure"] == structure(model)
    if content["in_place"] and same_shapes:
        return
    now = fingerprint(model)
    if now == saved["fingerprint"]:
        return
    dtypes = _dtypes(model)
    if not same_shapes:
        what = f"other names or shapes ({type(model).__name__})"
    elif dtypes != saved["dtypes"]:
        what = f"the same names and shapes in {dtypes}"
    else:
        what = "the same names and shapes, other values"
    raise FingerprintError(
        f"{directory}: base",
        f"{now}, {what}",
        f"{saved['fingerprint']}, a {saved['backbone']} in {saved['dtypes']}",
        "load the base that the adapter was trained on (strict=False loads it anyway)",
    )


def _same_seeded(now: dict, saved: dict, content: dict, directory) -> None:
    """AdapterError where a buffer that its seed made again is not the one that the adapter was trained with."""

    def other(a: list[float], b: list[float]) -> bool:
        return a[0] != b[0] or any(
            abs(x - y) > 1e-4 * max(a[2], b[2], 1e-12) for x, y in zip(a[1:], b[1:], strict=True)
        )

    problems = [
        Problem(
            f"{directory}: buffer {key}",
            "its seed gives other values here than when the adapter was saved",
            f"torch {content['versions']['torch']} gave the saved ones",
            "use that version of torch and of the method",
        )
        for key, sketch in saved.items()
        if key not in now or other(now[key], sketch)
    ]
    if problems:
        raise AdapterError(problems=problems)


def _compare(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], directory) -> None:
    problems = [
        Problem(key, "missing in the file", str(tuple(t.shape))) for key, t in expected.items() if key not in found
    ]
    problems += [
        Problem(key, f"extra in the file, {tuple(t.shape)}") for key, t in found.items() if key not in expected
    ]
    problems += [
        Problem(key, str(tuple(found[key].shape)), str(tuple(t.shape)))
        for key, t in expected.items()
        if key in found and found[key].shape != t.shape
    ]
    if problems:
        problems[0] = problems[0]._replace(fix=f"{directory} was written for other sites, options or head")
        raise AdapterError(problems=problems)
