"""To Hugging Face peft's adapter folders, exactly or not at all. Which tensors, options and hosts: each method's own
`peft` (core/adapters/peft_form.py).

    weight methods        one module of theirs per module adapted; sites on rows of a fused weight are one module
    norm                  LN_TUNING: whole modules
    prompt, prefix        PROMPT_TUNING, PREFIX_TUNING: the table; an encoder that makes it is not written
    head                  head.safetensors beside theirs, which they do not read

Refused, with the reason: methods that theirs has not or defines otherwise, sites on the weight path (their adapters do
not reach a tensor that is read outside its own module), parameters that are not a module's `weight`, grouped or dilated
or specially padded convolutions (their branch computes something else there), networks whose virtual tokens stand
elsewhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from core.adapters import files, methods
from core.adapters.conv_op import CONV
from core.adapters.hosts import op_for
from core.adapters.model import network, record, state_of
from core.adapters.peft_form import PeftForm, Place, form_of
from core.adapters.seam import stored
from core.adapters.state import Adapter, Bound, State
from core.errors import AdapterError, Problem, UnsupportedError

CONFIG, TENSORS, HEAD = "adapter_config.json", "adapter_model.safetensors", "head.safetensors"
PREFIX = "base_model.model."
TASKS = {
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}


def export_peft(model: nn.Module, directory: str | Path, name: str = "default") -> None:
    """Write adapter `name` as a folder that `peft.PeftModel.from_pretrained(network, directory)` reads.

    UnsupportedError lists every site without an exact equivalent."""
    state, adapter = state_of(model), record(model, name)
    if adapter.parts:
        got, fix = f"{adapter.method}, a combination", "save_adapter keeps it; or export its parts attached alone"
        raise UnsupportedError(f"adapter {name}", got, "one method", fix)
    cls = _class(state, adapter)
    form = form_of(cls)
    if form is None:
        raise UnsupportedError(
            f"adapter {name}", adapter.method, ", ".join(writable()), "save_adapter keeps it; or merge it"
        )
    if adapter.merged:
        raise AdapterError(f"adapter {name}", "merged into the base", "an unmerged adapter", "unmerge(model) first")
    net = network(model)
    if cls.face == "token":
        tensors, config = _tokens(model, net, form, state.tokens[name], adapter.options)
    elif cls.face == "selection":
        tensors, config = _whole_modules(net, state, adapter, form)
    else:
        tensors, config = _modules(net, state, adapter, form, cls)
    config = {"peft_type": form.type, "inference_mode": True, "modules_to_save": None, "task_type": None, **config}
    config["base_model_name_or_path"] = getattr(net, "name_or_path", "") or None
    writers: dict[str, Callable[[Path], Any]] = {
        TENSORS: lambda path: save_file(files.plain(tensors), path, metadata={"format": "pt"})
    }
    if name in state.heads:
        head = files.plain(state.heads[name].state_dict())
        writers[HEAD] = lambda path: save_file(head, path, metadata={"format": "pt"})
    text = json.dumps(config, indent=2)
    files.replace(directory, writers | {CONFIG: lambda path: path.write_text(text + "\n", encoding="utf-8")})


def writable() -> list[str]:
    """Methods that theirs has too, or that are written as LoRA."""
    return [name for name in methods.names() if form_of(methods.find(name)) is not None]


def _class(state: State, adapter: Adapter) -> type:
    if adapter.name in state.tokens:
        return type(state.tokens[adapter.name])
    return type(state.method(adapter.bound[0])) if adapter.bound else methods.find(adapter.method)


# Weight methods ------------------------------------------------------------------------------------------------------


def _modules(net, state: State, adapter: Adapter, form: PeftForm, cls: type) -> tuple[dict[str, Tensor], dict]:
    groups: dict[str, list[Bound]] = {}
    for bound in adapter.bound:
        groups.setdefault(bound.site.path, []).append(bound)
    problems, places = [], []
    for path, bounds in groups.items():
        reasons = {b.site.key: r for b in bounds if (r := unreachable(net, b, form))}
        if not reasons:
            place = _place(net, state, path, bounds)
            fused = any(rows is not None for rows in place.rows) and not form.fused
            reason = "rows of a fused weight: theirs changes whole modules" if fused else ""
            if reason := reason or form.refuses(place, adapter.options):
                reasons[bounds[0].site.key] = reason
            places.append(place)
        allowed = "an exact equivalent in peft"
        problems += [Problem(key, reason, allowed, "leave this site out, or merge") for key, reason in reasons.items()]
    if problems:
        raise UnsupportedError(problems=problems)
    with torch.no_grad():
        tensors = {
            f"{PREFIX}{place.path}.{end}": t.detach()
            for place in places
            for end, t in form.written(place, adapter.options).items()
        }
    config = form.entries(places, adapter.options)
    config["target_modules"] = targets_of(net, list(groups))
    if all(bound.host == "Conv1D" for bound in adapter.bound):
        config["fan_in_fan_out"] = True
    return tensors, config


def _place(net: nn.Module, state: State, path: str, bounds: list[Bound]) -> Place:
    host = net.get_submodule(path)
    op = op_for(host, "weight")
    W = op.full(stored(host, "weight")).detach().float()
    found = tuple(state.method(bound) for bound in bounds)
    return Place(path, host, op, W, tuple(bound.site.rows for bound in bounds), found)


def unreachable(net: nn.Module, bound: Bound, form: PeftForm) -> str:
    """Why a module of theirs at this site would compute something else; "" where it would not."""
    host = net.get_submodule(bound.site.path)
    if bound.site.parameter != "weight":
        return f"parameter {bound.site.parameter}"
    if bound.path == "weight" or bound.why.startswith("forced: "):
        return f"weight path: {bound.why}"
    return cannot(host, bound.host, form)


def cannot(host: nn.Module, kind: str, form: PeftForm) -> str:
    if kind not in form.hosts:
        return f"{kind}: theirs has no counterpart, or another definition; {', '.join(form.hosts)} are equal"
    if isinstance(host, tuple(CONV)) and (host.groups > 1 or set(host.dilation) != {1} or host.padding_mode != "zeros"):
        return f"groups {host.groups}, dilation {host.dilation}, padding mode {host.padding_mode}"
    return ""


def targets_of(net: nn.Module, paths: list[str]) -> list[str] | str:
    """Paths in full; as one pattern where a path is also the end of another module's."""
    names = [key for key, _ in net.named_modules()]
    ends = any(key.endswith(f".{path}") for key in names for path in paths)
    return "|".join(re.escape(path) for path in paths) if ends else paths


