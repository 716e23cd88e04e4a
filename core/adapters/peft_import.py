"""Read a Hugging Face peft folder; what has an exact equivalent, and what is refused: core/adapters/peft_format.py."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.adapters import files
from core.adapters.hosts import op_for
from core.adapters.io import SavedHead
from core.adapters.methods.dora import DoRA
from core.adapters.methods.ia3 import IA3
from core.adapters.methods.lora import LoRA
from core.adapters.model import attach, detach, network, record, state_of
from core.adapters.peft_format import CONFIG, HEAD, PREFIX, TENSORS, cannot, unreachable
from core.adapters.seam import stored
from core.adapters.sites import resolve
from core.errors import AdapterError, Problem, UnsupportedError

LORA_KEYS = {
    "lora_A.weight": "A",
    "lora_B.weight": "B",
    "lora_embedding_A": "A",
    "lora_embedding_B": "B",
    "lora_magnitude_vector": "m",
}
# Options of theirs that must be at rest, and what they are called in the error.
AT_REST = {
    "modules_to_save": "whole modules trained beside the adapter",
    "layer_replication": "replicated layers",
    "trainable_token_indices": "trained rows of an embedding",
    "target_parameters": "parameters that are not a module's weight",
    "alora_invocation_tokens": "activated LoRA",
    "lora_bias": "a bias in the change",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "velora_config": "VeLoRA",
    "monteclora_config": "MonteCLoRA",
    "kasa_config": "KaSA",
    "arrow_config": "Arrow routing",
}
STARTS = (True, False, None, "gaussian", "eva", "orthogonal")


def import_peft(
    model: nn.Module,
    directory: str | Path,
    *,
    name: str = "default",
    head: nn.Module | None = None,
    example: tuple[tuple, dict] | Callable | None = None,
    **options: Any,
) -> nn.Module:
    """The same model with the adapter of a peft folder attached, filled and active.

    Paths are the network's: the folder must be for the very class that `network(model)` is. Roles are the backbone's
    where one names exactly this module, else `peft`. Lower ranks are padded with zeros, which stay zeros.
    options   of the method, in the place of the folder's (dropout=0)
    UnsupportedError: no exact equivalent; AdapterError: not such a folder, or for another network"""
    folder = Path(directory)
    config, tensors = _read(folder)
    found = _modules(config, tensors, folder)
    net = network(model)
    _fits(net, found, folder)
    saved = files.load(folder / HEAD)[1] if (folder / HEAD).is_file() else {}
    if head is None and saved:
        head = SavedHead(saved)
    elif head is not None and saved:
        head.load_state_dict(saved)
    inner = set(found) & _matching(config.get("feedforward_modules"), found) if config["peft_type"] == "IA3" else set()
    roles = _roles(model, net, found, inner)
    if config["peft_type"] == "IA3":
        method, settings, fill = IA3, {}, {path: {"l": t["l"].reshape(-1)} for path, t in found.items()}
    else:
        method = DoRA if config.get("use_dora") else LoRA
        settings, fill = _shared_scale(config, found)
    known = {**getattr(model, "roles", {}), **roles}
    attach(
        model,
        {LoRA: "lora", DoRA: "dora", IA3: "ia3"}[method],
        targets=list(roles),
        name=name,
        roles=known,
        example=example,
        head=head,
        seed=0,
        **{**settings, **options},
    )
    try:
        _fill(model, net, name, fill, method)
    except BaseException:
        detach(model, name)
        raise
    return model


def _read(folder: Path) -> tuple[dict, dict[str, Tensor]]:
    if not (folder / CONFIG).is_file():
        got = ", ".join(sorted(p.name for p in folder.iterdir())[:5]) if folder.is_dir() else "no such folder"
        raise AdapterError(str(folder), got, f"a folder with {CONFIG}", "load_adapter reads our own format")
    if not (folder / TENSORS).is_file():
        bins = any(folder.glob("*.bin"))
        got = "adapter_model.bin, a pickle, which is never read" if bins else "no tensors"
        raise AdapterError(str(folder), got, TENSORS, "save it again with safe_serialization=True" if bins else "")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise AdapterError(str(folder / CONFIG), f"not JSON: {error}", "a peft configuration") from None
    problems = []
    if config.get("peft_type") not in ("LORA", "IA3"):
        problems.append(Problem(f"{CONFIG}: peft_type", str(config.get("peft_type")), "LORA, IA3"))
    for key, spoken in AT_REST.items():
        if config.get(key):
            problems.append(Problem(f"{CONFIG}: {key}", spoken, "none", "merge it with peft, load the merged weights"))
    if config.get("bias", "none") != "none":
        problems.append(Problem(f"{CONFIG}: bias", str(config["bias"]), "none"))
    start = config.get("init_lora_weights", True)
    if start not in STARTS:
        fix = "convert it with peft: save_pretrained(path_initial_model_for_weight_conversion=...)"
        problems.append(
            Problem(f"{CONFIG}: init_lora_weights", str(start), "a start that leaves the base as it is", fix)
        )
    if problems:
        raise UnsupportedError(problems=problems)
    return config, files.load(folder / TENSORS)[1]


def _modules(config: dict, tensors: Mapping[str, Tensor], folder: Path) -> dict[str, dict[str, Tensor]]:
    """module path -> tensors by our names. AdapterError lists keys of another kind."""
    names = {"ia3_l": "l"} if config["peft_type"] == "IA3" else LORA_KEYS
    found, strange = {}, []
    for key, tensor in tensors.items():
        end = next((end for end in names if key.endswith(f".{end}")), None)
        if end is None or not key.startswith(PREFIX):
            strange.append(Problem(key, str(tuple(tensor.shape)), ", ".join(names)))
            continue
        found.setdefault(key.removeprefix(PREFIX).removesuffix(f".{end}"), {})[names[end]] = tensor.float()
    if strange:
        raise AdapterError(problems=strange)
    if not found:
        raise AdapterError(str(folder / TENSORS), "no tensors", "an adapter")
    return found


def _fits(net: nn.Module, found: Mapping[str, dict[str, Tensor]], folder: Path) -> None:
    modules = dict(net.named_modules())
    problems = []
    for path, tensors in found.items():
        host = modules.get(path)
        W = None if host is None else stored(host, "weight")
        if W is None:
            problems.append(Problem(path, "no such module with a weight", f"a module of {type(net).__name__}"))
            continue
        op = op_for(host, "weight")
        kind = IA3 if "l" in tensors else DoRA if "m" in tensors else LoRA
        reason = cannot(host, op.kind, kind)
        if kind is IA3 and not reason and tensors["l"].shape[0] != 1 and host.bias is not None:
            reason = "a bias, which theirs scales too"
        if reason:
            problems.append(Problem(path, reason, "an exact equivalent here"))
            continue
        out, columns = op.full(W).shape
        wanted = {"A": columns, "B": out, "m": out}
        got = {"A": lambda t: t[0].numel(), "B": len, "m": Tensor.numel}
        sizes = {key: (got[key](t), wanted[key]) for key, t in tensors.items() if key in wanted}
        sizes |= {key: (t.numel(), columns if t.shape[0] == 1 else out) for key, t in tensors.items() if key == "l"}
        problems += [Problem(f"{path}, {key}", str(a), str(b)) for key, (a, b) in sizes.items() if a != b]
    if problems:
        problems[0] = problems[0]._replace(fix=f"{folder} is for another network, or has no exact equivalent here")
        raise UnsupportedError(problems=problems)


def _matching(patterns: list[str] | str | None, paths) -> set[str]:
    """Paths that their list of names (or one regular expression) selects."""
    if isinstance(patterns, str):
        return {path for path in paths if re.fullmatch(patterns, path)}
    return {path for path in paths for name in patterns or [] if path == name or path.endswith(f".{name}")}


def _roles(model: nn.Module, net: nn.Module, found, inner: set[str]) -> dict[str, list[str]]:
    """role -> paths. `mlp.out` where IA3 scales the input; elsewhere the backbone's role of this very module."""
    own = getattr(model, "roles", {})
    sites = resolve(net, own, list(own)) if own else []
    named = {s.path: s.role for s in sites if s.rows is None and s.parameter == "weight"}
    roles: dict[str, list[str]] = {}
    for path in found:
        role = named.get(path, "peft")
        if inner or role == "mlp.out":
            role = "mlp.out" if path in inner else "peft" if role == "mlp.out" else role
        roles.setdefault(role, []).append(path)
    return roles


