"""Classes and functions as their source file states them: nothing is imported, so a command answers at once.

`read("core.adapters.methods.lora.LoRA")` gives the docstring, bases, class attributes and constructor. Names that the
file imports from elsewhere are followed along a class's first base.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

REQUIRED = object()  # default of a parameter that has none
UNREADABLE = object()  # a default or an attribute that is not a literal


@dataclass(frozen=True)
class Parameter:
    """One argument of a constructor. `type` is what pydantic shall check, None where the annotation is not simple."""

    name: str
    annotation: str
    type: Any
    default: Any
    keyword_only: bool

    @property
    def required(self) -> bool:
        return self.default is REQUIRED


@dataclass(frozen=True)
class Definition:
    """A class or a function. `open` is True where it takes **kwargs: then its keys cannot be checked."""

    target: str
    name: str
    file: Path
    line: int
    doc: str
    module_doc: str
    bases: tuple[str, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    parameters: tuple[Parameter, ...] = ()
    open: bool = False


def module_file(module: str) -> Path | None:
    """The file of a dotted module name on sys.path, looked up without importing it or its packages."""
    parts = module.split(".")
    for root in _roots():
        package = root.joinpath(*parts)
        for candidate in (package.with_suffix(".py"), package / "__init__.py"):
            if candidate.is_file():
                return candidate
    return None


def _roots() -> Iterator[Path]:
    yield Path(__file__).resolve().parent.parent  # ours first: what `python -m domains...` sees from any directory
    for entry in sys.path:
        yield Path(entry or ".")


@lru_cache(maxsize=512)
def _tree(file: Path, _changed: int) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def tree(file: Path) -> ast.Module:
    """The file's syntax tree; read again when the file has changed."""
    return _tree(file, file.stat().st_mtime_ns)


def docstring(file: Path) -> str:
    """The docstring that opens a file."""
    return ast.get_docstring(tree(file)) or ""


def names(module: str) -> list[str]:
    """Public classes and functions that a module defines."""
    file = module_file(module)
    if file is None:
        return []
    kinds = (ast.ClassDef, ast.FunctionDef)
    return [node.name for node in tree(file).body if isinstance(node, kinds) and not node.name.startswith("_")]


def siblings(module: str) -> list[str]:
    """Modules beside `module`, for a near miss when it does not exist."""
    parent = module.rpartition(".")[0]
    package = module_file(parent) if parent else None
    if package is None or package.name != "__init__.py":
        folders = [root.joinpath(*parent.split(".")) for root in _roots()] if parent else []
        folder = next((f for f in folders if f.is_dir()), None)
    else:
        folder = package.parent
    if folder is None:
        return []
    found = [p.stem for p in folder.glob("*.py")] + [p.name for p in folder.iterdir() if p.is_dir()]
    return sorted(name for name in set(found) if not name.startswith(("_", ".")))


def read(target: str, method: str = "__init__") -> Definition | None:
    """What `target` (module path + name) says of itself, or None where no source is found.

    method   whose arguments to read on a class: the constructor, or a classmethod such as `select`
    """
    module, _, name = target.rpartition(".")
    file = module_file(module) if module else None
    return _read(file, module, name, method, depth=0) if file else None


def _read(file: Path, module: str, name: str, method: str, depth: int) -> Definition | None:
    body = tree(file).body
    node = next((n for n in body if isinstance(n, (ast.ClassDef, ast.FunctionDef)) and n.name == name), None)
    if node is None:
        origin = _imported(body, module, name)
        return _read(*origin, method, depth + 1) if origin and depth < 8 else None
    head = dict(
        target=f"{module}.{name}",
        name=name,
        file=file,
        line=node.lineno,
        doc=ast.get_docstring(node) or "",
        module_doc=ast.get_docstring(tree(file)) or "",
    )
    if isinstance(node, ast.FunctionDef):
        parameters, is_open = _parameters(node, skip_self=False)
        return Definition(**head, parameters=parameters, open=is_open)

    base = None
    if node.bases and depth < 8:  # the first base: architecture allows one level above a contract
        first = ast.unparse(node.bases[0])
        place = (file, module, first) if any(_defines(n, first) for n in body) else _imported(body, module, first)
        base = _read(*place, method, depth + 1) if place else None
    own = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == method), None)
    fields = None if own else _dataclass_fields(node)
    if own:
        parameters, is_open = _parameters(own, skip_self=True)
    elif fields is not None:
        parameters, is_open = fields, False
    elif base:
        parameters, is_open = base.parameters, base.open
    else:  # a base outside the project: its arguments are unknown, not absent
        parameters, is_open = (), bool(node.bases) and not _known_empty(node)
    attributes = {**(base.attributes if base else {}), **_attributes(node)}
    bases = tuple(ast.unparse(b) for b in node.bases) + (base.bases if base else ())
    return Definition(**head, bases=bases, attributes=attributes, parameters=parameters, open=is_open)


