"""One Hydra job in one directory: Hydra composes, the check refuses, the run runs.

A single run that fails before training (codes 2, 3, 4, 6) leaves nothing behind. In a sweep every job runs, a failed
one leaves its record, and the code of the whole is the highest of its jobs'.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from core import compose
from core.config import FILE as CONFIG
from core.config import check, plain, read
from core.errors import ConfigError
from core.main import follower, known, record_failure, report
from core.paths import conf_dir

HEADER = "# {command}\n# repeat: python -m domains.{domain}.train --config-dir {directory} --config-name config\n"
# What a run writes until it trains.
BEFORE_TRAINING = (CONFIG, "run.log", "result.json", "audit.json", "sites.json", "task.json")


class Failed(float):
    """NaN to a sweeper, the exit code to `main`."""

    code: int

    def __new__(cls, code: int):
        value = super().__new__(cls, "nan")
        value.code = code
        return value

    def __reduce__(self):
        return Failed, (self.code,)


class Refused(BaseException):
    """Carries a code through Hydra, which turns an Exception of a callback into a warning."""

    def __init__(self, code: int):
        super().__init__(code)
        self.code = code


def execute(domain: str) -> int:
    """Run the process's command line; its exit code."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions as they are: Hydra itself would print them and exit with 1
    compose.register()
    typed = list(sys.argv)
    try:
        sys.argv[1:] = _arguments(domain, typed[1:])
        decorate = hydra.main(version_base="1.3", config_path=str(conf_dir() / domain), config_name="train")
        decorate(job)()
        return 0
    except Refused as refused:
        return refused.code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        return report(error)
    finally:
        sys.argv[:] = typed


def _arguments(domain: str, typed: list[str]) -> list[str]:
    """The command line with its overrides as Hydra shall get them; Hydra's own options as they are."""
    from hydra._internal.utils import get_args_parser

    args = get_args_parser().parse_args(typed)
    modes = {"--run": args.run, "--multirun": args.multirun, "--cfg": args.cfg, "--info": args.info}
    chosen = [name for name, value in modes.items() if value]
    if len(chosen) > 1:
        raise ConfigError("command line", chosen, "one of them", f"leave out {chosen[0]}")
    extra = [Path(args.config_dir)] if args.config_dir else []
    prepared = compose.prepare(domain, args.overrides, extra)
    swap = dict(zip(args.overrides, prepared, strict=True))
    return [swap.get(word, word) for word in typed]


def job(cfg: DictConfig) -> float:
    """One run in its directory: the primary score, or `Failed`."""
    settings = HydraConfig.get()
    directory = Path(settings.runtime.output_dir)
    cfg = OmegaConf.create(plain(cfg))
    sweeping = settings.mode == RunMode.MULTIRUN
    words = settings.overrides.task if sweeping else sys.argv[1:]
    sys.argv[1:] = [word.removeprefix("++") for word in words]  # the record keeps what repeats this very job
    try:
        if sweeping:
            print(f"job {settings.job.num}  {' '.join(sys.argv[1:])}", flush=True)
            check(cfg)
            claim(cfg, directory)
        return _run(cfg, directory)
    except KeyboardInterrupt as error:
        record_failure(cfg, directory, error)
        raise
    except Exception as error:
        code = report(error, directory)
        record_failure(cfg, directory, known(error))
        return Failed(code)


def _run(cfg: DictConfig, directory: Path) -> float:
    if not follower() and (cfg.run.resume == "weights" or not (directory / CONFIG).exists()):
        from core.bench.result import command

        inside = directory.is_relative_to(Path.cwd())
        folder = directory.relative_to(Path.cwd()) if inside else directory
        head = HEADER.format(command=command(cfg.domain), domain=cfg.domain, directory=folder)
        body = OmegaConf.to_yaml(OmegaConf.merge({"defaults": ["/run_directory", "_self_"]}, cfg))
        (directory / CONFIG).write_text(head + body, encoding="utf-8")
    if cfg.get("sweep"):
        from core.bench import compare

        code = compare.run(cfg, directory)
        return Failed(code) if code else float("nan")
    from core.training import run

    record = run.run(cfg, directory)
    value = record.primary.value if record.primary else None
    return float("nan") if value is None else float(value)


