"""Read a Hugging Face peft folder; what has an exact equivalent, and what is refused: core/adapters/peft_format.py."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.adapters import files, methods
from core.adapters.hosts import op_for
from core.adapters.io import SavedHead
from core.adapters.model import attach, detach, network, record, state_of
from core.adapters.peft_form import PeftForm
from core.adapters.peft_format import CONFIG, HEAD, PREFIX, TENSORS, cannot, token_problem, unreachable
from core.adapters.seam import stored
from core.adapters.sites import resolve
from core.errors import AdapterError, Problem, UnsupportedError

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
    method = _method(config)
    cls = methods.find(method)
    form: PeftForm = cls.peft
    _agrees(config, form)
    net = network(model)
    saved = files.load(folder / HEAD)[1] if (folder / HEAD).is_file() else {}
    if head is None and saved:
        head = SavedHead(saved)
    elif head is not None and saved:
        head.load_state_dict(saved)
    given = {"name": name, "example": example, "head": head, "seed": 0}
    if cls.face == "token":
        return _import_tokens(model, net, form, method, config, tensors, given, options)
    found, shared = _modules(form, tensors, folder)
    _fits(net, found, form, folder)
    shapes = {}
    if not form.whole:
        hosts = {path: net.get_submodule(path) for path in found}
        shapes = {
            path: tuple(op_for(host, "weight").full(stored(host, "weight")).shape) for path, host in hosts.items()
        }
    settings, fill = form.found(config, found, shapes)
    roles = _roles(model, net, found, config, form)
    known = {**getattr(model, "roles", {}), **roles}
    attach(model, method, targets=list(roles), roles=known, **given, **{**settings, **options})
    return _filled(model, name, lambda: _fill(model, net, name, fill, form, shared, folder))


def _filled(model: nn.Module, name: str, fill: Callable[[], None]) -> nn.Module:
    try:
        fill()
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


def _method(config: dict) -> str:
    """The method of ours whose form reads a folder of this type."""
    forms = {name: vars(methods.find(name)).get("peft") for name in methods.names()}  # not what is inherited
    forms = {name: form for name, form in forms.items() if form is not None}
    kind = str(config.get("peft_type"))
    found = [name for name, form in forms.items() if form.reads(kind) and form.is_for(config)]
    if not found:
        allowed = sorted({form.type for form in forms.values()})
        raise UnsupportedError(f"{CONFIG}: peft_type", kind, ", ".join(allowed), "merge it with peft")
    return found[0]


def _agrees(config: dict, form: PeftForm) -> None:
    problems = [
        Problem(f"{CONFIG}: {key}", f"{config[key]}: another definition", repr(value))
        for key, value in form.fixed.items()
        if key in config and (config[key] or False) != (value or False)
    ]
    for key, value in config.items():
        if key.endswith("dropout") and value and key not in form.keys:
            fix = f'set "{key}": 0 in {CONFIG}: outputs stay, training goes on without it'
            problems.append(Problem(f"{CONFIG}: {key}", f"{value} in training", "0", fix))
    if problems:
        raise UnsupportedError(problems=problems)


def _modules(form: PeftForm, tensors: Mapping[str, Tensor], folder: Path) -> tuple[dict, dict]:
    """(module path -> end of their name -> tensor, their tensors that belong to no module).

    AdapterError lists keys of another kind."""
    found, shared, strange = {}, {}, []
    ends = [end for known in form.ends() for end in (_parameters(known) if form.whole else (known,))]
    for key, tensor in tensors.items():
        end = next((end for end in ends if key.endswith(f".{end}")), None)
        if key.rpartition(".")[2] in form.shared:
            shared[key.rpartition(".")[2]] = tensor.float()
        elif end is None or not key.startswith(PREFIX):
            strange.append(Problem(key, str(tuple(tensor.shape)), ", ".join(ends)))
        else:
            found.setdefault(key.removeprefix(PREFIX).removesuffix(f".{end}"), {})[end] = tensor.float()
    if strange:
        raise AdapterError(problems=strange)
    if not found:
        raise AdapterError(str(folder / TENSORS), "no tensors", "an adapter")
    return found, shared


def _parameters(end: str) -> tuple[str, ...]:
    return f"{end}.weight", f"{end}.bias"


def _fits(net: nn.Module, found: Mapping[str, Mapping[str, Tensor]], form: PeftForm, folder: Path) -> None:
    modules, problems = dict(net.named_modules()), []
    for path in found:
        host = modules.get(path)
        if host is None or stored(host, "weight") is None:
            problems.append(Problem(path, "no such module with a weight", f"a module of {type(net).__name__}"))
        elif not form.whole and (reason := cannot(host, op_for(host, "weight").kind, form)):
            problems.append(Problem(path, reason, "an exact equivalent here"))
        elif reason := form.unfit(host, found[path]):
            problems.append(Problem(path, reason, "an exact equivalent here"))
    if problems:
        problems[0] = problems[0]._replace(fix=f"{folder} is for another network, or has no exact equivalent here")
        raise UnsupportedError(problems=problems)


def _roles(model: nn.Module, net: nn.Module, found, config: dict, form: PeftForm) -> dict[str, list[str]]:
    """role -> paths. The backbone's role of this very module where it has one, unless the form must have another."""
    own = getattr(model, "roles", {})
    sites = resolve(net, own, list(own)) if own else []
    named = {s.path: s.role for s in sites if s.rows is None and s.parameter == "weight"}
    roles: dict[str, list[str]] = {}
    for path in found:
        roles.setdefault(form.role(config, path, named.get(path, "peft")), []).append(path)
    return roles


