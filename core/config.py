"""A config held to the constructors that it names, before anything heavy is imported.

The constructor is the schema: for every `_target_` whose source is found, keys, types, choices and missing arguments
are checked against what the source file says (core.source). All problems come in one ConfigError, with near misses.
Targets of installed libraries are checked by the library itself, when it is imported.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from core import source
from core.errors import ConfigError, DataError, Problem, did_you_mean
from core.parts import expand
from core.schema import ATTACH, COMBINATION, METRIC, PART, RUN, SWEEP, TOP, TRAINER, TUNING
from core.source import REQUIRED, UNREADABLE, Definition, Parameter

# Sections without a `_target_` of their own.
SECTIONS = {"optim": "core.training.optim.Optim", "loader": "core.data.loading.Loader"}
OPEN = "???"  # a value that a preset leaves to the user
FILE = "config.yaml"  # in a run directory
PARTS = ("backbone", "data", "task", "adapter")
_HYDRA_KEYS = {"_target_", "_partial_", "_recursive_", "_convert_", "_args_"}
# Given by the binder, never by a config.
_BINDER = {"axis"}


def check(cfg: Any) -> None:
    """ConfigError with every problem of a composed config (DictConfig or plain dict); nothing heavy is imported."""
    problems = find(plain(cfg))
    if problems:
        raise ConfigError(problems=problems)


def read(directory: Path) -> Any:
    """The config of the run in `directory`, without the lines that only Hydra reads. DataError: there is none."""
    from omegaconf import DictConfig, OmegaConf

    file = Path(directory) / FILE
    try:
        cfg = OmegaConf.load(file)
    except OSError as error:
        fix = "RUN is a folder such as outputs/FIELD/<date>_..."
        raise DataError(str(file), error.strerror or "unreadable", "the config.yaml of a run", fix) from error
    except Exception as error:  # YAML's own errors have no common base but Exception
        raise DataError(str(file), f"not YAML: {str(error).splitlines()[0]}", "the file as it was written") from error
    if not isinstance(cfg, DictConfig):
        raise DataError(str(file), "not a mapping", "the file as it was written")
    cfg.pop("defaults", None)
    return cfg


def plain(cfg: Any) -> dict[str, Any]:
    """The config as dicts and lists, interpolations resolved; a missing value stays `???`."""
    if isinstance(cfg, dict):
        return cfg
    from omegaconf import OmegaConf

    found = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    if isinstance(found, dict) and {p.name for p in SWEEP} - set(found.get("sweep") or {}):
        found["sweep"] = None  # `~sweep`: what an experiment changes of the preset is left over
    if isinstance(found, dict) and isinstance(found.get("adapter"), dict):
        whole, problems = expand(found["adapter"])
        if not problems:
            found["adapter"] = whole
    return found


def find(cfg: Mapping[str, Any]) -> list[Problem]:
    """Every problem of the config, in its own order; empty when it is sound."""
    found = _keys("", cfg, TOP)
    required = [name for name in ("seed", "domain", *PARTS, "optim", "loader", "trainer", "run") if name not in cfg]
    found += [Problem(name, "missing", fix=_choose(name)) for name in required]
    allowed = roles(cfg.get("backbone"))
    for part in PARTS:
        node = cfg.get(part)
        if isinstance(node, Mapping):
            found += _adapter(node, allowed) if part == "adapter" else _target(part, node, needed=True)
    if isinstance(cfg.get("quantise"), Mapping) and cfg["quantise"]:
        found += _target("quantise", cfg["quantise"], needed=True)
    for name, target in SECTIONS.items():
        if isinstance(cfg.get(name), Mapping):
            found += _target(name, {"_target_": target, **cfg[name]})
    for name, schema in (("trainer", TRAINER), ("run", RUN), ("metric", METRIC), ("sweep", SWEEP), ("tuning", TUNING)):
        if isinstance(cfg.get(name), Mapping):
            found += _keys(name, cfg[name], schema)
            found += _nested(name, cfg[name])
    return found + _scratch(cfg) + _sweep(cfg)


def _scratch(cfg: Mapping[str, Any]) -> list[Problem]:
    """The anchor from random weights, with pretrained ones after all: something was composed over it."""
    backbone = cfg.get("backbone")
    if (cfg.get("choices") or {}).get("adapter") != "scratch" or not isinstance(backbone, Mapping):
        return []
    got = backbone.get("pretrained", False)
    fix = "leave it out: set it in a backbone's preset, not in an experiment or on the command line"
    return [Problem("backbone.pretrained", _show(got), "false with adapter=scratch", fix)] * bool(got)


def _sweep(cfg: Mapping[str, Any]) -> list[Problem]:
    """Methods of a comparison that are no presets of the group adapter."""
    methods = (cfg.get("sweep") or {}).get("methods")
    if not isinstance(methods, list):
        return []
    from core import catalog

    presets = catalog.groups(str(cfg.get("domain"))).get("adapter", {})
    unknown = [(i, name) for i, name in enumerate(methods) if isinstance(name, str) and name not in presets]
    return [Problem(f"sweep.methods[{i}]", n, ", ".join(presets), did_you_mean(n, presets)) for i, n in unknown]


def _choose(name: str) -> str:
    return f"choose one: `{name}=...`" if name in PARTS else ""


def _target(where: str, node: Mapping[str, Any], *, needed: bool = False) -> list[Problem]:
    """Problems of one node that names a class or function."""
    if "_target_" not in node:
        return [Problem(f"{where}._target_", "missing", "the dotted name of a class", _choose(where))] * needed
    definition = _definition(f"{where}._target_", node["_target_"])
    if isinstance(definition, Problem):
        return [definition]
    found = [] if definition is None else _constructor(where, node, definition)
    return found + _nested(where, node)


def _definition(where: str, target: Any) -> Definition | Problem | None:
    """The class's source; None for libraries, which check themselves; a Problem where one of ours does not exist."""
    if not isinstance(target, str) or "." not in target:
        return Problem(where, _show(target), "the dotted name of a class")
    definition = source.read(target)
    if definition is not None:
        return None if "site-packages" in definition.file.parts else definition
    if target.split(".")[0] not in {"core", "domains"}:
        return None
    module, _, name = target.rpartition(".")
    names = source.names(module)
    if names:
        return Problem(where, target, ", ".join(names), did_you_mean(name, names))
    beside = source.siblings(module)
    return Problem(where, target, ", ".join(beside), did_you_mean(module.rpartition(".")[2], beside))


