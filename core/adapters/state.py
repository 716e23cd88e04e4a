"""What an adapted model carries: one `State` on its root, one `Slot` per host parameter, names and numbers only.

Hosts hold a plain reference to their slot in `__dict__` (seam.ADAPTERS), never a registered child: `nn.Sequential`
would call it as its last layer. Records keep strings (paths, names), so that a deepcopy is independent and a pickle
is possible.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from core.adapters import evaluation
from core.adapters.base import Method, WeightMethod
from core.adapters.call import InWeightSpace, compute_dtype, rescaled, without_autocast
from core.adapters.op import Op, Rows, precise
from core.adapters.orders import apart, form, inputs, pieces
from core.adapters.seam import stored
from core.adapters.sites import Site
from core.errors import ConfigError

if TYPE_CHECKING:
    from core.adapters.budget import Budget


class Routing:
    """Which adapters act: `active` name -> weight, or `rows` (one adapter name per batch row) inside `mix`."""

    def __init__(self):
        self.active: dict[str, float] = {}
        self.rows: list[str | None] | None = None

    def index(self, name: str, device) -> Tensor:
        """(rows,) the batch rows of adapter `name`."""
        return torch.tensor([i for i, row in enumerate(self.rows) if row == name], device=device)


@dataclass
class Bound:
    """A site as it was bound. `slot` names its entry in State.slots, `method` its entry in that slot's methods; `part`
    is the part of a combination that it belongs to."""

    site: Site
    path: str  # call | hook | weight | act | token
    why: str
    host: str
    shape: tuple[int, ...]
    slot: str
    method: str
    parameters: int = 0
    part: str = ""

    @property
    def key(self) -> str:
        """Names it in files and tables: the site's key; the part as well where parts may share a site."""
        return f"{self.site.key}|{self.part}" if self.part else self.site.key


@dataclass
class Adapter:
    """The record of one named adapter. A combination's has one such record per part, with the combination's name; its
    own `bound` are theirs together (core/adapters/combine.py)."""

    name: str
    method: str
    options: dict
    targets: tuple[str, ...]
    path: str = "auto"
    bound: list[Bound] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)  # selection: parameters that no forward reads
    in_place: bool = False
    budget: Budget | None = None  # what `budget` was solved to
    part: str = ""  # of a combination: what this part is called in it
    parts: list[Adapter] = field(default_factory=list)
    merged: bool = False
    merge_error: float | None = None


@dataclass(frozen=True)
class Part:
    """One adapter's method at a slot."""

    adapter: str
    role: str
    method: str
    op: Op | None
    batch_axis: int = 0
    rows: Rows | None = None  # act path: the channels of a fused output that are its own