def _fill(model, net, name: str, fill: Mapping[str, Mapping[str, Tensor]], form: PeftForm, shared, folder) -> None:
    state, problems, done = state_of(model), [], set()
    for bound in record(model, name).bound:
        method, path = state.method(bound), bound.site.path
        if form.whole:
            wanted = {"value": fill[path][f"{form.ends()[0]}.{bound.site.parameter}"]}
        elif reason := unreachable(net, bound, form):
            problems.append(Problem(bound.site.key, reason, "a module whose own forward alone reads its weight"))
            continue
        else:
            wanted = fill[path]
            if reason := form.agrees(method, shared):
                problems.append(Problem(bound.site.key, reason, "an exact equivalent here"))
        done.add(path)
        problems += _copy(method, wanted, path)
    problems += [
        Problem(path, "nothing here takes it", "a module that the method adapts") for path in fill.keys() - done
    ]
    if problems:
        problems[0] = problems[0]._replace(fix=f"{folder} is for another network, or has no exact equivalent here")
        raise UnsupportedError(problems=problems)


@torch.no_grad()
def _copy(method: nn.Module, wanted: Mapping[str, Tensor], where: str) -> list[Problem]:
    problems = []
    for key, tensor in wanted.items():
        own = getattr(method, key)
        if own.numel() == tensor.numel():
            own.copy_(tensor.reshape(own.shape))
        else:
            problems.append(Problem(f"{where}, {key}", str(tuple(tensor.shape)), str(tuple(own.shape))))
    return problems


def _import_tokens(model, net, form: PeftForm, method: str, config: dict, tensors, given: dict, options: dict):
    if problem := token_problem(model, net, form):
        raise UnsupportedError("adapter", problem, "an exact equivalent here", "load it with peft")
    if set(tensors) != {"prompt_embeddings"}:
        raise AdapterError(TENSORS, ", ".join(tensors), "prompt_embeddings")
    table = tensors["prompt_embeddings"].float()
    attach(model, method, **given, **{"tokens": len(table), **form.options(config), **options})

    def fill():
        if problems := _copy(state_of(model).tokens[given["name"]], {"value": table}, "tokens"):
            raise UnsupportedError(problems=problems)

    return _filled(model, given["name"], fill)
