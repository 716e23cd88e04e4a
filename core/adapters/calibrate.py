"""A data-driven start: gather, over a few batches, what the methods of an adapter ask for in `needs`.

    calibrate(model, "default", batches, loss)        loss(batch) -> () the sum of a batch's losses

"inputs"     sum x^T x (in, in), one row x per position at which the matrix is applied: of a convolution the patches,
             in the columns of the matrix view, whatever its geometry; padding positions of a batch count
"gradients"  dL/dW (out, in), L the sum of `loss` over the batches, in fp32; of any site on any path

Dropout is off and frozen statistics stay; base, buffers and random numbers are afterwards what they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from core.adapters.base import Method, Selection
from core.adapters.choose import first_tensor
from core.adapters.model import network, state_of
from core.adapters.op import Op
from core.adapters.probe import pristine
from core.adapters.seam import stored
from core.adapters.state import Bound, State
from core.adapters.together import bound_methods, by_class, counted
from core.errors import Problem, UnsupportedError

BATCHES = 8  # of training, where a run does not say
PATCHES = 2**26  # numbers of unfolded patches held at a time

Pair = tuple[Bound, Method]


def needs(model: nn.Module, name: str) -> set[str]:
    """What the methods of adapter `name` want to see: {"inputs"}, {"gradients"}, both or nothing."""
    return {method.needs for _, method in bound_methods(model, name) if method.needs}


def calibrate(model: nn.Module, name: str, batches: Iterable[Any], loss: Callable[[Any], Tensor]) -> nn.Module:
    """The same model, the methods of adapter `name` started from data. UnsupportedError names sites that show nothing.

    Call it once, before training: where tensors of an adapter change their shape, they stay the same Parameter."""
    batches = list(batches)
    state, net = state_of(model), network(model)
    for need, gather in (("inputs", _inputs), ("gradients", _gradients)):
        pairs = [pair for pair in bound_methods(model, name) if pair[1].needs == need]
        if not pairs:
            continue
        seen = gather(model, state, net, pairs, batches, loss)
        at = {id(method): i for i, (_, method) in enumerate(pairs)}
        for cls, methods in by_class([method for _, method in pairs]).items():
            own = [seen[at[id(method)]] for method in methods]
            for method in methods:  # held by `own` alone, so that a method can let go of each
                seen[at[id(method)]] = None
            with torch.no_grad(), ExitStack() as counts:
                for bound, method in pairs:
                    counts.enter_context(counted(bound, method))
                cls.calibrate(methods, own)
    return model


@contextmanager
def _resting(model: nn.Module):
    """Eval mode on plain kernels: a fused one would pass hooks and changed weights by."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with pristine(model):
            model.eval()
            for module in model.modules():  # cuDNN's recurrent layers have a backward pass in train mode alone
                module.training = isinstance(module, nn.RNNBase) and not module.dropout
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


# Gradients -----------------------------------------------------------------------------------------------------------


class _Whole(Selection):
    """W' = value, which is W itself: its gradient is dL/dW in the matrix view, on whatever path the site is bound."""

    def __init__(self, W: Tensor):
        nn.Module.__init__(self)
        self.value = nn.Parameter(W.detach())


def _gradients(model, state: State, net, pairs: list[Pair], batches, loss) -> list[Tensor | None]:
    """Each gradient leaves the backward pass as soon as it is there, so that one at a time lies on the device."""
    seen: list[Tensor | None] = [None] * len(pairs)
    values = []

    def keep(i: int):
        def hook(value):
            gradient, value.grad = value.grad, None
            gradient = gradient.cpu().float()
            seen[i] = gradient if seen[i] is None else seen[i].add_(gradient)

        return hook

    try:
        for i, (bound, _) in enumerate(pairs):
            whole = _Whole(state.base(net, bound))
            whole.value.register_post_accumulate_grad_hook(keep(i))
            state.slots[bound.slot].methods[bound.method] = whole
            values.append(whole.value)
        with _resting(model), torch.enable_grad():
            for batch in batches:
                loss(batch).backward(inputs=values)
    finally:
        for bound, method in pairs:
            state.slots[bound.slot].methods[bound.method] = method
    _all_seen(pairs, seen, "no gradient from the training loss", "leave its role out of adapter.targets")
    return [g.to(value.device) if value.device.type == "mps" else g for g, value in zip(seen, values, strict=True)]


# Inputs --------------------------------------------------------------------------------------------------------------


