"""Several methods as one adapter: attached, activated, counted, saved and detached under one name.

    attach(model, ["lora", "norm"])                                     each with its own defaults
    attach(model, {"lora": {"rank": 4, "targets": ["attn.q"]}, "houlsby": {"size": 16}})
    attach(model, {"first": {"method": "lora", "rank": 4}, "second": {"method": "lora", "rank": 8}})

A part has its own options, targets, path and budget, and a record of its own (state.Adapter.parts); slots know the
adapter's name alone, so activation, rows, merging and detaching need nothing further. Parts may meet at one site: there
the changes add up, W' = W + sum_i (f_i(W) - W) and h' = h + sum_i (f_i(h) - h), as those of several adapters do. A
tensor's key names its part: `<site>|<part>|<tensor>`. At most one part gives virtual tokens: `tokens|<tensor>`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, NamedTuple

from core.adapters import methods
from core.adapters.state import Adapter
from core.errors import ConfigError, PeftError, Problem

OWN = ("method", "targets", "path", "budget")  # keys of a part that are not its method's options


class Recipe(NamedTuple):
    """What is asked for: one method, or one part of a combination. `label` is the method's name."""

    part: str
    label: str
    cls: type
    targets: Any
    path: str
    budget: Any
    options: dict[str, Any]


def recipes(method: Any, targets: Any, path: str, budget: Any, options: dict[str, Any]) -> list[Recipe]:
    """One recipe per method. ConfigError lists everything that is wrong with a combination."""
    if isinstance(method, (str, type)):
        return [_recipe("", method, targets, path, budget, options)]
    given = {"targets": targets, "budget": budget, **options}
    problems = [
        Problem(f"adapter.{key}", repr(value), "options of a part", f"give it to a part: parts.NAME.{key}")
        for key, value in given.items()
        if value is not None
    ]
    parts = dict(method) if isinstance(method, Mapping) else {name: {} for name in method}
    if len(parts) < 2:
        problems.append(Problem("adapter.parts", ", ".join(map(str, parts)) or "none", "two methods or more"))
    found = []
    for part, own in parts.items():
        own = dict(own or {})
        if not re.fullmatch(r"[A-Za-z0-9_-]+", str(part)):
            problems.append(Problem("adapter.parts", repr(part), "letters, digits, - and _", "rename the part"))
            continue
        options = {key: value for key, value in own.items() if key not in OWN}
        asked = own.get("method", part)
        found.append(_recipe(part, asked, own.get("targets"), own.get("path") or path, own.get("budget"), options))
    problems += [
        Problem(f"adapter.parts.{r.part}", r.label, "a method beside the base", "it trains the base: use it alone")
        for r in found
        if getattr(r.cls, "in_place", False)
    ]
    if len(tokens := [r.part for r in found if r.cls.face == "token"]) > 1:
        problems.append(Problem("adapter.parts", ", ".join(tokens), "one part with virtual tokens", "leave others out"))
    if problems:
        raise ConfigError(problems=problems)
    return found


def _recipe(part: str, method: str | type, targets: Any, path: str, budget: Any, options: dict[str, Any]) -> Recipe:
    cls = methods.find(method) if isinstance(method, str) else method
    label = method if isinstance(method, str) else methods.name_of(cls)
    return Recipe(part, label, cls, targets, path, budget, options)


@contextmanager
def naming(part: str) -> Iterator[None]:
    """What goes wrong inside is told of this part; of a single method (no part) as it is."""
    try:
        yield
    except PeftError as error:
        if part:
            error.problems = [p._replace(where=f"part {part}: {p.where}") for p in error.problems]
            error.args = (error.problems,)
        raise


def together(name: str, parts: list[Adapter], path: str) -> Adapter:
    """The record of a combination; `gather` fills in its sites."""
    options = {f"{p.part}.{key}": value for p in parts for key, value in p.options.items()}
    targets = tuple(dict.fromkeys(role for p in parts for role in p.targets))
    return Adapter(name, "+".join(p.part for p in parts), options, targets, path, parts=parts)


def gather(adapter: Adapter) -> None:
    """The sites of a combination, from its parts."""
    if adapter.parts:
        adapter.bound = [bound for part in adapter.parts for bound in part.bound]
        adapter.skipped = [key for part in adapter.parts for key in part.skipped]


def saved(adapter: Adapter) -> list[dict[str, Any]]:
    """The parts as a file keeps them; empty for a single method."""
    return [
        {
            "part": p.part,
            "method": p.method,
            "options": p.options,
            "targets": list(p.targets),
            "path": p.path,
            "budget": p.budget and asdict(p.budget),
        }
        for p in adapter.parts
    ]


def asked(content: Mapping[str, Any], method: Any = None) -> dict[str, Any]:
    """The arguments of `attach` that make a saved adapter again.

    method   its class, or part -> class, where the methods are not among the installed ones"""
    parts: Iterable[dict] = content.get("parts") or ()
    if not parts:
        return {"method": method or content["method"], "targets": content["targets"] or None, **content["options"]}
    classes = method if isinstance(method, Mapping) else {}
    return {
        "method": {
            p["part"]: {
                "method": classes.get(p["part"], p["method"]),
                "targets": p["targets"] or None,
                "path": p["path"],
                **p["options"],
            }
            for p in parts
        }
    }
