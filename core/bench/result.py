"""The record of one run: `result.json`. Comparison reads nothing else, so any tool that writes one takes part.

Unknown is null, never 0; a number that is not finite is unknown.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from core.errors import DataError, Problem, TrainingError

FILE = "result.json"


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_finite)]
Count = Annotated[int | None, Field(ge=0)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True, protected_namespaces=())


class MetricRecord(_Part):
    """A score over `n` items. `ci95` is [low, high], null where there is no interval."""

    value: Number = None
    unit: str = ""
    higher_is_better: bool = True
    n: Count = None
    ci95: tuple[float, float] | None = None

    @classmethod
    def of(cls, metric: Any) -> MetricRecord:
        """The record of a `core.contracts.Metric`; an interval with an undefined end is no interval."""
        fields = metric._asdict()
        if fields["ci95"] is not None and not all(math.isfinite(end) for end in fields["ci95"]):
            fields["ci95"] = None
        return cls(**fields)


class Primary(_Part):
    """The headline: a metric's name, the split that it was measured on, its value."""

    name: str
    split: str
    value: Number = None


class ErrorRecord(_Part):
    class_: str = Field(alias="class")
    code: int
    where: str = ""
    got: str = ""
    allowed: str = ""
    fix: str = ""

    @classmethod
    def of(cls, error: BaseException) -> ErrorRecord:
        """The record of any exception; of a `PeftError` its first problem."""
        problems = getattr(error, "problems", None)
        if problems:
            return cls(class_=type(error).__name__, code=error.code, **problems[0]._asdict())
        code = 130 if isinstance(error, KeyboardInterrupt) else 1
        return cls(class_=type(error).__name__, code=code, got=str(error)[:2000])


class Forgetting(_Part):
    """What the base could do before, on held-out data of its old task: before training, and with the adapter."""

    metric: str
    unit: str = ""
    higher_is_better: bool = True
    n: Count = None
    before: Number = None
    after: Number = None


class Plan(_Part):
    """What the planner said before training, to stand beside the measured cost."""

    peak_memory_bytes: Count = None
    wall_s: Number = None


class Certificate(_Part):
    """What was proved about this very adapter; null where it was not checked.

    live              [sites that are read and get a gradient, sites]
    base_bit_equal    frozen parameters and buffers have the same bits after training
    splits_disjoint   no group (cluster, patient, speaker) is in two splits
    reload_equal      the saved adapter, loaded into a fresh base, gives the same bits
    """

    live: tuple[int, int] | None = None
    base_bit_equal: bool | None = None
    splits_disjoint: bool | None = None
    reload_equal: bool | None = None


class Git(_Part):
    commit: str | None = None
    dirty: bool | None = None


class Devices(_Part):
    kind: str
    count: int


class Record(_Part):
    """One run. Times in ISO 8601 UTC and seconds, sizes in bytes, `fraction` 0..1 of the base without the head."""

    schema_: Literal[1] = Field(1, alias="schema")
    run_id: str
    status: Literal["running", "done", "failed", "interrupted"] = "running"
    error: ErrorRecord | None = None
    started: str | None = None
    ended: str | None = None
    wall_s: Number = None

    domain: str | None = None
    task: str | None = None
    data: str | None = None
    data_kind: Literal["real", "twin"] | None = None
    split_hash: str | None = None  # sha256 of the ids per split
    backbone: str | None = None
    base_fingerprint: str | None = None
    base_parameters: Count = None

    method: str | None = None
    options: dict[str, Any] = {}
    targets: list[str] = []
    paths: dict[str, int] = {}
    trainable: Count = None
    head_trainable: Count = None
    fraction: Number = None

    adapter_bytes: Count = None
    saved_activation_bytes: Count = None  # per step
    peak_memory_bytes: Count = None
    memory_kind: str | None = None  # device peak, or the process's resident set
    flops_forward: Number = None  # per example
    flops_backward: Number = None
    step_time_s: Number = None  # median after warm-up
    examples_per_s: Number = None
    plan: Plan | None = None

    steps: Count = None
    epochs: Number = None
    examples_seen: Count = None
    batch_size: Count = None
    precision: str | None = None
    devices: Devices | None = None
    lr: Number = None
    seed: int | None = None
    tuning_group: str | None = None  # shared by equally tuned runs
    tuning_budget: Count = None  # trials spent on this method

    metrics: dict[str, dict[str, MetricRecord]] = {}
    primary: Primary | None = None
    selected: Primary | None = None  # validation metric that chose the checkpoint; null: the headline's own
    forgetting: Forgetting | None = None
    merge_error: Number = None  # relative
    certificate: Certificate | None = None

    command: str | None = None
    versions: dict[str, str] = {}
    git: Git | None = None
    hardware: str | None = None
    config_hash: str | None = None

    def headline(self) -> MetricRecord | None:
        """The primary metric with its interval, unit and n."""
        if self.primary is None:
            return None
        found = self.metrics.get(self.primary.split, {}).get(self.primary.name)
        return found or MetricRecord(value=self.primary.value)

    def validation(self) -> MetricRecord | None:
        """The validation score that chose the checkpoint, and chooses the learning rate of a sweep."""
        chosen = self.selected or self.primary
        return self.metrics.get("val", {}).get(chosen.name) if chosen else None

    @property
    def forgotten(self) -> float | None:
        """Change of what the base could do before, in its own unit."""
        found = self.forgetting
        known = found is not None and None not in (found.before, found.after)
        return found.after - found.before if known else None

    def text(self) -> str:
        return json.dumps(self.model_dump(by_alias=True, mode="json"), indent=1, ensure_ascii=False) + "\n"