def _inputs(model, state: State, net, pairs: list[Pair], batches, loss) -> list[Tensor | None]:
    """By a hook on each host; where the host itself is not called, by the product that reads its weight."""
    by_host: list[Tensor | None] = [None] * len(pairs)
    by_read = list(by_host)

    def add(found: list[Tensor | None], i: int, moment: Tensor) -> None:
        found[i] = moment.clone() if found[i] is None else found[i].add_(moment)

    def hook(sites: list[int], op: Op, width: int):
        def run(host, args, kwargs):
            moment = second_moment(op, first_tensor(args, kwargs), width)
            for i in sites:  # parts of one host have one input
                add(by_host, i, moment)

        return run

    hosts: dict[str, list[int]] = {}
    reads = _Reads()
    for i, (bound, _) in enumerate(pairs):
        op = state.part(bound).op
        if op.kind != "tensor":
            hosts.setdefault(bound.site.path, []).append(i)
        if bound.path == "weight" and (op.kind == "tensor" or op.linear):
            W = stored(net.get_submodule(bound.site.path), bound.site.parameter)
            reads.watch(W, op, lambda x, i=i: add(by_read, i, x.T @ x))
    pre = [(net.get_submodule(path), hook(sites, state.part(pairs[sites[0]][0]).op, pairs[sites[0]][0].shape[1]))
           for path, sites in hosts.items()]  # fmt: skip
    parts = {bound.slot: list(state.slots[bound.slot].parts) for bound, _ in pairs}
    handles = [host.register_forward_pre_hook(run, with_kwargs=True) for host, run in pre]
    try:
        for key in parts:  # the plain weights are read: nothing at these sites acts
            state.slots[key].parts = []
        with _resting(model), torch.no_grad(), reads if reads.watched else nullcontext():
            for batch in batches:
                loss(batch)
    finally:
        for handle in handles:
            handle.remove()
        for key, kept in parts.items():
            state.slots[key].parts = kept
    seen = [read if moment is None else moment for moment, read in zip(by_host, by_read, strict=True)]
    _all_seen(pairs, seen, "its input is not seen from outside", "lora_ga, which asks for gradients alone, or lora")
    return seen


def second_moment(op: Op, x: Tensor, width: int) -> Tensor:
    """(width, width) sum x^T x over every position at which the host applies its matrix, whose columns are `width`.

    The host's own operation with the identity for a matrix gives the patches, whatever stride, padding or groups."""
    if op.linear:
        rows = x.reshape(-1, x.shape[-1]).float()
        return rows.T @ rows
    eye = torch.eye(width, device=x.device)
    total = torch.zeros(width, width, device=x.device)
    for example in x.float().reshape(-1, *x.shape[-len(op.kernel) - 1 :]).split(1):
        positions = _patches(op, example, eye[:1]).shape[1]
        step = max(1, min(width, PATCHES // max(1, positions)))
        blocks = [slice(a, a + step) for a in range(0, width, step)]
        for k, a in enumerate(blocks):
            left = _patches(op, example, eye[a])
            for b in blocks[: k + 1]:
                product = left @ (left if a == b else _patches(op, example, eye[b])).T
                total[a, b] += product
                if a != b:
                    total[b, a] += product.T
    return total


def _patches(op: Op, x: Tensor, eye: Tensor) -> Tensor:
    """(rows of eye, positions): those columns of every patch of one example; groups are further positions."""
    h = op.down(x, eye)[0]
    return h.reshape(-1, len(eye), h[0].numel()).transpose(0, 1).flatten(1)


_PRODUCTS = {getattr(torch.ops.aten, name).default for name in ("mm", "addmm", "bmm", "baddbmm")}


class _Reads(TorchDispatchMode):
    """Sees the matrix products that read a watched weight, inside any library function: by the weight's storage."""

    def __init__(self):
        super().__init__()
        self.watched: dict[int, list[tuple[Op, int, Callable[[Tensor], None]]]] = {}

    def watch(self, W: Tensor | None, op: Op, note: Callable[[Tensor], None]) -> None:
        if W is not None and W.ndim == 2:
            self.watched.setdefault(W.untyped_storage().data_ptr(), []).append((op, W.storage_offset(), note))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in _PRODUCTS:
            x, weight = args[-2:]
            if weight.ndim == 3 and weight.stride(0) == 0:  # one weight for the whole batch
                x, weight = x.flatten(0, 1), weight[0]
            # x (positions, in), weight (in, out): W or some of its rows, turned
            for op, offset, note in self.watched.get(weight.untyped_storage().data_ptr(), ()):
                first, count = (weight.storage_offset() - offset) // len(weight), weight.shape[1]
                rows = op.rows
                if rows is None or first <= rows.start < first + count:
                    note(x.float())
        return func(*args, **(kwargs or {}))


# What both share -----------------------------------------------------------------------------------------------------


def _all_seen(pairs: list[Pair], seen: list[Tensor | None], why: str, instead: str) -> None:
    problems = [
        Problem(bound.key, f"{type(method).__name__} on {bound.host}: {why}", f"{method.needs} to start from", instead)
        for (bound, method), found in zip(pairs, seen, strict=True)
        if found is None
    ]
    if problems:
        raise UnsupportedError(problems=problems)