# Selections and tokens -----------------------------------------------------------------------------------------------


def _whole_modules(net, state: State, adapter: Adapter, form: PeftForm) -> tuple[dict[str, Tensor], dict]:
    """Every parameter of each module that the selection trains: theirs replaces modules."""
    trained = {(b.site.path, b.site.parameter): state.method(b).value.detach() for b in adapter.bound}
    paths = list(dict.fromkeys(path for path, _ in trained))
    (end,) = form.ends()
    tensors = {
        f"{PREFIX}{path}.{end}.{key}": trained.get((path, key), t.detach()).reshape(t.shape)
        for path in paths
        for key, t in net.get_submodule(path)._parameters.items()
        if t is not None
    }
    return tensors, {**form.entries([], adapter.options), "target_modules": targets_of(net, paths)}


def task_of(net: nn.Module) -> str | None:
    """Their task type of a transformers class."""
    return next((task for end, task in TASKS.items() if type(net).__name__.endswith(end)), None)


def token_problem(model: nn.Module, net: nn.Module, form: PeftForm) -> str:
    """Why virtual tokens of theirs would stand elsewhere; "" where they would not."""
    port = getattr(model, "token_port", None)
    if task_of(net) is None:
        return f"{type(net).__name__}: theirs knows {', '.join(TASKS)}"
    if port is not None and form.type == "PROMPT_TUNING" and (port.model is None or port.leading):
        place = "behind the class token" if port.model else "before the first block"
        return f"virtual tokens enter {place} here, in front of the embeddings there"
    return ""


def _tokens(model, net, form: PeftForm, method: nn.Module, options: dict) -> tuple[dict[str, Tensor], dict]:
    if problem := token_problem(model, net, form):
        raise UnsupportedError("adapter", problem, "an exact equivalent in peft", "save_adapter keeps it")
    with torch.no_grad():
        table = form.write(method, options)["prompt_embeddings"]
    config = form.entries([], options) | {"task_type": task_of(net), "num_virtual_tokens": len(table)}
    return {"prompt_embeddings": table.detach()}, config | {"num_transformer_submodules": 1}