def _constructor(where: str, node: Mapping[str, Any], definition: Definition) -> list[Problem]:
    given = {key: value for key, value in node.items() if key not in _HYDRA_KEYS}
    if definition.open or "_args_" in node:
        return []
    rest = bool(node.get("_partial_"))  # what is positional is given later, by the caller
    found = _keys(where, given, [p for p in definition.parameters if p.keyword_only or not rest])
    if not rest:
        missing = [p for p in definition.parameters if p.required and p.name not in given]
        found += [Problem(f"{where}.{p.name}", "missing", _words(p.annotation)) for p in missing]
    return found


def _adapter(node: Mapping[str, Any], allowed: list[str] | None) -> list[Problem]:
    """An adapter node: one method, or a combination (core.parts)."""
    if node.get("parts") is None:
        return _method("adapter", node, allowed, ATTACH)
    if not isinstance(node["parts"], (Mapping, list)):  # a preset leaves them to the user
        return _keys("adapter", node, COMBINATION)
    node, found = expand(node)
    found += _keys("adapter", {key: value for key, value in node.items() if key != "parts"}, COMBINATION)
    for part, own in node["parts"].items() if isinstance(node["parts"], Mapping) else ():
        if "_target_" in own:
            found += _method(f"adapter.parts.{part}", own, allowed, [p for p in ATTACH if p.name in PART])
    return found