def _shared_scale(config: dict, found) -> tuple[dict, dict[str, dict[str, Tensor]]]:
    """(options, tensors): one rank and one scale for all modules; the others' B is rescaled, A and B padded."""
    ranks = {path: len(t["A"]) for path, t in found.items()}
    scales = {}
    for path, rank in ranks.items():
        alpha = _pattern(config.get("alpha_pattern") or {}, path, config["lora_alpha"])
        scales[path] = alpha / (rank**0.5 if config.get("use_rslora") else rank)
    rank, scale = max(ranks.values()), next(iter(scales.values()))
    fill = {}
    for path, tensors in found.items():
        A, B = tensors["A"].flatten(1), tensors["B"].flatten(1) * (scales[path] / scale)
        pad = rank - len(A)
        fill[path] = {"A": nn.functional.pad(A, (0, 0, 0, pad)), "B": nn.functional.pad(B, (0, pad))}
        if "m" in tensors:
            fill[path]["m"] = tensors["m"].reshape(-1)
    return {"rank": rank, "alpha": scale * rank, "dropout": config.get("lora_dropout", 0.0)}, fill


def _pattern(patterns: Mapping[str, float], path: str, default: float) -> float:
    return next((v for key, v in patterns.items() if re.match(rf"(.*\.)?({key})$", path)), default)


def _fill(model: nn.Module, net: nn.Module, name: str, fill: Mapping[str, dict[str, Tensor]], kind: type) -> None:
    state, problems = state_of(model), []
    for bound in record(model, name).bound:
        if reason := unreachable(net, bound, kind):
            problems.append(Problem(bound.site.key, reason, "a module whose own forward alone reads its weight"))
            continue
        method = state.slots[bound.slot].methods[bound.method]
        with torch.no_grad():
            for key, tensor in fill[bound.site.path].items():
                getattr(method, key).copy_(tensor)
    if problems:
        raise UnsupportedError(problems=problems)