def _defines(node: ast.stmt, name: str) -> bool:
    return isinstance(node, ast.ClassDef) and node.name == name


def _known_empty(node: ast.ClassDef) -> bool:
    return all(ast.unparse(b) in {"object", "nn.Module", "Module", "Protocol"} for b in node.bases)


def _imported(body: list[ast.stmt], module: str, name: str) -> tuple[Path, str, str] | None:
    """Where a name comes from: (file, module, name there), by the file's own import statements."""
    first, _, rest = name.partition(".")
    for node in body:
        if isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                anchor = module.split(".")[: -node.level]
                source = ".".join([*anchor, *filter(None, [source])])
            for alias in node.names:
                if (alias.asname or alias.name) == first:
                    inner = (f"{source}.{alias.name}", rest) if rest else (source, alias.name)
                    file = module_file(inner[0])
                    return (file, *inner) if file else None
    return None


def _parameters(function: ast.FunctionDef, *, skip_self: bool) -> tuple[tuple[Parameter, ...], bool]:
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults: list = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    if skip_self:
        positional, defaults = positional[1:], defaults[1:]
    found = [_parameter(a, d, False) for a, d in zip(positional, defaults, strict=True)]
    found += [_parameter(a, d, True) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    return tuple(found), arguments.kwarg is not None


def _parameter(argument: ast.arg, default: ast.expr | None, keyword_only: bool) -> Parameter:
    annotation = ast.unparse(argument.annotation) if argument.annotation else ""
    value = REQUIRED if default is None else literal(default)
    return Parameter(argument.arg, annotation, simple_type(annotation), value, keyword_only)


def _dataclass_fields(node: ast.ClassDef) -> tuple[Parameter, ...] | None:
    if not any("dataclass" in ast.unparse(d) for d in node.decorator_list):
        return None
    rows = [n for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
    return tuple(_parameter(ast.arg(n.target.id, n.annotation), n.value, False) for n in rows)


def _attributes(node: ast.ClassDef) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for row in node.body:
        if isinstance(row, ast.Assign) and isinstance(row.targets[0], ast.Name):
            found[row.targets[0].id] = literal(row.value)
        elif isinstance(row, ast.AnnAssign) and isinstance(row.target, ast.Name) and row.value is not None:
            found[row.target.id] = literal(row.value)
        elif isinstance(row, ast.FunctionDef) and any("property" in ast.unparse(d) for d in row.decorator_list):
            found[row.name] = UNREADABLE
    return found


def literal(node: ast.expr) -> Any:
    """The value of a literal expression; UNREADABLE for anything that would have to be run."""
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError):
        return UNREADABLE


def simple_type(annotation: str) -> Any:
    """The type that pydantic shall hold a YAML value to, or None where the annotation is no plain data.

    YAML has no tuples and no paths: a tuple or Sequence is held to a list, a Path to a string.
    """
    from typing import Any, Literal, Optional, Union

    data = {
        "int": int, "float": float, "str": str, "bool": bool, "None": None, "Path": str, "Any": Any, "list": list,
        "dict": dict, "tuple": list, "Sequence": list, "Iterable": list, "Mapping": dict, "Literal": Literal,
        "Optional": Optional, "Union": Union, "List": list, "Dict": dict, "Tuple": list, "object": Any,
    }  # fmt: skip
    sequences = {"tuple", "Tuple", "Sequence", "Iterable"}

    def build(node: ast.expr) -> Any:
        if isinstance(node, ast.Constant):
            return build(ast.parse(node.value, mode="eval").body) if isinstance(node.value, str) else node.value
        if isinstance(node, ast.Name):
            return data[node.id]
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            return Union[build(node.left), build(node.right)]  # noqa: UP007
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
            inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            outer = data[node.value.id]
            if outer is Literal:
                return Literal[tuple(ast.literal_eval(i) for i in inner)]
            if outer is Optional:
                return Optional[build(inner[0])]  # noqa: UP045
            if node.value.id in sequences:
                kinds = [build(i) for i in inner if not (isinstance(i, ast.Constant) and i.value is Ellipsis)]
                return list[Union[tuple(kinds)]]  # noqa: UP007
            built = tuple(build(i) for i in inner)
            return outer[built if len(built) > 1 else built[0]]
        raise KeyError(ast.dump(node))

    if not annotation:
        return None
    try:
        return build(ast.parse(annotation, mode="eval").body)
    except (KeyError, SyntaxError, TypeError, ValueError):
        return None
