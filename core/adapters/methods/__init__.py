"""One file per method; a new file is a new method. Nothing is listed here: `find` looks at the folder, and at the entry
points `peft_atlas.methods` of other packages (name -> module or class)."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

from core.errors import ConfigError, did_you_mean

GROUP = "peft_atlas.methods"
_NOT_CONFIGURED = {"axis", "targets"}  # axis: the binder's business; targets: every method's own key


def names() -> list[str]:
    """Names that `find` knows: files of this folder, then entry points."""
    own = {module.name for module in pkgutil.iter_modules(__path__)}
    return sorted(own | {point.name for point in entry_points(group=GROUP)})


def find(name: str) -> type:
    """The method class of a name. ConfigError with the nearest name where there is none."""
    if any(module.name == name for module in pkgutil.iter_modules(__path__)):
        return _only_class(importlib.import_module(f"{__name__}.{name}"))
    for point in entry_points(group=GROUP):
        if point.name == name:
            loaded = point.load()
            return _only_class(loaded) if isinstance(loaded, ModuleType) else loaded
    raise ConfigError("adapter", name, names(), did_you_mean(name, names()))


def name_of(cls: type) -> str:
    """The name by which `find` knows a class; its file's, where it is not among the installed ones."""
    file = cls.__module__.rpartition(".")[2]
    if cls.__module__ == f"{__name__}.{file}":
        return file
    points = (point for point in entry_points(group=GROUP) if point.module == cls.__module__)
    return next((point.name for point in points if find(point.name) is cls), file)


def _only_class(module: ModuleType) -> type:
    own = [c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__]
    methods = [c for c in own if hasattr(c, "face") and not c.__name__.startswith("_")]
    if len(methods) != 1:
        got = ", ".join(c.__name__ for c in methods) or "no method class"
        raise ConfigError(module.__name__, got, "one class with a face per file", "split the file")
    return methods[0]


def options(cls: type) -> dict[str, Any]:
    """Option name -> default: the keyword arguments of the constructor, or of `select` for a selection."""
    source = cls.select if cls.face == "selection" else cls.__init__
    rows = inspect.signature(source).parameters.values()
    return {p.name: p.default for p in rows if p.kind is p.KEYWORD_ONLY and p.name not in _NOT_CONFIGURED}
