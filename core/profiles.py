"""Family profiles: the roles of a library's network families, as data. A new family is one small YAML and no code.

    # profiles/gpt_neox.yaml   query, key and value interleaved per head
    match: [gpt_neox.layers.*.attention.query_key_value, gpt_neox.embed_in]     # all must be there
    heads: config.num_attention_heads                                           # attribute path in the network
    batch_axis: {attn.q: 1}                                                     # optional; as in a Backbone
    channel_axis: {block: 1}                                                    # optional
    roles:
      attn.q: gpt_neox.layers.*.attention.query_key_value[0/3*{heads}]
      mlp.in: gpt_neox.layers.*.mlp.dense_h_to_4h
    port: {model: gpt_neox, embed: embed_in, positions: position_ids}           # optional: where virtual tokens enter

A backbone that loads any model of a library finds the profile that matches the live module tree: names drift between
versions, so the tree decides, not the class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import reduce
from pathlib import Path
from typing import Any

from torch import nn

from core.adapters.sites import resolve
from core.contracts import TokenPort
from core.errors import ConfigError, Problem, did_you_mean

KEYS = ("match", "roles", "heads", "batch_axis", "channel_axis", "port")
PORT = [field.name for field in fields(TokenPort)]


@dataclass(frozen=True)
class Profile:
    """name of the family, roles -> patterns (heads filled in), attention heads or None; the rest as in a Backbone"""

    name: str
    roles: dict[str, str | list[str]]
    heads: int | None
    batch_axis: dict[str, int]
    channel_axis: dict[str, int]
    port: TokenPort | None


def find(net: nn.Module, folder: Path, *, required: bool = True) -> Profile | None:
    """The profile in `folder` whose `match` paths the network has; of several, the one that asks for most.

    required      False: None where no profile fits
    ConfigError   no profile fits (says what the network has), or a profile is malformed"""
    fitting = []
    for file in sorted(folder.glob("*.yaml")):
        content = _read(file)
        if _has(net, content["match"]):
            fitting.append((len(content["match"]), file, content))
    if not fitting and not required:
        return None
    if not fitting:
        names = ", ".join(file.stem for file in sorted(folder.glob("*.yaml")))
        paths = [path for path, module in net.named_modules() if path and not list(module.children())]
        got = f"{type(net).__name__} with {', '.join(paths[:4])}, ..."
        raise ConfigError(
            "backbone family", got, names, f"write {folder / 'NAME.yaml'}: match, roles; see core/profiles.py"
        )
    _, file, content = max(fitting, key=lambda found: found[0])
    heads = _looked_up(net, content.get("heads"))
    port = {name: _pairs(value) for name, value in (content.get("port") or {}).items()}
    if "dim" in port:
        port["dim"] = _looked_up(net, port["dim"])
    roles = {role: _filled(pattern, heads) for role, pattern in content["roles"].items()}
    resolve(net, roles, roles)  # a role that matches nothing is an error here, not at the first adapter
    axes = [dict(content.get(key) or {}) for key in ("batch_axis", "channel_axis")]
    return Profile(file.stem, roles, heads, *axes, TokenPort(**port) if port else None)


def _looked_up(net: nn.Module, value: Any) -> Any:
    """A number, or what an attribute path in the network holds."""
    return reduce(getattr, value.split("."), net) if isinstance(value, str) else value


def _read(file: Path) -> Mapping[str, Any]:
    import yaml

    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    problems = []
    if not isinstance(content, dict):
        raise ConfigError(str(file), type(content).__name__, ", ".join(KEYS), "a mapping")
    problems += [Problem(f"{file}, {key}", "unknown key", ", ".join(KEYS)) for key in content if key not in KEYS]
    problems += [
        Problem(f"{file}, {key}", "missing", ", ".join(KEYS)) for key in ("match", "roles") if key not in content
    ]
    problems += [
        Problem(f"{file}, port.{key}", "unknown key", ", ".join(PORT), did_you_mean(key, PORT))
        for key in content.get("port", {})
        if key not in PORT
    ]
    if problems:
        raise ConfigError(problems=problems)
    return content


def _pairs(value: Any) -> Any:
    """YAML's lists as the tuples that a frozen port holds."""
    return tuple(map(_pairs, value)) if isinstance(value, list) else value


def _has(net: nn.Module, patterns: list[str]) -> bool:
    for pattern in patterns:
        try:
            resolve(net, {"match": pattern}, ["match"])
        except ConfigError:
            return False
    return True


def _filled(pattern: str | list[str], heads: Any) -> str | list[str]:
    if isinstance(pattern, list):
        return [p.replace("{heads}", str(heads)) for p in pattern]
    return pattern.replace("{heads}", str(heads))
