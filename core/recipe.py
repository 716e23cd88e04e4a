"""The command that makes a field's embedded weights: `python -m domains.FIELD.pretrain [NAME] [--out DIR] ...`.

A field gives the recipe, how it trains and how it compares; nothing heavy is imported before one of them is called, so
that `--help` answers at once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.errors import PeftError

# (NAME, recipe, folder of the state, seconds or None) -> (facts of the run, folder -> the files it writes there)
Train = Callable[[str | None, Any, Path, float | None], tuple[dict[str, Any], Callable[[Path], list[Path]]]]


def command(
    doc: str,
    field: str,
    out: Path,
    recipe: Callable[[str | None], Any],
    train: Train,
    compare: Callable[[argparse.Namespace], Iterable[Path]],
    *,
    names: Sequence[str] = (),
    default: str | None = None,
    compares: str,
    arguments: Sequence[str] | None = None,
) -> int:
    """Runs one command line; its exit code.

    doc        its first line describes the command        out     folder of the package's own weights
    compare    with --compare: trains nothing, returns the files that it wrote; `compares` says what
    names      recipes to choose from (empty: there is one and no NAME), `default` of them where none is given
    """
    parser = argparse.ArgumentParser(prog=f"python -m domains.{field}.pretrain", description=doc.splitlines()[0])
    if names:
        parser.add_argument("which", nargs="?" if default else None, default=default, choices=sorted(names))
    parser.add_argument("--out", type=Path, default=out, help="folder of the files (default: the package's)")
    parser.add_argument("--state", type=Path, help="folder of the resumable state (default: outputs/pretrain/<name>)")
    parser.add_argument("--steps", type=int, help="instead of the recipe's")
    parser.add_argument("--budget-s", type=float, help="stop after so many seconds, with the state saved")
    parser.add_argument("--compare", action="store_true", help=compares)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.set_defaults(which=default)
    given = parser.parse_args(arguments)
    try:
        return _run(given, recipe, train, compare)
    except PeftError as error:
        print(error)
        return error.code


def _run(given: argparse.Namespace, recipe, train: Train, compare) -> int:
    import torch

    torch.set_num_threads(given.threads)
    if given.compare:
        written = compare(given)
    else:
        chosen = recipe(given.which)
        chosen = replace(chosen, seed=given.seed, steps=given.steps or chosen.steps)
        folder = given.state or Path("outputs", "pretrain", chosen.name)
        facts, write = train(given.which, chosen, folder, given.budget_s)
        if not facts["done"]:
            print(f"stopped at step {facts['step']:,} of {chosen.steps:,}; the same command goes on")
            return 0
        written = write(given.out)
    print("\n".join(f"wrote     {path}" for path in written))
    return 0
