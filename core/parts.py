"""A combination in a config: `adapter.parts`, each part a preset of the group adapter with changes of its own.

    adapter=combine adapter.parts=[lora,bitfit]
    adapter=combine 'adapter.parts={lora:{rank:4,targets:[attn.q]},houlsby:{size:16}}'
    adapter=mam adapter.parts.prefix.tokens=10
    parts: {first: {preset: lora, rank: 4}, second: {preset: lora, targets: [mlp.in]}}

`expand` puts every preset's own keys in their place, so that a run's config.yaml needs no preset to be read again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from core import catalog
from core.errors import Problem, did_you_mean

TARGET = "_target_"


def expand(node: Mapping[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
    """(an adapter node whose parts all name their class, what is wrong with the others); one without parts as it is."""
    if node.get("parts") is None:
        return dict(node), []
    parts, problems = node["parts"], []
    if isinstance(parts, list):
        twice = sorted({str(name) for name in parts if parts.count(name) > 1})
        problems += [
            Problem("adapter.parts", f"{name} twice", "each once", f"a mapping: {{a: {{preset: {name}}}, b: ...}}")
            for name in twice
        ]
        parts = {name: {} for name in parts if isinstance(name, str)}
        if len(parts) + len(twice) < len(node["parts"]) and not twice:
            problems.append(Problem("adapter.parts", repr(node["parts"])[:200], "names of presets, or a mapping"))
    if not isinstance(parts, Mapping):
        return dict(node), [Problem("adapter.parts", repr(parts), "a list of presets, or a mapping of part to options")]
    found = {}
    for part, own in parts.items():
        own = dict(own or {}) if isinstance(own, Mapping) or own is None else own
        if not isinstance(own, dict):
            problems.append(Problem(f"adapter.parts.{part}", repr(own), "a mapping of options"))
        elif TARGET in own:
            found[part] = own
        else:
            content, wrong = _preset(part, own.pop("preset", part))
            problems += wrong
            found[part] = {**content, **own}
    return {**node, "parts": found}, problems


def _preset(part: str, name: str) -> tuple[dict[str, Any], list[Problem]]:
    """The adapter node of a preset that is one method and nothing else."""
    presets, place = catalog.groups("").get("adapter", {}), f"adapter.parts.{part}"
    if name not in presets:
        return {}, [Problem(place, str(name), ", ".join(presets), did_you_mean(name, presets))]
    _, content = catalog.preset(presets[name])
    own = content.get("adapter", content)
    if "adapter" in content and len(content) > 1:
        more = ", ".join(key for key in content if key != "adapter")
        return {}, [
            Problem(place, f"{name}, which sets {more} too", "a preset of a method alone", f"{place}.{TARGET}=...")
        ]
    if TARGET not in own:
        return {}, [Problem(place, f"{name}, a combination itself", "a single method", "name its parts here")]
    return own, []
