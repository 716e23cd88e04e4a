"""`python -m domains.<field>.train`: help at once, the rest through Hydra; errors for people, exit codes for scripts.

Exit codes   0 done   1 a bug   2 config   3 data   4 adapter   5 training   6 environment   130 interrupted
A sweep's code is the highest of its jobs'. PEFT_TRACEBACK=1 shows where an error was raised.
"""

from __future__ import annotations

import errno
import os
import sys
import textwrap
import traceback
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from core import catalog, source
from core.errors import ConfigError, EnvironmentError_, PeftError, TrainingError


def main(domain: str) -> None:
    """Run the command line and exit with its code."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(help_text(domain))
        sys.exit(0)
    from core.job import execute

    sys.exit(execute(domain))


def known(error: BaseException) -> BaseException:
    """The error behind Hydra's wrapping, and faults of disk, memory and installation as ours."""
    if "hydra" in sys.modules:
        from hydra.errors import HydraException, InstantiationException
        from omegaconf.errors import OmegaConfBaseException

        while isinstance(error, InstantiationException) and error.__cause__ is not None:
            error = error.__cause__
        if isinstance(error, (HydraException, OmegaConfBaseException)):
            from core.compose import translate

            return translate(error)
    if isinstance(error, PeftError):
        return error
    if isinstance(error, ModuleNotFoundError) and error.name and error.name.split(".")[0] not in {"core", "domains"}:
        fix = "pip install the extra of the field, `peft-atlas[FIELD]`; `atlas doctor` lists what is missing"
        return EnvironmentError_(error.name, "not installed", "", fix)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return TrainingError(str(error.filename or "disk"), error.strerror, "room for checkpoints and results")
    if isinstance(error, PermissionError):
        return ConfigError(str(error.filename or "hydra.run.dir"), error.strerror, "a folder that can be written")
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return TrainingError("memory", str(error).splitlines()[0], "", "lower loader.batch_size or set loader.tokens")
    return error


def report(error: BaseException, directory: Path | None = None) -> int:
    """Print an error as a person reads it; the exit code."""
    found = known(error)
    if not isinstance(found, PeftError):
        traceback.print_exception(error)
        print(f"\nThis is a bug.{f' Run directory: {directory}' if directory else ''}", file=sys.stderr)
        return 1
    if os.environ.get("PEFT_TRACEBACK") == "1":
        traceback.print_exception(error)
    print(found, file=sys.stderr, flush=True)
    return found.code


def record_failure(cfg: Any, directory: Path, error: BaseException) -> None:
    """Leave `result.json` with status failed (interrupted) and the error, in place of the one that says running."""
    if follower() or cfg.get("sweep"):
        return
    from core.bench import result

    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    try:
        record = result.read(directory) if (directory / result.FILE).exists() else _empty(cfg, directory, now)
        record.status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        record.error, record.ended = result.ErrorRecord.of(error), now
        result.write(directory, record)
    except PeftError as second:  # the disk is full: the first error is the news
        print(f"note: no result.json: {second.problems[0].got}", file=sys.stderr)


def _empty(cfg: Any, directory: Path, now: str) -> Any:
    from core.bench import result

    choices = cfg.get("choices") or {}
    names = {key: choices.get(key) for key in ("task", "data", "backbone")}
    seed = cfg.get("seed") if isinstance(cfg.get("seed"), int) else None
    return result.Record(
        run_id=directory.name, started=now, domain=cfg.get("domain"), method=choices.get("adapter"), seed=seed, **names
    )


def follower() -> bool:
    """True in the processes that a distributed strategy starts beside the first."""
    return os.environ.get("LOCAL_RANK", "0") != "0"


def help_text(domain: str) -> str:
    """What `--help` prints: one example, the groups and their presets, what to type next."""
    module = f"domains.{domain}.train"
    file = source.module_file(module)
    words = (source.docstring(file) if file else "") or f"Adapt a model of the field {domain}."
    title, _, example = words.splitlines()[0].partition(" Try: ")
    example = example or f"python -m {module} adapter=lora trainer.max_steps=20"
    groups = catalog.groups(domain)
    names = {group: f"+{group}" if group == "experiment" else group for group in groups}
    width = max(map(len, names.values()))
    rows = []
    for group in sorted(groups):
        indent = " " * (width + 4)
        text = textwrap.fill(", ".join(groups[group]), 100, initial_indent=indent, subsequent_indent=indent)
        rows.append(f"  {names[group]:<{width}}  {text.strip()}")
    return "\n".join(
        [
            title,
            "",
            f"  {example}",
            "",
            "Choose presets with group=name:",
            *rows,
            "",
            "Change a value with key=value (all of them: --cfg job), try several with -m key=1,2.",
            "Repeat a run: --config-dir RUN --config-name config. More: atlas --help",
        ]
    )
