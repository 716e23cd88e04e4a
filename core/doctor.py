"""Is everything sound? Versions, wheels that do not load and the fix, devices, and every preset held to the check."""

from __future__ import annotations

import importlib
import os
import platform
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from core import catalog, compat
from core.compose import compose
from core.config import OPEN, find, plain
from core.errors import ConfigError, EnvironmentError_, PeftError
from core.paths import conf_dir, data_dir

NEEDED = ("torch", "lightning", "torchmetrics", "numpy", "scipy", "safetensors", "hydra-core", "omegaconf", "pydantic")


def doctor() -> int:
    """Print the findings; the exit code: 0, 2 (a preset) or 6 (the installation)."""
    code = 0
    print(f"python     {platform.python_version()}, {platform.system()} {platform.machine()}")
    versions = {name: _version(name) for name in NEEDED}
    print(f"packages   {', '.join(f'{name} {version}' for name, version in versions.items())}")
    missing = [name for name, version in versions.items() if version is None]
    if missing:
        print(EnvironmentError_(", ".join(missing), "not installed", fix="pip install -e ."), file=sys.stderr)
        return EnvironmentError_.code
    code = max(code, _optional())
    print(f"devices    {_devices()}")
    folder = data_dir()
    print(f"real data  {folder or 'none: set PEFT_ATLAS_DATA to its folder'}")
    return max(code, _presets())


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def extras() -> dict[str, list[str]]:
    """Distribution -> the extras of this package that install it, as the installed metadata tells."""
    found: dict[str, list[str]] = {}
    for line in metadata.requires("peft-atlas") or []:
        name, extra = re.match(r"[\w.-]+", line)[0], re.search(r"""extra *== *["']([\w.-]+)""", line)
        if extra and name != "peft-atlas":
            found.setdefault(name, []).append(extra[1])
    return found


def _optional() -> int:
    """Import every optional package; print what is absent, broken or in fallback."""
    code, wanted, modules = 0, extras(), {}
    for module, names in metadata.packages_distributions().items():
        for name in names:
            modules.setdefault(name, []).append(module)
    found = {name: version for name in wanted if (version := _version(name))}
    for name in found:
        try:
            for module in modules.get(name, [])[:1]:
                importlib.import_module(module)
        except Exception as error:  # any exception at import is the finding
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            fix = f"pip install --force-reinstall {name}"
            print(EnvironmentError_(name, f"{found[name]} does not import: {reason}", fix=fix), file=sys.stderr)
            code = EnvironmentError_.code
    print(f"optional   {', '.join(f'{name} {version}' for name, version in found.items()) or 'none'}")
    absent: dict[str, list[str]] = {}
    for name in wanted.keys() - found.keys():
        for extra in wanted[name]:
            absent.setdefault(extra, []).append(name)
    for extra, names in sorted(absent.items()):
        print(f"absent     {extra}: {', '.join(sorted(names))}; pip install 'peft-atlas[{extra}]'")
    for name, state in compat.status().items():
        if state["mode"] == "fallback":
            print(f"fallback   {name}: its compiled part does not match torch {_version('torch')} and stays unloaded")
            print(f"           {state['reason']}")
            print(f"           runs without it; the fix: install the {name} wheel built for this torch")
    return code


def _devices() -> str:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [f"cpu, {cores} cores, {torch.get_num_threads()} threads"]
    for i in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(i).total_memory / 2**30
        parts.append(f"cuda:{i} {torch.cuda.get_device_name(i)}, {memory:.0f} GiB")
    if torch.backends.mps.is_available():
        parts.append("mps")
    return "; ".join(parts)


def _presets() -> int:
    """Compose and check every preset of every field."""
    code, count = 0, 0
    for domain, overrides in combinations():
        count += 1
        try:
            check_preset(domain, overrides)
        except PeftError as error:
            code = max(code, error.code)
            print(f"\npython -m domains.{domain}.train {' '.join(overrides)}", file=sys.stderr)
            print(error, file=sys.stderr)
    print(f"presets    {count} composed and checked in {_place(conf_dir())}: {'sound' if not code else 'see above'}")
    return code


def check_preset(domain: str, overrides: list[str]) -> None:
    """ConfigError with every problem of a composed preset but the values that it leaves to the user."""
    problems = [problem for problem in find(plain(compose(domain, overrides))) if problem.got != OPEN]
    if problems:
        raise ConfigError(problems=problems)


def combinations() -> Iterator[tuple[str, list[str]]]:
    """(field, overrides) that name every preset once, each beside the defaults of its field."""
    for domain in catalog.domains():
        yield domain, []
        for group, presets in catalog.groups(domain).items():
            for name in presets:
                yield domain, [f"{'+' if group == 'experiment' else ''}{group}={name}"]


def _place(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
