"""Arithmetic on saved adapters of one base. The base is read, never changed; the result is an adapter like any other.

    combine_adapters(model, ["runs/a/adapter", "runs/b/adapter"], "both", how="ties", weights=[0.5, 0.5], rank=8)

Everything happens on changes D_k = f_k(W) - W (out, in) in fp32, never on A and B apart:

linear     sum_k w_k D_k
ties       D_k keep the largest `keep` of their entries by |.|; a sign per entry by sum_k w_k D_k; the weighted mean of
           those that agree with it, times `scale`                       Yadav et al. 2023, arXiv 2306.01708
dare       each entry of D_k is dropped with probability `drop`, the others times 1 / (1 - drop), then linear
dare_ties  the same, then ties without a `keep`                          Yu et al. 2023, arXiv 2311.03099
hub        s (sum_k w_k B_k) (sum_k w_k A_k): LoRA alone, one rank and scale
                                                                LoraHub, Huang et al. 2023, arXiv 2307.13269

A matrix method's result is a LoRA of rank r (the best one, by singular values; what it loses is reported) or, with
rank="full", the method `delta`. A selection's (bias, norms, last blocks) is the same selection with W + D for values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.adapters import files
from core.adapters.io import SavedHead, load_adapter, save_adapter
from core.adapters.model import STATE, attach, detach, network, record, set_active, state_of
from core.errors import AdapterError, ConfigError, Problem, UnsupportedError, did_you_mean

HOW = ("linear", "ties", "dare", "dare_ties", "hub")
Deltas = dict[str, Tensor]  # site -> (out, in) fp32


@dataclass(frozen=True)
class Combined:
    """residual: |D - D_r| / |D| over all sites, and at the worst of them; 0 where nothing was cut."""

    how: str
    weights: list[float]
    method: str
    rank: int | None
    sites: int
    residual: float
    worst: tuple[str, float]

    def __str__(self) -> str:
        form = f"{self.method} of rank {self.rank}" if self.rank else self.method
        lost = f"relative residual {self.residual:.1e}, at most {self.worst[1]:.1e} ({self.worst[0]})"
        return f"{self.how} of {len(self.weights)} adapters: {form} at {self.sites} sites, {lost}"


# The sums ------------------------------------------------------------------------------------------------------------


def linear(deltas: Sequence[Deltas], weights: Sequence[float]) -> Deltas:
    """sum_k w_k D_k"""
    return {key: sum(w * d[key] for w, d in zip(weights, deltas, strict=True)) for key in deltas[0]}


def trim(delta: Deltas, keep: float) -> Deltas:
    """The largest share `keep` of all entries of one adapter by size, the others 0; equal ones stay together."""
    size = torch.cat([t.abs().flatten() for t in delta.values()])
    kept = max(1, math.ceil(keep * len(size)))
    least = size.kthvalue(len(size) - kept + 1).values
    return {key: torch.where(t.abs() >= least, t, 0.0) for key, t in delta.items()}


def ties(deltas: Sequence[Deltas], weights: Sequence[float], *, keep: float = 0.2, scale: float = 1.0) -> Deltas:
    """Trim, elect a sign, take the mean of what agrees."""
    trimmed = [trim(d, keep) for d in deltas]
    found = {}
    for key, total in linear(trimmed, weights).items():
        sign = total.sign()
        agree = [(w * (t[key].sign() == sign) * (sign != 0), t[key]) for w, t in zip(weights, trimmed, strict=True)]
        mass = sum(w for w, _ in agree)
        found[key] = scale * sum(w * t for w, t in agree) / torch.where(mass == 0, 1.0, mass)
    return found


def dare(delta: Deltas, drop: float, generator: torch.Generator) -> Deltas:
    """Entries dropped at random, the others scaled up: the same delta on average."""
    kept = {key: torch.rand(t.shape, generator=generator) >= drop for key, t in sorted(delta.items())}
    return {key: t * kept[key].to(t) / (1 - drop) for key, t in delta.items()}


def low_rank(D: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """(B (out, r), A (r, in)): B A is nearest to D of all matrices of that rank."""
    U, S, V = torch.linalg.svd(D.double(), full_matrices=False)
    root = S[:rank].sqrt()
    return (U[:, :rank] * root).to(D), (root[:, None] * V[:rank]).to(D)


# Reading -------------------------------------------------------------------------------------------------------------


@dataclass
class Read:
    """One saved adapter: its changes, and what its LoRA factors were (None where it is no plain low-rank method)."""

    content: dict[str, Any]
    deltas: Deltas
    factors: dict[str, Any] | None
    head: nn.Module | None
    selection: bool


@torch.no_grad()
def read(model: nn.Module, directory: str | Path, name: str = "_read") -> Read:
    """The changes that a saved adapter makes to this base. FingerprintError: it belongs to another base.

    UnsupportedError names parts that make no change of a weight: outputs, tokens, training in place"""
    content, tensors = files.read(directory)
    if content["in_place"]:
        got, fix = "a network trained in place", "last_k, attention_only or delta train beside the base"
        raise UnsupportedError(str(directory), got, "changes beside the base", fix)
    load_adapter(model, directory, name=name)
    try:
        state, adapter = state_of(model), record(model, name)
        problems = [
            Problem(b.key, f"{adapter.method} acts on an output", "changes of a weight", "mix it by set_active instead")
            for b in adapter.bound
            if b.path == "act"
        ]
        if name in state.tokens:
            problems.append(Problem(str(directory), "virtual tokens", "changes of a weight", "mix them by row instead"))
        if problems:
            raise UnsupportedError(problems=problems)
        deltas: Deltas = {}
        factors: dict[str, Any] | None = {}
        for bound in adapter.bound:
            W, method = state.base(network(model), bound), state.method(bound).eval()
            change = (method.weight(W) - W).float().cpu()
            deltas[bound.site.key] = deltas.get(bound.site.key, 0) + change
            plain = method.factors() if method.factors is not None and method.gain is None else None
            factors = None if plain is None or factors is None or adapter.parts else factors | {bound.site.key: plain}
        faces = {state.method(bound).face for bound in adapter.bound}
        if len(faces) > 1:
            fix = "combine the parts apart"
            raise UnsupportedError(str(directory), f"{adapter.method}: matrices and selections", "one of them", fix)
        parts = {key.removeprefix("head|"): t for key, t in tensors.items() if key.startswith("head|")}
        return Read(content, deltas, factors, SavedHead(parts) if parts else None, faces == {"selection"})
    finally:
        detach(model, name)


# The command ---------------------------------------------------------------------------------------------------------


def combine_adapters(
    model: nn.Module,
    directories: Sequence[str | Path],
    out: str | Path,
    *,
    how: str = "linear",
    weights: Sequence[float] | None = None,
    rank: int | str | None = None,
    keep: float | None = None,
    drop: float = 0.5,
    scale: float = 1.0,
    seed: int = 0,
    head: int = 0,
    name: str = "default",
) -> Combined:
    """Write the combination of saved adapters to `out`; the model is afterwards as it was.

    weights   one per adapter; 1 / n each where None
    rank      of the LoRA that is written; "full": the method `delta`; None: the sum of the ranks where all are low-rank
              (a linear sum then loses nothing), else "full"
    keep      share of entries that ties keeps: 0.2, all after dare
    head      which adapter's head is kept; -1: none
    FingerprintError: another base. AdapterError: other sites. ConfigError: a bad option."""
    weights = list(weights) if weights is not None else [1 / max(1, len(directories))] * len(directories)
    _check(directories, how, weights, rank, keep, drop, head)
    if STATE in model._modules and any(a.merged for a in state_of(model).adapters.values()):
        raise AdapterError("model", "a merged base", "the base as it was loaded", "unmerge(model) first")
    active = dict(state_of(model).routing.active) if STATE in model._modules else None
    try:
        found = [read(model, directory) for directory in directories]
        _same_sites(directories, found)
        if how == "hub":
            total = _hub(directories, found, weights)
        else:
            deltas = [one.deltas for one in found]
            if how.startswith("dare"):
                generator = torch.Generator().manual_seed(seed)
                deltas = [dare(delta, drop, generator) for delta in deltas]
            if how.endswith("ties"):
                share = keep if keep is not None else (0.2 if how == "ties" else 1.0)
                total = ties(deltas, weights, keep=share, scale=scale)
            else:
                total = linear(deltas, weights)
        kept = found[head].head if head >= 0 else None
        return _write(model, found, total, out, how, weights, rank, kept, directories[0], name)
    finally:
        if active is not None:
            set_active(model, active)


def _check(directories, how, weights, rank, keep, drop, head) -> None:
    n, problems = len(directories), []
    if n < 1:
        problems.append(Problem("adapters", "none", "one or more folders"))
    if how not in HOW:
        problems.append(Problem("how", how, ", ".join(HOW), did_you_mean(how, HOW)))
    if len(weights) != n or not all(math.isfinite(w) for w in weights):
        problems.append(Problem("weights", ", ".join(f"{w:g}" for w in weights), f"{n} numbers, one per adapter"))
    if rank is not None and rank != "full" and (not isinstance(rank, int) or rank < 1):
        problems.append(Problem("rank", repr(rank), "1 or more, or full"))
    if keep is not None and not 0 < keep <= 1:
        problems.append(Problem("keep", f"{keep:g}", "a share, 0 < keep <= 1"))
    if not 0 <= drop < 1:
        problems.append(Problem("drop", f"{drop:g}", "a probability, 0 <= drop < 1"))
    if not -1 <= head < n:
        problems.append(Problem("head", str(head), f"0 to {n - 1}: an adapter's place in the list; -1 for none"))
    if problems:
        raise ConfigError(problems=problems)


def _same_sites(directories, found: list[Read]) -> None:
    problems, first = [], found[0].deltas
    for directory, one in zip(directories[1:], found[1:], strict=True):
        missing, more = first.keys() - one.deltas.keys(), one.deltas.keys() - first.keys()
        if missing or more:
            got = "; ".join(f"{len(keys)} {word}, such as {min(keys)}"
                            for keys, word in ((missing, "missing"), (more, "of its own")) if keys)  # fmt: skip
            fix = "combine adapters with the same targets"
            problems.append(Problem(str(directory), got, f"the sites of {directories[0]}", fix))
    if problems:
        raise AdapterError(problems=problems)


def _hub(directories, found: list[Read], weights) -> Deltas:
    for directory, one in zip(directories, found, strict=True):
        same = one.factors is not None and all(
            (f.A.shape, f.scale) == (g.A.shape, g.scale)
            for f, g in ((one.factors[key], (found[0].factors or one.factors).get(key)) for key in one.factors)
        )
        if not same:
            got = f"{one.content['method']}, not a LoRA of the same rank and scale"
            raise UnsupportedError(str(directory), got, "low-rank factors that can be added", "how=linear")
    total = {}
    for key, first in found[0].factors.items():
        A, B = (sum(w * getattr(one.factors[key], t) for w, one in zip(weights, found, strict=True)) for t in "AB")
        total[key] = (first.scale * B @ A).float().cpu()
    return total


@torch.no_grad()
def _write(model, found: list[Read], total: Deltas, out, how, weights, rank, head, first, name) -> Combined:
    """Attach a method that can hold the sum, fill it, save it, detach it."""
    content = found[0].content
    method, cut = "delta", None
    if found[0].selection:
        method = content["method"]
        load_adapter(model, first, name=name)
    else:
        if rank is None and all(one.factors is not None for one in found):
            ranks = [max(f.A.shape[0] for f in one.factors.values()) for one in found]
            rank = max(ranks) if how == "hub" else sum(ranks)
        if isinstance(rank, int):
            method, cut = "lora", min(rank, max(min(D.shape) for D in total.values()))
        roles = {**getattr(model, "roles", {}), **content["roles"]}
        options = {"rank": cut, "alpha": float(cut)} if cut else {}
        attach(model, method, targets=content["targets"], name=name, roles=roles, seed=0, **options,
               example=state_of(model).example if STATE in model._modules else None)  # fmt: skip
    try:
        state, adapter = state_of(model), record(model, name)
        lost: dict[str, tuple[float, float]] = {}
        for bound in adapter.bound:
            D, own = total[bound.site.key], state.method(bound)
            if found[0].selection:
                own.value.copy_(state.base(network(model), bound) + D.to(own.value))
                lost[bound.key] = 0.0, float(D.norm())
            elif cut:
                B, A = low_rank(D, len(own.A))
                own.A.copy_(A), own.B.copy_(B)
                lost[bound.key] = float((D - B @ A).norm()), float(D.norm())
            else:
                own.D.copy_(D)
                lost[bound.key] = 0.0, float(D.norm())
        if head is not None:
            state.heads[name] = head
        elif name in state.heads:
            del state.heads[name]
        save_adapter(model, out, name)
    finally:
        detach(model, name)
    whole = math.hypot(*(size for _, size in lost.values()))
    residual = math.hypot(*(miss for miss, _ in lost.values())) / max(whole, 1e-30)
    worst = max(((miss / max(size, 1e-30), key) for key, (miss, size) in lost.items()), default=(0.0, "-"))
    return Combined(how, weights, method, cut, len(lost), residual, (worst[1], worst[0]))
