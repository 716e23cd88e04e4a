"""Which evaluation order a site takes: one rule, asked by the call path at every call and by `summary` once.

N rows of input, a matrix (o, i), changes of rank r:

    turned     blocks turn the input (`turn`), N > o          W' = W R^T once, R's gradient from x and dx
    input      the change acts on the input alone (`into`)    the host on x'; a fused host piece by piece
                                                              (both times a factor per output where there is one,
                                                              `rescale`)
    merged     low rank, N > 2 o i / (o + i)                  W + s B A once, thin gradients, built again in backward
    factored   low rank, fewer rows; or dropout               W x, then s B (A x) added in place
    scaled     a factor per output (`gain`), alone or after   each output times its gain
               one of the two above
    sparse     numbers added at 5 % of W's places or fewer    W' once, gradients at these places, W' again in backward
    thin       low rank on a convolution                      the same two orders (conv_call.py has its own rule)
    output     the method prefers it, or needs it (dropout);  the method's own output form
               lookups: W' would be as large as the table
    weight     any other change; a rank so high that the      W' once, dense dW' pulled back through `weight`
               dense gradient is cheaper, o i < 2 r (o + i)
               (not where the method's order is "low rank":
               its frozen A keeps less than x)

`turned`, `input`, `scaled`, `sparse` and `output` hold where every change has its full weight and rows of its own;
sums of changes on the same rows are merged, factored or weight. What each order keeps: docs/design.md.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from core.adapters.op import Op, Rows

SPARSE = 1 / 20  # share of W's numbers up to which gradients at single places are cheaper than the dense one


def order_of(tokens: int, out: int, columns: int) -> str:
    """'merged' or 'factored' for a low-rank change on a product with `tokens` rows."""
    return "merged" if tokens > crossing(out, columns) else "factored"


def crossing(out: int, columns: int) -> int:
    """Rows of input above which merging is cheaper."""
    return 2 * out * columns // (out + columns)


def thin(out: int, columns: int, ranks: Sequence[tuple[int, int]]) -> bool:
    """Whether thin gradients take fewer products than the dense one. ranks   (rank, rows) of each change"""
    return out * columns >= 2 * sum(rank * (rows + columns) for rank, rows in ranks)


@functools.lru_cache(maxsize=4096)
def apart(rows: tuple[Rows | None, ...]) -> bool:
    """Whether no two changes share an output row."""
    if len(rows) == 1:
        return True
    if None in rows:
        return False
    blocks = sorted((r.start + group * r.stride, r.size) for r in rows for group in range(r.groups))
    return all(start + size <= after for (start, size), (after, _) in itertools.pairwise(blocks))


@functools.lru_cache(maxsize=4096)
def pieces(rows: tuple[Rows | None, ...], out: int) -> tuple[tuple[int, int, int | None], ...] | None:
    """(start, size, which change or None) of all output rows in order; None where a change's rows are interleaved."""
    if rows == (None,):
        return ((0, out, 0),)
    if any(r is None or r.groups > 1 for r in rows):
        return None
    found, at = [], 0
    for start, size, which in sorted((r.start, r.size, i) for i, r in enumerate(rows)):
        if start > at:
            found.append((at, start - at, None))
        found.append((start, size, which))
        at = start + size
    return tuple(found + ([(at, out - at, None)] if at < out else []))


def _in_ranges(ops: list[Op], exact: bool) -> bool:
    return exact and ops[0].linear and not any(op.rows is not None and op.rows.groups > 1 for op in ops)


def turns(ops: list[Op], methods: list, x: Tensor, out: int, exact: bool) -> list[Tensor] | None:
    """R of every change, where all turn the input and its rows are more than the whole host's `out`; else None."""
    if x.numel() <= out * x.shape[-1] or torch.compiler.is_compiling() or not _in_ranges(ops, exact):
        return None
    found = []
    for method in methods:
        R = method.turn()
        if R is None:
            return None
        found.append(R)
    return found


def inputs(ops: list[Op], methods: list, x: Tensor, exact: bool) -> list[Tensor] | None:
    """x' of every change, where all act on the input alone; else None."""
    if not _in_ranges(ops, exact):
        return None
    found = []
    for method in methods:
        moved = method.into(x)
        if moved is None:
            return None
        found.append(moved.to(x.dtype))
    return found


def places(ops: list[Op], methods: list, shape: tuple[int, int], exact: bool) -> list[tuple[Tensor, Tensor]] | None:
    """(places, values) of every change, where all are sparse; else None. shape   (out, in) of the whole host"""
    if not exact or not ops[0].linear or any(m.sparse is None for m in methods) or torch.compiler.is_compiling():
        return None
    found = [method.sparse() for method in methods]
    return found if sum(len(p) for p, _ in found) <= SPARSE * shape[0] * shape[1] else None


def form(ops: list[Op], methods: list, factors: list, shape: tuple[int, int], exact: bool) -> str:
    """low rank | output | weight: the rule above, from `input` on.

    factors   of each method, None where it has none      shape   (out, in) of the whole host"""
    asked = any(m.needs_output() for m in methods)
    low = ops[0].linear and all(f is not None or m.gain is not None for f, m in zip(factors, methods, strict=True))
    low = low and (exact or all(m.gain is None for m in methods))
    wished = all(m.order == "low rank" for m in methods)
    if low and (asked or wished or thin(*shape, [_size(op, f, shape) for op, f in zip(ops, factors, strict=True)])):
        return "low rank"
    own = exact and len(methods) == 1 and methods[0].output is not None
    preferred = methods[0].order == "output" or (methods[0].order == "linear" and ops[0].linear)
    if asked or (own and (preferred or ops[0].kind == "Embedding")):
        return "output"
    return "weight"


def _size(op: Op, factors, shape: tuple[int, int]) -> tuple[int, int]:
    return 0 if factors is None else len(factors.A), shape[0] if op.rows is None else len(op.rows)


def factors_of(methods: list) -> list:
    return [None if m.factors is None else m.factors() for m in methods]


def describe(op: Op, method, path: str, shape: tuple[int, int]) -> str:
    """The order of one site in words: what `summary` and `atlas plan` print. shape   (out, in) of the whole host"""
    if path != "call":
        return {"hook": "output" if method.output is not None else "weight", "weight": "weight"}.get(path, "")
    like = next((t for t in [*method.parameters(), *method.buffers()] if t.is_floating_point()), torch.empty(0))
    if inputs([op], [method], like.new_empty(1, shape[1]), True) is not None:
        found = "input" if method.turn() is None else f"turned > {shape[0]:,} rows"
        return found if method.rescale is None else f"{found}, scaled"
    if places([op], [method], shape, True) is not None:
        return "sparse or weight"
    factors = factors_of([method])
    found = form([op], [method], factors, shape, True)
    if found == "low rank":
        dropped = factors[0] is not None and getattr(method, "dropout", 0) > 0
        low = "factored" if dropped else f"merged > {crossing(*shape):,} rows"
        return ", ".join([low] * (factors[0] is not None) + ["scaled"] * (method.gain is not None))
    if found == "weight" and factors[0] is not None and method.gain is None and getattr(op, "plain", False):
        return "thin or weight"
    return found