class Slot(nn.Module):
    """All methods on one host parameter (or on one module's output)."""

    def __init__(self, routing: Routing, path: str, key: str):
        super().__init__()
        self.routing, self.path, self.key = routing, path, key
        self.methods = nn.ModuleDict()
        self.parts: list[Part] = []
        self.owners: list[tuple[str, str]] = []  # (module path, parameter): several where the parameter is tied
        self.hits = 0  # reads since the last reset: consumption is seen without any function mode

    def add(self, part: Part, method: nn.Module) -> None:
        self.parts.append(part)
        self.methods[part.method] = method

    def remove(self, adapter: str) -> None:
        for part in [p for p in self.parts if p.adapter == adapter]:
            self.parts.remove(part)
            del self.methods[part.method]

    def hit(self) -> None:
        if not torch.compiler.is_compiling():  # a counter would make the compiler guard on its value
            self.hits += 1

    def acting(self) -> list[tuple[Part, float]]:
        active = self.routing.active
        return [(part, active[part.adapter]) for part in self.parts if active.get(part.adapter)]

    def routed(self) -> list[list[Part]]:
        """The parts of each adapter that some row goes through: roles of a fused weight, or a combination's parts."""
        groups: dict[str, list[Part]] = {}
        for part in self.parts:
            if part.adapter in self.routing.rows:
                groups.setdefault(part.adapter, []).append(part)
        return list(groups.values())

    # weight path -----------------------------------------------------------------------------------------------------

    def compute(self, host: nn.Module, W: Tensor) -> Tensor:
        """W' in the host's own layout and dtype: what the computed property returns."""
        self.hit()
        if self.routing.rows is not None:
            if self.routed():
                path, parameter = self.owners[0]
                allowed = "rows need the call or act path"
                fix = "run these rows one adapter at a time"
                raise ConfigError(f"{path}:{parameter}", "mix on the weight path", allowed, fix)
            return W
        acting = self.acting()
        if not acting:
            return W
        with without_autocast(W):  # the change in fp32, rounded once, by the product that reads W'
            return self.put(W, acting)

    def put(self, W: Tensor, acting: list[tuple[Part, float]]) -> Tensor:
        return evaluation.whole(acting[0][0].op).put(W, self.matrix(W, acting).to(W.dtype))

    def matrix(self, W: Tensor, acting: list[tuple[Part, float]]) -> Tensor:
        """The host's full matrix with every acting change in place: W + sum_i w_i (f_i(W) - W), fp32."""
        full = precise(acting[0][0].op.full(W))
        if self.exact(acting):
            rows = tuple(part.op.rows for part, _ in acting)
            if rows == (None,):
                return self.methods[acting[0][0].method].weight(full)
            cut = pieces(rows, len(full))
            if cut is None:  # interleaved rows
                for part, _ in acting:
                    own = part.op.rows.take(full, 0)
                    full = part.op.rows.give(full, self.methods[part.method].weight(own), 0)
                return full
            made = [
                full.narrow(0, start, size)
                if which is None
                else self.methods[acting[which][0].method].weight(full.narrow(0, start, size))
                for start, size, which in cut
            ]
            return made[0] if len(made) == 1 else torch.cat(made)
        total = full
        for part, weight in acting:
            rows = part.op.rows
            M = full if rows is None else rows.take(full, 0)
            change = weight * (self.methods[part.method].weight(M) - M)
            total = total + change if rows is None else total.index_add(0, rows.index(full.device), change)
        return total

    @staticmethod
    def exact(acting: list[tuple[Part, float]]) -> bool:
        """Whether every change has its full weight, and output rows of its own."""
        return all(weight == 1.0 for _, weight in acting) and apart(tuple(part.op.rows for part, _ in acting))

    # call path -------------------------------------------------------------------------------------------------------

    def call(self, host: nn.Module, inner, x: Tensor) -> Tensor:
        self.hit()
        if self.routing.rows is not None:
            return self.mixed(host, inner, x)
        acting = self.acting()
        return self.changed(host, inner, x, acting) if acting else inner(x)

    def changed(
        self, host: nn.Module, inner, x: Tensor, acting: list[tuple[Part, float]], y: Tensor | None = None
    ) -> Tensor:
        """The host's output with `acting` in place. `y`, where given, is the host's own output, already computed."""
        held = host._parameters.get("weight")
        W = host.weight if held is None else held
        again = partial(getattr, host, "weight") if held is None else None
        b = getattr(host, "bias", None)
        ops = [part.op for part, _ in acting]
        methods: list[WeightMethod] = [self.methods[part.method] for part, _ in acting]
        exact = self.exact(acting)
        dtype = compute_dtype(x, W)
        if y is None and (turned := evaluation.turned(x, W, b, again, ops, methods, exact, dtype)) is not None:
            return rescaled(turned, b, ops, methods)
        if y is None and (moved := inputs(ops, methods, x, exact)) is not None:
            y = inner(moved[0]) if ops[0].rows is None else evaluation.piecewise(x, W, b, ops, moved)
            return rescaled(y, b, ops, methods)
        shape = tuple(ops[0].full(W).shape)

        def made():
            return self.matrix(held if again is None else again(), acting)

        if y is None and (added := evaluation.sparse(x, b, made, shape, ops, methods, exact, dtype)) is not None:
            return added
        if y is None and (thin := evaluation.convolved(x, W, b, acting, methods)) is not None:
            return thin
        given = y is not None and all(m.output is not None for m in methods)
        compiling = torch.compiler.is_compiling()  # our own functions would break the graph
        factors = evaluation.factors_in_full(methods, x) if ops[0].linear and not compiling else [None] * len(methods)
        order = form(ops, methods, factors, shape, exact)
        if compiling and order == "low rank":
            order = "output" if any(m.needs_output() for m in methods) else "weight"
        if given or order == "output":
            y = inner(x) if y is None else y
            total = y
            for method, op, (_, weight) in zip(methods, ops, acting, strict=True):
                old = op.take(y)
                new = evaluation.output(method, op, x, old, W, b).to(y.dtype)
                change = new if weight == 1.0 and len(acting) == 1 else op.take(total) + weight * (new - old)
                total = op.give(total, change)
            return total
        if compiling:
            return evaluation.whole(ops[0]).apply(x, self.matrix(W, acting).to(dtype), b)
        with without_autocast(x):
            if order == "low rank":
                return evaluation.low_rank(x, W, b, again, ops, methods, factors, [w for _, w in acting], dtype)
            parameters = [p for m in methods for p in m.parameters()]
            return InWeightSpace.apply(x, b, made, evaluation.whole(ops[0]), dtype, *parameters)

    def mixed(self, host: nn.Module, inner, x: Tensor, y: Tensor | None = None) -> Tensor:
        y = inner(x) if y is None else y
        for parts in self.routed():
            index, axis = self._rows_of(parts[0], y), parts[0].batch_axis
            picked = y.index_select(axis, index)
            new = self.changed(host, inner, x.index_select(axis, index), [(part, 1.0) for part in parts], picked)
            y = y.index_copy(axis, index, new.to(y.dtype))
        return y

    def _rows_of(self, part: Part, y: Tensor) -> Tensor:
        rows = self.routing.rows
        if y.shape[part.batch_axis] != len(rows):
            raise ConfigError(
                f"{self.owners[0][0]}|{part.role}", f"axis {part.batch_axis} of {tuple(y.shape)}",
                f"{len(rows)} batch rows", "declare batch_axis for this role; folded windows cannot be mixed",
            )  # fmt: skip
        return self.routing.index(part.adapter, y.device)

    # act path --------------------------------------------------------------------------------------------------------

    def act(self, host: nn.Module, x: Tensor, output):
        self.hit()
        container = output if isinstance(output, (tuple, list)) else None
        h = output[0] if container is not None else output
        if self.routing.rows is not None:
            for parts in self.routed():
                index, axis = self._rows_of(parts[0], h), parts[0].batch_axis
                pick = [t.index_select(axis, index) for t in (h, x)]
                h = h.index_copy(axis, index, self.moved([(part, 1.0) for part in parts], *pick))
        elif acting := self.acting():
            h = self.moved(acting, h, x)
        return h if container is None else type(container)((h, *container[1:]))

    def moved(self, acting: list[tuple[Part, float]], h: Tensor, x: Tensor) -> Tensor:
        """h + sum_i w_i (f_i(h, x) - h)"""
        if len(acting) == 1 and acting[0][1] == 1.0:
            return self.acted(acting[0][0], h, x)
        return h + sum(weight * (self.acted(part, h, x) - h) for part, weight in acting)

    def acted(self, part: Part, h: Tensor, x: Tensor) -> Tensor:
        method = self.methods[part.method]
        if part.rows is None:
            return _in_fp32(method, h, x)
        own = part.rows.take(h, method.axis)
        return part.rows.give(h, _in_fp32(method, own, x), method.axis)


