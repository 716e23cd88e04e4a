"""To and from Hugging Face peft's adapter folders: LoRA, DoRA and IA3, exactly or not at all.

    ours                                   theirs
    LoRA, DoRA on Linear, Conv1D, ConvNd   lora_A.weight, lora_B.weight, lora_magnitude_vector
    LoRA on Embedding                      lora_embedding_A, lora_embedding_B
    IA3, no bias where the output scales   ia3_l (it scales the bias, ours does not)
    sites on rows of a fused weight        one module: A stacked, B in blocks, rank the sum
    head                                   head.safetensors beside theirs, which they do not read

Refused, with the reason: sites on the weight path (their adapters do not reach a tensor that is read outside its own
module), parameters that are not a module's `weight`, grouped or dilated or specially padded convolutions (their
branch computes something else there), trained biases, replicated layers, starts that change the base.
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

from core.adapters import files
from core.adapters.conv_op import CONV
from core.adapters.hosts import op_for
from core.adapters.methods.dora import DoRA
from core.adapters.methods.ia3 import IA3
from core.adapters.methods.lora import LoRA
from core.adapters.model import network, record, state_of
from core.adapters.seam import stored
from core.adapters.state import Bound
from core.errors import AdapterError, Problem, UnsupportedError

CONFIG, TENSORS, HEAD = "adapter_config.json", "adapter_model.safetensors", "head.safetensors"
PREFIX = "base_model.model."


def export_peft(model: nn.Module, directory: str | Path, name: str = "default") -> None:
    """Write adapter `name` as a folder that `peft.PeftModel.from_pretrained(network, directory)` reads.

    UnsupportedError lists every site without an exact equivalent."""
    state, adapter = state_of(model), record(model, name)
    methods = [state.slots[b.slot].methods[b.method] for b in adapter.bound]
    kinds = {type(m) for m in methods}
    if len(kinds) != 1 or (kind := kinds.pop()) not in (LoRA, DoRA, IA3):
        raise UnsupportedError(f"adapter {name}", adapter.method, "lora, dora, ia3", "save_adapter, or merge it")
    if adapter.merged:
        raise AdapterError(f"adapter {name}", "merged into the base", "an unmerged adapter", "unmerge(model) first")
    net, problems, groups = network(model), [], {}
    for bound, method in zip(adapter.bound, methods, strict=True):
        reason = unreachable(net, bound, kind)
        if reason:
            problems.append(
                Problem(bound.site.key, reason, "an exact equivalent in peft", "leave this site out, or merge")
            )
        groups.setdefault(bound.site.path, []).append((bound, method))
    if problems:
        raise UnsupportedError(problems=problems)
    make = _ia3 if kind is IA3 else _lora
    tensors, config = make(net, groups, adapter.options)
    config |= {
        "base_model_name_or_path": getattr(net, "name_or_path", "") or None,
        "target_modules": _targets(net, list(groups)),
        "fan_in_fan_out": all(bound.host == "Conv1D" for rows in groups.values() for bound, _ in rows),
        "inference_mode": True,
        "modules_to_save": None,
        "task_type": None,
    }
    writers: dict[str, Callable[[Path], Any]] = {
        TENSORS: lambda path: save_file(files.plain(tensors), path, metadata={"format": "pt"})
    }
    if name in state.heads:
        head = files.plain(state.heads[name].state_dict())
        writers[HEAD] = lambda path: save_file(head, path, metadata={"format": "pt"})
    text = json.dumps(config, indent=2)
    files.replace(directory, writers | {CONFIG: lambda path: path.write_text(text + "\n", encoding="utf-8")})


def unreachable(net: nn.Module, bound: Bound, kind: type) -> str:
    """Why a module of theirs at this site would compute something else; "" where it would not."""
    host = net.get_submodule(bound.site.path)
    if bound.site.parameter != "weight":
        return f"parameter {bound.site.parameter}"
    if bound.path == "weight" or bound.why.startswith("forced: "):
        return f"weight path: {bound.why}"
    return cannot(host, bound.host, kind)


def cannot(host: nn.Module, kind_of_host: str, kind: type) -> str:
    known = ("Linear", "Conv1D", "Embedding", "Conv1d", "Conv2d", "Conv3d")
    if kind_of_host not in known:
        return f"{kind_of_host} has no counterpart"
    if kind is not LoRA and kind_of_host == "Embedding":
        return "another definition on lookups"
    if isinstance(host, tuple(CONV)):
        if kind is IA3:
            return "another definition on convolutions"
        if host.groups > 1 or set(host.dilation) != {1} or host.padding_mode != "zeros":
            return f"groups {host.groups}, dilation {host.dilation}, padding mode {host.padding_mode}"
    return ""


def _targets(net: nn.Module, paths: list[str]) -> list[str] | str:
    """Paths in full; as one pattern where a path is also the end of another module's."""
    names = [key for key, _ in net.named_modules()]
    ends = any(key.endswith(f".{path}") for key in names for path in paths)
    return "|".join(re.escape(path) for path in paths) if ends else paths