def _method(
    where: str, node: Mapping[str, Any], allowed: list[str] | None, attach: Iterable[Parameter]
) -> list[Problem]:
    """A method: its keyword arguments, what `attach` takes beside them, and roles that the backbone has."""
    found: list[Problem] = []
    if "_target_" not in node:
        return _target(where, node, needed=True)
    definition = _definition(f"{where}._target_", node["_target_"])
    if isinstance(definition, Problem):
        return [definition]
    given = {key: value for key, value in node.items() if key not in _HYDRA_KEYS}
    if definition is None:
        found += _keys(where, {k: v for k, v in given.items() if k in {p.name for p in attach}}, attach)
    else:
        options = method_options(definition)
        if not definition.open:
            found += _keys(where, given, (*options, *attach))
        missing = [p for p in options if p.required and p.name not in given]
        found += [Problem(f"{where}.{p.name}", "missing", _words(p.annotation)) for p in missing]
        if node.get("budget") is not None:
            found += _budget(f"{where}.budget", node["budget"], definition, options)
    targets = node.get("targets")
    if allowed and isinstance(targets, list):
        for i, role in enumerate(targets):
            if isinstance(role, str) and role != "all" and role not in allowed:
                found.append(Problem(f"{where}.targets[{i}]", role, ", ".join(allowed), did_you_mean(role, allowed)))
    return found


def _budget(where: str, budget: Any, definition: Definition, options: Iterable[Parameter]) -> list[Problem]:
    """A budget is solved for the option that the method names in `size`."""
    found = []
    if not re.fullmatch(r"\s*\d[\d_]*(\.\d+)?(e\+?\d+)?\s*%?\s*", str(budget), re.IGNORECASE):
        found.append(Problem(where, _show(budget), "a count (50000, 1e5) or a share of the base (1%)"))
    kind = float if definition.attributes.get("divides") else int
    names = {p.name for p in options if p.type is kind}
    if definition.attributes.get("size") not in names:
        fix = "leave the budget out, or this method"
        found.append(Problem(where, f"{definition.name} has no size to solve", "a method with one", fix))
    return found


def method_options(definition: Definition) -> tuple[Parameter, ...]:
    """The options of a method: the keyword arguments of its constructor, of `select` for a selection."""
    if any(base.split(".")[-1] == "Selection" for base in definition.bases):
        definition = source.read(definition.target, "select") or definition
    return tuple(p for p in definition.parameters if p.keyword_only and p.name not in _BINDER)


def roles(backbone: Any) -> list[str] | None:
    """The backbone's roles where YAML or source states them; None where only the live network knows (profiles)."""
    if not isinstance(backbone, Mapping):
        return None
    if isinstance(backbone.get("roles"), Mapping):
        return sorted(backbone["roles"])
    target = backbone.get("_target_")
    definition = source.read(target) if isinstance(target, str) else None
    stated = definition.attributes.get("roles") if definition else None
    return sorted(stated) if isinstance(stated, dict) and stated else None


def _nested(where: str, node: Any) -> list[Problem]:
    """Problems of nodes with a `_target_` inside this one."""
    items: Iterable = node.items() if isinstance(node, Mapping) else enumerate(node)
    found = []
    for key, value in items:
        place = f"{where}[{key}]" if isinstance(node, list) else f"{where}.{key}"
        if isinstance(value, Mapping) and "_target_" in value:
            found += _target(place, value)
        elif isinstance(value, (Mapping, list)):
            found += _nested(place, value)
    return found


