"""What concerns the methods of all sites together: class methods of a method, called where an adapter is trained.

penalty    a term of the training loss           adjust      between a backward pass and its optimiser step
make_room  shapes that the data decided          resumable   state that a run's checkpoint keeps, a file does not
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from core.adapters.base import Method
from core.adapters.model import STATE, record, state_of
from core.adapters.state import Bound


def bound_methods(model: nn.Module, name: str) -> list[tuple[Bound, Method]]:
    """(site, method) of adapter `name`, in network order."""
    state = state_of(model)
    return [(bound, state.method(bound)) for bound in record(model, name).bound]


def acting(model: nn.Module) -> list[Method]:
    """Every method that acts now, one per site; none where nothing is attached."""
    if STATE not in model._modules:
        return []
    state = state_of(model)
    names = [name for name, weight in state.routing.active.items() if weight]
    found = [method for name in names for _, method in bound_methods(model, name)]
    return found + [state.tokens[name] for name in names if name in state.tokens]


def by_class(methods: list[Method]) -> dict[type[Method], list[Method]]:
    groups: dict[type[Method], list[Method]] = {}
    for method in methods:
        groups.setdefault(type(method), []).append(method)
    return groups


def penalty(model: nn.Module) -> Tensor | None:
    """() the sum of the penalties of all acting methods; None where none has one."""
    terms = [term for method in acting(model) if (term := method.penalty()) is not None]
    return torch.stack([term.to(terms[0]) for term in terms]).sum() if terms else None


def adjust(model: nn.Module, step: int, steps: int) -> None:
    """Gradients are there, the optimiser's step number `step` (0-based) of `steps` is next."""
    with torch.no_grad():
        for cls, methods in by_class(acting(model)).items():
            cls.adjust(methods, step, steps)


def make_room(model: nn.Module, name: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Let methods take tensors of other shapes than their options say, where the data decided them.

    shapes   tensor key (`<site>|<tensor>`) -> shape, as a file has them"""
    for bound, method in bound_methods(model, name):
        prefix = f"{bound.key}|"
        own = {key.removeprefix(prefix): tuple(s) for key, s in shapes.items() if key.startswith(prefix)}
        if own:
            with counted(bound, method):
                method.make_room(own)


@contextmanager
def counted(bound: Bound, method: Method) -> Iterator[None]:
    """The site's count follows where the method's tensors change their shape."""
    before = sum(p.numel() for p in method.parameters() if p.requires_grad)
    yield
    bound.parameters += sum(p.numel() for p in method.parameters() if p.requires_grad) - before


def resumable(model: nn.Module) -> set[int]:
    """ids of the buffers that are no part of an adapter's file, but of what a resumed run goes on with."""
    if STATE not in model._modules:
        return set()
    methods = [m for m in state_of(model).modules() if isinstance(m, Method)]
    return {id(getattr(method, name)) for method in methods for name in method.resumes}