def _lora(net: nn.Module, groups: dict[str, list], options: dict) -> tuple[dict[str, Tensor], dict]:
    tensors, ranks = {}, {}
    scale = next(method.scale for rows in groups.values() for _, method in rows)
    for path, rows in groups.items():
        host = net.get_submodule(path)
        op = op_for(host, "weight")
        W = op.full(stored(host, "weight")).detach().float()
        A = torch.cat([method.A for _, method in rows]).detach()
        B, m = W.new_zeros(len(W), len(A)), W.norm(dim=1)
        first = 0
        for bound, method in rows:
            index = bound.site.rows.index() if bound.site.rows else torch.arange(len(W))
            rank = len(method.A)
            B[index.to(B.device)[:, None], torch.arange(first, first + rank, device=B.device)] = method.B.detach()
            if hasattr(method, "m"):
                m[index.to(m.device)] = method.m.detach()
            first += rank
        ranks[path] = first
        conv = isinstance(host, tuple(CONV))
        if conv:
            A, B = A.reshape(len(A), -1, *host.kernel_size), B.reshape(*B.shape, *[1] * len(host.kernel_size))
            m = m.view(1, -1, *[1] * len(host.kernel_size))
        names = (
            ("lora_embedding_A", "lora_embedding_B") if op.kind == "Embedding" else ("lora_A.weight", "lora_B.weight")
        )
        for name, tensor in zip(names, (A, B), strict=True):
            tensors[f"{PREFIX}{path}.{name}"] = tensor
        if isinstance(rows[0][1], DoRA):
            tensors[f"{PREFIX}{path}.lora_magnitude_vector"] = m
    rank = max(set(ranks.values()), key=list(ranks.values()).count)
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": scale * rank,
        "rank_pattern": {re.escape(path): r for path, r in ranks.items() if r != rank},
        "alpha_pattern": {re.escape(path): scale * r for path, r in ranks.items() if r != rank},
        "lora_dropout": options.get("dropout", 0.0),
        "use_rslora": False,
        "use_dora": any(key.endswith("lora_magnitude_vector") for key in tensors),
        "bias": "none",
        "init_lora_weights": True,
    }
    return tensors, config


def _ia3(net: nn.Module, groups: dict[str, list], options: dict) -> tuple[dict[str, Tensor], dict]:
    tensors, inner, problems = {}, [], []
    for path, rows in groups.items():
        host = net.get_submodule(path)
        W = op_for(host, "weight").full(stored(host, "weight"))
        sides = {method.side for _, method in rows}
        if "in" in sides and rows[0][0].site.rows:
            problems.append(Problem(rows[0][0].site.key, "inputs scaled for part of a fused weight", "whole modules"))
        if "out" in sides and host.bias is not None:
            problems.append(Problem(rows[0][0].site.key, "a bias, which theirs scales too", "a host without bias"))
        if "in" in sides:
            inner.append(path)
            tensors[f"{PREFIX}{path}.ia3_l"] = rows[0][1].l.detach().view(1, -1)
            continue
        scales = rows[0][1].l.new_ones(len(W))
        for bound, method in rows:
            index = bound.site.rows.index() if bound.site.rows else torch.arange(len(W))
            scales[index.to(scales.device)] = method.l.detach()
        tensors[f"{PREFIX}{path}.ia3_l"] = scales.view(-1, 1)
    if problems:
        raise UnsupportedError(problems=problems)
    return tensors, {"peft_type": "IA3", "feedforward_modules": _targets(net, inner) if inner else []}
