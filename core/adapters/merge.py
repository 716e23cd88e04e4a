"""Fold weight-face adapters into the base, and take them out again to the bit.

`merge` writes W' through whatever holds the parameter: the tensor itself, torch's parametrisation (its right
inverse), or the old weight norm (g and v are rewritten, the norm stays). `unmerge` copies the kept originals back:
subtracting would drift, 8 % of a bf16 base's weights after 20 cycles (measured on the peer).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from core.adapters import probe
from core.adapters.model import network, record, state_of
from core.adapters.seam import original, stored
from core.adapters.state import State
from core.errors import MergeError, Problem


def tolerance(dtype: torch.dtype) -> float:
    """What a norm's inverse may lose before the merge is refused: some roundings of its dtype."""
    return max(1e-5, 4 * torch.finfo(dtype).eps)


@dataclass
class MergeReport:
    """max_error   relative, over all float outputs of the example, adapter attached against adapter merged
    sites       keys that were written"""

    max_error: float
    sites: list[str]


@torch.no_grad()
def merge(model: nn.Module, name: str | None = None, *, keep_backup: bool = True) -> MergeReport:
    """Write the active changes of `name` (all active adapters where None) into the base; the adapter is then inactive.

    MergeError lists every site that has no weight form (activation, token), and hosts whose norm cannot hold W'."""
    state, net = state_of(model), network(model)
    names = list(state.routing.active) if name is None else [record(model, name).name]
    _refuse(state, names)
    if state.base_fingerprint is None:
        from core.adapters.io import fingerprint

        state.base_fingerprint = fingerprint(model)
    run = probe.Example(model, state.example if state.example is not None else model.example)
    kept = dict(state.routing.active)
    state.routing.active = {one: kept.get(one, 1.0) for one in names}
    with probe.pristine(model):
        model.eval()
        before = run()
        written = _write_all(state, net)
        for one in names:
            kept.pop(one, None)
            state.adapters[one].merged = True
        state.routing.active = {}
        error = probe.relative(run(), before)
        state.routing.active = kept
    for one in names:
        state.adapters[one].merge_error = error
    if not keep_backup:
        state.backup = {}
    return MergeReport(error, written)


def _refuse(state: State, names: list[str]) -> None:
    problems = []
    if any(a.merged for a in state.adapters.values()):
        problems.append(Problem("merge", "already merged", "one merge at a time", "unmerge(model) first"))
    for one in names:
        adapter = state.adapters[one]
        if adapter.in_place:
            problems.append(
                Problem(f"adapter {one}", "full", "an adapter beside the base", "the base already holds it")
            )
        if one in state.tokens:
            problems.append(Problem(f"adapter {one}", "virtual tokens", "weight methods", "serve it unmerged"))
        problems += [
            Problem(b.site.key, f"{adapter.method} acts on an output", "weight methods", "serve it unmerged")
            for b in adapter.bound
            if b.path == "act"
        ]
    if problems or not names:
        raise MergeError(
            problems=problems or [Problem("merge", "no active adapter", ", ".join(state.adapters), "name one")]
        )


def _write_all(state: State, net: nn.Module) -> list[str]:
    """Write every acting slot; on failure put all hosts back."""
    written: list[str] = []
    try:
        for slot in state.slots.values():
            acting = slot.acting()
            if not acting:
                continue
            path, parameter = slot.owners[0]
            host = net.get_submodule(path)
            state.backup.setdefault(path, {k: t.clone() for k, t in host.state_dict(keep_vars=False).items()})
            _write(host, parameter, slot.put(stored(host, parameter), acting), f"{path}:{parameter}")
            written += [f"{path}:{parameter}|{part.role}" for part, _ in acting]
    except MergeError:
        _restore(state, net)
        raise
    return written


def _write(host: nn.Module, parameter: str, W: Tensor, where: str) -> None:
    held = host._parameters.get(parameter)
    if held is not None:
        held.copy_(W)
        return
    inherited = getattr(original(host), parameter, None)
    if isinstance(inherited, property) and inherited.fset is not None:  # torch's parametrisation
        inherited.fset(host, W)
        now = inherited.fget(host)
    elif (norm := _old_weight_norm(host, parameter)) is not None:
        g, v = (host._parameters[f"{parameter}_{part}"] for part in "gv")
        v.copy_(W)
        g.copy_(torch.norm_except_dim(W, 2, norm.dim))
        now = norm.compute_weight(host)
        host.__dict__[parameter] = now
    else:
        raise MergeError(
            where,
            original(host).__name__,
            "a parameter, or a norm with an inverse",
            "serve the adapter unmerged; dequantise(model) makes plain layers of 4-bit ones",
        )
    error = probe.relative(now, W)
    if error > tolerance(W.dtype):
        raise MergeError(
            where,
            f"its norm gives back another weight, relative error {error:.1e}",
            f"<= {tolerance(W.dtype):.0e}",
            "serve it unmerged",
        )


def _old_weight_norm(host: nn.Module, parameter: str):
    for hook in host._forward_pre_hooks.values():
        if type(hook).__name__ == "WeightNorm" and hook.name == parameter:
            return hook
    return None


@torch.no_grad()
def unmerge(model: nn.Module) -> nn.Module:
    """The base to the bit as before `merge`, its adapters active again. MergeError without a merge or a backup."""
    state = state_of(model)
    merged = [a for a in state.adapters.values() if a.merged]
    if not merged:
        raise MergeError("unmerge", "nothing is merged", "a merged model", "merge(model) first")
    if not state.backup and any(a.bound for a in merged):
        raise MergeError("unmerge", "merged with keep_backup=False", "a kept backup", "load the base anew")
    _restore(state, network(model))
    for adapter in merged:
        adapter.merged = False
    state.routing.active = dict.fromkeys((a.name for a in merged), 1.0)
    return model


def _restore(state: State, net: nn.Module) -> None:
    for path, tensors in state.backup.items():
        now = net.get_submodule(path).state_dict(keep_vars=True)
        for key, tensor in tensors.items():
            now[key].data.copy_(tensor)
    state.backup = {}