def _in_fp32(method: nn.Module, h: Tensor, x: Tensor) -> Tensor:
    """An activation method in its own precision (autocast decides where it is on), the result in the network's."""
    if torch.is_autocast_enabled(h.device.type):
        return method(h, x).to(h.dtype)
    dtype = next(method.parameters()).dtype
    return method(h.to(dtype), x.to(dtype) if x.is_floating_point() else x).to(h.dtype)


class State(nn.Module):
    """Everything that attaching adds to a model; registered on its root as `_peft`."""

    def __init__(self):
        super().__init__()
        self.routing = Routing()
        self.adapters: dict[str, Adapter] = {}
        self.slots = nn.ModuleDict()
        self.heads = nn.ModuleDict()
        self.tokens = nn.ModuleDict()  # adapter name -> TokenMethod
        self.requires_grad_before: dict[str, bool] = {}
        self.thinned: list[str] = []
        self.backup: dict[str, dict[str, Tensor]] = {}  # module path -> its tensors before the merge
        self.base_fingerprint: str | None = None
        self.example = None
        self.roles: dict = {}
        self.batch_axis: dict[str, int] = {}

    def method(self, bound: Bound) -> Method:
        return self.slots[bound.slot].methods[bound.method]

    def part(self, bound: Bound) -> Part:
        return next(part for part in self.slots[bound.slot].parts if part.method == bound.method)

    def base(self, net: nn.Module, bound: Bound) -> Tensor:
        """(out, in) at least fp32: the base's own matrix at a site, without a gradient."""
        stays = stored(net.get_submodule(bound.site.path), bound.site.parameter)
        return precise(self.part(bound).op.matrix(stays.detach()))

    def tensors(self, adapter: Adapter) -> Iterator[tuple[Bound, str, Tensor]]:
        """(site, name in its method, parameter or persistent buffer) of one adapter's sites. What several sites share
        is listed once, at the first of them: so it is counted once, trained once, saved once."""
        seen = set()
        for bound in adapter.bound:
            for name, tensor in self.method(bound).state_dict(keep_vars=True).items():
                if isinstance(tensor, Tensor) and id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield bound, name, tensor