def _keys(where: str, node: Mapping[str, Any], parameters: Iterable[Parameter]) -> list[Problem]:
    """Unknown keys and values of the wrong type."""
    known = {p.name: p for p in parameters}
    found = []
    for key, value in node.items():
        place = f"{where}.{key}" if where else str(key)
        if key not in known:
            found.append(Problem(place, _text(value), listing(key, known), did_you_mean(key, known)))
        elif isinstance(value, str) and value == OPEN:
            found.append(Problem(place, OPEN, _words(known[key].annotation), f"give it: `{place}=...`"))
        elif not (isinstance(value, Mapping) and "_target_" in value):  # an object in the making: checked on its own
            found += _value(place, value, known[key])
    return found


def listing(name: str, allowed: Iterable[str]) -> str:
    """The allowed names; of more than 20 the six nearest to `name`, and how many there are."""
    allowed = sorted(allowed)
    if len(allowed) <= 20:
        return ", ".join(allowed)
    near = difflib.get_close_matches(str(name), allowed, n=6, cutoff=0.0)
    return f"{', '.join(near)} ... ({len(allowed)} names in all)"


def _value(place: str, value: Any, parameter: Parameter) -> list[Problem]:
    if parameter.type is None or (value is None and parameter.default is None):
        return []
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    try:
        TypeAdapter(parameter.type, config=ConfigDict(strict=True)).validate_python(value)
        return []
    except ValidationError as error:
        at = error.errors(include_url=False)[0]["loc"]
    index = f"[{at[0]}]" if at and isinstance(at[0], int) and isinstance(value, list) else ""
    value = value[at[0]] if index else value
    choices = _choices(parameter.annotation)
    near = did_you_mean(value, choices) if isinstance(value, str) else ""
    return [Problem(place + index, _show(value), _words(parameter.annotation), near)]


def _choices(annotation: str) -> list[str]:
    """The strings of every Literal in an annotation."""
    nodes = ast.walk(ast.parse(annotation, mode="eval"))
    literals = [n.slice for n in nodes if isinstance(n, ast.Subscript) and ast.unparse(n.value) == "Literal"]
    constants = [c.value for node in literals for c in ast.walk(node) if isinstance(c, ast.Constant)]
    return [value for value in constants if isinstance(value, str)]


def _words(annotation: str) -> str:
    """An annotation as a person says it: `Literal['a', 'b'] | None` is `a, b or null`."""
    if not annotation:
        return ""
    node = ast.parse(annotation, mode="eval").body

    def say(node: ast.expr) -> str:
        if isinstance(node, ast.BinOp):
            return f"{say(node.left)} or {say(node.right)}"
        if isinstance(node, ast.Constant) and node.value is None:
            return "null"
        if isinstance(node, ast.Subscript):
            head, inner = ast.unparse(node.value), node.slice
            parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
            if head == "Literal":
                return ", ".join(str(ast.literal_eval(p)) for p in parts)
            if head == "Optional":
                return f"{say(parts[0])} or null"
            if head == "Union":
                return " or ".join(map(say, parts))
            if head in {"list", "tuple", "Sequence", "Iterable"}:
                kinds = dict.fromkeys(say(p) for p in parts if ast.unparse(p) != "...")
                return f"a list of {' or '.join(kinds)}"
            if head in {"dict", "Mapping"}:
                return f"a mapping of {say(parts[0])} to {say(parts[1])}"
        return {"dict": "a mapping", "list": "a list"}.get(ast.unparse(node), ast.unparse(node))

    return say(node)


def _show(value: Any) -> str:
    """A value with its kind: what it is, where another kind was asked for."""
    kinds = {bool: "bool", int: "int", float: "float", str: "str", list: "a list", dict: "a mapping"}
    return "null" if value is None else f"{_text(value)} ({kinds.get(type(value), type(value).__name__)})"


def _text(value: Any) -> str:
    """A value as it would stand in YAML, cut at 200 characters."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value)[:200]


def default_text(parameter: Parameter) -> str:
    """A default as it would stand in YAML; empty where there is none, or where it would have to be run."""
    return "" if parameter.default in (REQUIRED, UNREADABLE) else _text(parameter.default)