def claim(cfg: DictConfig, directory: Path) -> None:
    """ConfigError where the directory holds a finished run, or one that `resume` cannot go on with."""
    if follower() or cfg.get("sweep") or not (directory / "result.json").exists() or cfg.run.resume == "weights":
        return  # `weights` asks for a new start from what lies there
    try:
        status = json.loads((directory / "result.json").read_text(encoding="utf-8")).get("status")
    except (OSError, ValueError, AttributeError):
        status = "unreadable"
    own = "a directory of its own"
    if status == "done" and cfg.run.fit:
        raise ConfigError("hydra.run.dir", f"{directory} holds a finished run", own, "name another, or leave it out")
    if cfg.run.resume == "never":
        got = f"{directory} holds a run ({status})"
        raise ConfigError("hydra.run.dir", got, own, "run.resume=auto goes on with it")
    changed = _changed(cfg, directory)
    if changed:
        got = f"{directory} holds a run with another {', '.join(changed)}"
        raise ConfigError("hydra.run.dir", got, own, "run.resume=auto goes on only with the same config")


def _changed(cfg: DictConfig, directory: Path) -> list[str]:
    """Top-level keys that differ from the config.yaml of the run that lies there."""
    if not (directory / CONFIG).exists():
        return []
    before, after = plain(read(directory)), plain(cfg)
    same = {"run", "choices"}  # `run` says what to do, not what is computed
    keys = [key for key in {**before, **after} if key not in same]
    return [key for key in keys if before.get(key) != after.get(key)]


class RunDirectory(Callback):
    """Checks before Hydra makes a directory, takes back the one of a run that never began, sums up a sweep."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            HydraConfig.instance().set_config(config)  # the run's name uses the chosen presets
            cfg = _without_hydra(config)
            check(cfg)
            self.directory = Path(config.hydra.run.dir)
            self.first_new = _first_new(self.directory)
            claim(OmegaConf.create(plain(cfg)), self.directory)
            _make(self.directory)
            self.kept = {path.name for path in self.directory.iterdir()}
        except Exception as error:
            raise Refused(report(error)) from error

    def on_run_end(self, config: DictConfig, job_return: Any = None, **kwargs: Any) -> None:
        code = getattr(getattr(job_return, "_return_value", None), "code", 0)
        if not code:
            return
        new = {path.name for path in self.directory.iterdir()} - self.kept
        if code in (2, 3, 4, 6) and new <= set(BEFORE_TRAINING) and not follower():
            for name in new:
                (self.directory / name).unlink(missing_ok=True)
            if self.first_new is not None:
                shutil.rmtree(self.first_new, ignore_errors=True)
        raise Refused(code)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        self.started = time.time()

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        directory = Path(config.hydra.sweep.dir)
        from core.bench.card import refresh

        refresh(directory)  # the first job's card was written before its anchors existed
        codes = list(_codes(directory, self.started))
        print(f"\n{codes.count(0)} of {len(codes)} jobs done   next: atlas report {directory}", flush=True)
        if any(codes):
            raise Refused(max(codes))


def _make(directory: Path) -> None:
    """Make the run directory. ConfigError: it cannot be made or written."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(directory, os.W_OK) else "no permission to write"
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        fix = "name another with hydra.run.dir=..."
        raise ConfigError("hydra.run.dir", f"{directory}: {reason}", "a folder that can be written", fix)


def _first_new(directory: Path) -> Path | None:
    """The topmost folder that making `directory` will make, None where it exists."""
    new = [path for path in (directory, *directory.parents) if not path.exists()]
    return new[-1] if new else None


def _codes(directory: Path, since: float):
    """Exit code of every job of this sweep, from its record: a launcher may have run it in another process."""
    for path in sorted(directory.glob("*/result.json")):
        if path.stat().st_mtime >= since - 1:
            data = json.loads(path.read_text(encoding="utf-8"))
            yield (data.get("error") or {}).get("code", 1) if data.get("status") != "done" else 0


def _without_hydra(config: DictConfig) -> DictConfig:
    cfg = config.copy()
    with open_dict(cfg):
        OmegaConf.set_readonly(cfg, False)
        del cfg["hydra"]
    return cfg