def write(directory: str | Path, record: Record) -> Path:
    """The path of `result.json`, replaced whole or not at all."""
    return write_whole(Path(directory) / FILE, record.text())


def write_whole(path: Path, text: str) -> Path:
    """The path; a reader (or a crash) sees the old file or the new one, never a half. TrainingError: disk refuses."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        if path.parent.is_dir():
            part.unlink(missing_ok=True)
        got = f"{error.strerror} (errno {error.errno})"
        raise TrainingError(str(path), got, "a folder that can be written") from error
    return path


def read(path: str | Path) -> Record:
    """The record in a run directory or a `result.json`. DataError names the file and every wrong field."""
    path = Path(path)
    path = path / FILE if path.is_dir() else path
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(str(path), error.strerror or str(error), "a readable result.json") from error
    except ValueError as error:  # broken JSON or broken UTF-8
        raise DataError(str(path), f"not JSON: {error}", "a whole result.json", "run that job again") from error
    try:
        return Record.model_validate(data)
    except ValidationError as error:
        raise DataError(problems=[_problem(path, found) for found in error.errors(include_url=False)]) from error


def _problem(path: Path, found: dict[str, Any]) -> Problem:
    field = ".".join(map(str, found["loc"])) or "(whole file)"
    got = "missing" if found["type"] == "missing" else f"{found['input']!r}"[:200]
    return Problem(f"{path}: {field}", got, found["msg"][:1].lower() + found["msg"][1:])


# Keys that do not change what is trained; everything else does.
_SILENT = {"hydra", "sweep", "tuning", "run.resume", "run.test"}


def config_hash(cfg: Any) -> str:
    """sha256 of what a run trains: the resolved config in canonical form, without what only says what to do with it."""
    if type(cfg).__module__.startswith("omegaconf"):
        from omegaconf import OmegaConf

        cfg = OmegaConf.to_container(cfg, resolve=True)
    text = json.dumps(_without(cfg, ""), sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _without(node: Any, at: str) -> Any:
    if not isinstance(node, dict):
        return node
    names = {key: f"{at}.{key}" if at else str(key) for key in node}
    return {str(key): _without(node[key], name) for key, name in names.items() if name not in _SILENT}


def command(domain: str | None) -> str:
    """What was typed: `python -m domains.FIELD.train adapter=lora seed=1`; any other program's own command line."""
    program, words = Path(sys.argv[0]), [word.removeprefix("++") for word in sys.argv[1:]]
    ours = program.name == "train.py" and program.parent.name == domain
    return shlex.join(["python", "-m", f"domains.{domain}.train", *words] if ours else [program.name, *words])


_PACKAGES = ("peft-atlas", "torch", "lightning", "torchmetrics", "numpy", "scipy", "safetensors", "hydra-core")
_PACKAGES += ("transformers", "fair-esm", "timm", "monai")


def environment() -> dict[str, Any]:
    """`versions`, `git` and `hardware` of this process, as the record's fields; imports nothing heavy."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {"versions": versions, "git": _git(), "hardware": _hardware()}


def _git() -> Git | None:
    """Commit of the checkout that this code runs from; None in an installed wheel."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None

    def ask(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    changes = ask("status", "--porcelain", "--untracked-files=no")
    return Git(commit=ask("rev-parse", "HEAD"), dirty=None if changes is None else bool(changes))


def _hardware() -> str:
    """`AMD EPYC 7763, 2 cores; NVIDIA H100`: the GPU only when torch is loaded already."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parts = [f"{name}, {cores} core{'s' * (cores != 1)}"]
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return "; ".join(parts)
