"""What exists, what a run would cost, is everything sound, and what to do with a finished run.

atlas methods lora        atlas plan FIELD adapter=dora      atlas report outputs/FIELD
atlas backbones FIELD     atlas doctor                       atlas predict RUN --input FILE --out new.csv
atlas combine RUN RUN --how ties --out DIR
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from core.errors import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code (core.errors)."""
    args = _arguments(argv)
    try:
        return args.run(args) or 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `atlas methods | head`
        sys.stderr.close()
        return 0
    except Exception as error:
        from core.main import report

        return report(error)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parsed arguments; overrides may stand before and behind the options."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    if rest and (not hasattr(args, "overrides") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides += rest
    return args


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="atlas",
        description=__doc__.split("\n\n")[0],
        epilog="Training: python -m domains.FIELD.train --help",
    )
    commands = parser.add_subparsers(metavar="command", required=True)

    def add(name: str, run, text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        return command

    command = add("methods", methods, "methods and where they work, or one method: formula, source, options, defaults")
    command.add_argument("name", nargs="?", help="a method or preset")
    command.add_argument("--write", type=Path, metavar="FILE", help="all of it as one page: docs/methods.md")
    command = add("backbones", backbones, "backbones and their roles")
    command.add_argument("domain", nargs="?", help="a field: a folder of domains/")
    command = add("plan", plan, "sites, parameters, bytes and saved activations before any training")
    command.add_argument("domain", help="a field: a folder of domains/")
    command.add_argument("overrides", nargs="*", help="as for training: adapter=dora adapter.rank=4 ...")
    command.add_argument("--sites", action="store_true", help="one row per site instead of one per role")
    add("doctor", doctor, "versions, broken wheels and the fix, devices, a check of every preset")
    command = add("report", report, "one table of all runs under a folder: report.html, report.md, report.csv")
    command.add_argument("directory", type=Path)
    command = add("merge", merge, "fold a run's adapter into its base and write the merged network")
    _run_and_out(command)
    command = add("export", export, "write a run's adapter in another library's layout")
    _run_and_out(command)
    command.add_argument("--format", choices=["peft"], default="peft")
    command = add("combine", combine, "sum, TIES or DARE of runs' adapters on one base, written as a run of its own")
    command.add_argument("directories", type=Path, nargs="+", metavar="RUN")
    command.add_argument("--out", type=Path, required=True, metavar="DIR")
    command.add_argument("--how", default="linear", help="linear (default), ties, dare, dare_ties, hub")
    command.add_argument("--weights", metavar="W,W", help="one per run; 1 / their number each where left out")
    command.add_argument("--rank", help="of the LoRA that is written, or full; else the sum of the runs' ranks")
    command.add_argument("--keep", type=float, help="ties: share of entries kept (0.2; all after dare)")
    command.add_argument("--drop", type=float, default=0.5, help="dare: probability (0.5)")
    command.add_argument("--scale", type=float, default=1.0, help="ties: factor on the result (1)")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--head", type=int, default=0, help="which run's head is kept: its place, from 0; -1 for none")
    command = add("predict", predict, "apply a run to new input; --out ends in .csv or .jsonl")
    command.add_argument("directory", type=Path, metavar="RUN")
    command.add_argument("--input", type=Path, required=True, metavar="FILE")
    command.add_argument("--out", type=Path, required=True, metavar="FILE")
    command.add_argument("--batch-size", type=int, default=16, metavar="N")
    return parser


def _run_and_out(command: argparse.ArgumentParser) -> None:
    command.add_argument("directory", type=Path, metavar="RUN")
    command.add_argument("--out", type=Path, required=True, metavar="DIR")


def table(head: Sequence[str], rows: Sequence[Sequence[str]], width: int = 100) -> str:
    """Columns as wide as their content; the last one wraps at `width`."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head) - 1)]
    indent = sum(widths) + 2 * len(widths)
    lines = []
    for row in (head, *rows):
        start = "".join(f"{cell:<{w}}  " for cell, w in zip(row, widths, strict=False))
        last = textwrap.wrap(row[-1], max(30, width - indent)) or [""]
        lines.append((start + last[0]).rstrip())
        lines += [" " * indent + more for more in last[1:]]
    return "\n".join(lines)


def methods(args: argparse.Namespace) -> None:
    """The table of methods; with a name, everything that its file says."""
    from core import catalog

    if args.write is not None:
        from core.methods_page import page

        args.write.parent.mkdir(parents=True, exist_ok=True)
        args.write.write_text(page(), encoding="utf-8")
        print(args.write)
        return
    if args.name is None:
        found = [catalog.method(name) for name in catalog.methods()]
        print(table(("method", "face", "what it does"), [(m.name, m.face, m.title) for m in found]))
        for face in dict.fromkeys(m.face for m in found):
            _matrix(face, [m.name for m in found if m.face == face])
        print("\none of them, and why not where it does not work: atlas methods NAME")
        return
    presets = catalog.groups("").get("adapter", {})
    name, settings = args.name, {}
    if name not in catalog.methods() and name in presets:  # a preset of another method, such as rslora
        comment, settings = catalog.preset(presets[name])
        settings = settings.get("adapter", settings)
        module = str(settings.get("_target_", "")).rpartition(".")[0]
        print(f"preset {name}: {comment}\n")
        if "parts" in settings:
            if settings["parts"] != "???":  # else the command line names them, as the comment says
                _parts(name, settings)
            return
        name = module.rpartition(".")[2]
    elif name in presets:
        _, settings = catalog.preset(presets[name])
        settings = settings.get("adapter", settings)
    _one_method(catalog.method(name), settings, args.name)


def _parts(name: str, settings: dict) -> None:
    """The parts of a combination, each with what the preset sets."""
    from core.parts import expand

    rows = []
    for part, own in expand(settings)[0]["parts"].items():
        options = ", ".join(f"{key} {value}" for key, value in own.items() if key != "_target_" and value is not None)
        rows.append((part, own.get("_target_", "").rpartition(".")[2], options or "-"))
    print(table(("part", "method", "options"), rows))
    print(f"\none of them: atlas methods PART\nuse  adapter={name} adapter.parts.{rows[0][0]}.OPTION=...")


def _one_method(method, settings: dict, preset: str) -> None:
    from core.config import default_text, method_options

    print(method.doc.strip() or f"{method.name}: from an installed package; its source is not on the path")
    if method.definition is None:
        return
    options = method_options(method.definition)
    if options:
        rows = [(p.name, str(settings.get(p.name, "")), default_text(p), p.annotation or "-") for p in options]
        print("\n" + table(("option", "preset", "default", "type"), rows))
    targets = settings.get("targets") or method.targets
    print(f"\nface {method.face}   roles {', '.join(targets) or '(its own selection)'}   file {_short(method)}")
    _works(method.name, settings)
    print(f"use  adapter={preset}" + (f" adapter.{options[0].name}=..." if options else ""))


def _matrix(face: str, names: list[str]) -> None:
    """Which method of a face works on which kind of layer, module or port."""
    from core.adapters import matrix

    if columns := matrix.columns(face):
        kinds = tuple(name for name, _ in columns)
        rows = []
        for name in names:
            try:
                rows.append((name, *map(str, matrix.row(name))))
            except Exception as error:  # of a package that is installed, not ours
                rows.append((name, *["?"] * (len(kinds) - 1), f"? {type(error).__name__}: {error}"))
        print("\n" + table((face, *kinds), rows))


def _works(name: str, settings: dict) -> None:
    """The row of one method, a preset's options in place."""
    from core.adapters import matrix, methods
    from core.methods_page import refusals

    options = {k: v for k, v in settings.items() if k in methods.options(methods.find(name))}
    row = matrix.row(name, options)
    if works := [cell.kind for cell in row if not cell.reason]:
        print(f"works on {', '.join(works)}")
    for kinds, reason in refusals(row):
        print(textwrap.fill(f"not on {kinds}: {reason}", 120, subsequent_indent="       "))


def _short(method) -> str:
    file = method.definition.file
    root = Path(__file__).resolve().parent.parent
    return str(file.relative_to(root)) if file.is_relative_to(root) else str(file)


def backbones(args: argparse.Namespace) -> None:
    """Backbone presets of one field or of all, from YAML and source alone."""
    from core import catalog

    for number, domain in enumerate([args.domain] if args.domain else catalog.domains()):
        found = catalog.backbones(domain)
        rows = [(b.name, b.target.rpartition(".")[2], b.comment) for b in found]
        print("\n" * bool(number) + table((f"{domain}: backbone", "class", "what it is"), rows))
        kinds: dict[tuple[str, ...], list[str]] = {}
        for b in found:
            names = kinds.setdefault(b.roles or ("read from the network when it is loaded",), [])
            if (name := b.target.rpartition(".")[2]) not in names:
                names.append(name)
        print("\n" + table(("class", "roles"), [(", ".join(names), ", ".join(r)) for r, names in kinds.items()]))


def plan(args: argparse.Namespace) -> None:
    from core.plan import plan

    print(plan(args.domain, args.overrides, sites=args.sites))


def doctor(args: argparse.Namespace) -> int:
    from core.doctor import doctor

    return doctor()


def report(args: argparse.Namespace) -> None:
    if not args.directory.is_dir():
        raise ConfigError("DIR", f"no folder {args.directory}", "a folder with runs, such as outputs/FIELD")
    from core.bench.report import report

    print(report(args.directory))


def merge(args: argparse.Namespace) -> None:
    from core.ship import merge

    print(merge(args.directory, args.out))


def export(args: argparse.Namespace) -> None:
    from core.ship import export

    print(export(args.directory, args.out))


def combine(args: argparse.Namespace) -> None:
    from core.ship import combine

    options = {key: getattr(args, key) for key in ("how", "weights", "rank", "keep", "drop", "scale", "seed", "head")}
    print(combine(args.directories, args.out, **options))


def predict(args: argparse.Namespace) -> None:
    from core.ship import predict

    print(predict(args.directory, args.input, args.out, batch_size=args.batch_size))


if __name__ == "__main__":
    sys.exit(main())
