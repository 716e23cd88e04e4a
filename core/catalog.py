"""What exists: methods, presets, backbones, fields. Read from files and entry points; only `load` imports.

A method is a file in core/adapters/methods, or an entry point of the group `peft_atlas.methods` of some package.
A preset is a YAML file in conf/<group> (every field) or conf/<field>/<group> (that field).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core import source
from core.errors import ConfigError, did_you_mean
from core.paths import conf_dir
from core.source import Definition

ENTRY_POINTS = "peft_atlas.methods"
FACES = {
    "WeightMethod": "weight",
    "ActivationMethod": "activation",
    "TokenMethod": "token",
    "Selection": "selection",
}
_METHODS = "core.adapters.methods"


@dataclass(frozen=True)
class Method:
    """A method by name. `doc` is its file's header: formula, source, parameter count; `definition` its class."""

    name: str
    face: str
    targets: tuple[str, ...]
    doc: str
    definition: Definition | None

    @property
    def title(self) -> str:
        """First line of the header."""
        return self.doc.strip().splitlines()[0].strip() if self.doc.strip() else ""


def methods(face: str | None = None) -> list[str]:
    """Names of all methods, or of those with one face, in alphabetical order."""
    return [name for name in sorted(_targets()) if face is None or method(name).face == face]


def method(name: str) -> Method:
    """What a method says of itself. ConfigError: no such method."""
    target = _target(name)
    definition = source.read(target)
    if definition is None:  # an installed package whose source is not on the path: known by name alone
        return Method(name, "", (), "", None)
    face = definition.attributes.get("face")
    if not isinstance(face, str):
        face = next((FACES[b.split(".")[-1]] for b in definition.bases if b.split(".")[-1] in FACES), "")
    targets = definition.attributes.get("targets", ())
    targets = tuple(targets) if isinstance(targets, (tuple, list)) else ()
    return Method(name, face, targets, definition.module_doc or definition.doc, definition)


def load(name: str) -> type:
    """The method's class; imports torch. ConfigError: no such method."""
    from core.adapters import methods as files

    return files.find(name)


def _target(name: str) -> str:
    known = _targets()
    if name not in known:
        raise ConfigError("method", repr(name), sorted(known), did_you_mean(name, known))
    return known[name]


def _targets() -> dict[str, str]:
    """Method name -> dotted name of its class; ours win over an installed package's."""
    from importlib.metadata import entry_points

    found = {}
    for point in entry_points(group=ENTRY_POINTS):
        module, _, name = point.value.partition(":")
        name = name or _method_class(module, point.name) or ""
        found[point.name] = f"{module}.{name}"
    package = source.module_file(_METHODS)
    folder = package.parent if package else Path(__file__).parent / "adapters" / "methods"
    for file in sorted(folder.glob("*.py")):
        if not file.stem.startswith("_") and (name := _method_class(f"{_METHODS}.{file.stem}", file.stem)):
            found[file.stem] = f"{_METHODS}.{file.stem}.{name}"
    return found


def _method_class(module: str, stem: str) -> str | None:
    """The class of a method file: the one named like the file, else the only one that a method base stands behind."""
    names = source.names(module)
    plain = stem.replace("_", "").lower()
    named = [name for name in names if name.lower() == plain]
    if named:
        return named[0]
    found = []
    for name in names:
        definition = source.read(f"{module}.{name}")
        if definition and any(base.split(".")[-1] in FACES for base in definition.bases):
            found.append(name)
    return found[-1] if found else None


def domains() -> list[str]:
    """Fields that can be trained: folders of conf/ with a train.yaml."""
    return sorted(path.parent.name for path in conf_dir().glob("*/train.yaml"))


def groups(domain: str, extra: Iterable[Path] = ()) -> dict[str, dict[str, Path]]:
    """Group -> preset name -> file, as `group=preset` can be typed for a field; `extra` are folders of --config-dir."""
    found: dict[str, dict[str, Path]] = {}
    for root in (conf_dir(), conf_dir() / domain, *extra):
        for folder in sorted(p for p in Path(root).glob("*") if p.is_dir() and not (p / "train.yaml").exists()):
            presets = {f.relative_to(folder).with_suffix("").as_posix(): f for f in sorted(folder.rglob("*.yaml"))}
            if presets and folder.name != "hydra":
                found.setdefault(folder.name, {}).update(presets)
    return found


def preset(file: Path) -> tuple[str, dict[str, Any]]:
    """The comment that opens a preset's file, and its content."""
    import yaml

    text = file.read_text(encoding="utf-8")
    comments = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if "@package" not in line:
            comments.append(line.lstrip("# ").rstrip())
    content = yaml.safe_load(text)
    return " ".join(comments), content if isinstance(content, dict) else {}


@dataclass(frozen=True)
class BackbonePreset:
    """A backbone preset: comment, class, and the roles that YAML or source state (empty: only the network knows)."""

    name: str
    comment: str
    target: str
    roles: tuple[str, ...]


def backbones(domain: str) -> list[BackbonePreset]:
    """The backbone presets of a field, nothing imported. ConfigError: no such field."""
    if domain not in domains():
        raise ConfigError("DOMAIN", repr(domain), domains(), did_you_mean(domain, domains()))
    from core.config import roles

    found = []
    for name, file in groups(domain).get("backbone", {}).items():
        comment, content = preset(file)
        found.append(BackbonePreset(name, comment, str(content.get("_target_", "")), tuple(roles(content) or ())))
    return found
