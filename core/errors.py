"""The one error type: where, what it got, what is allowed, how to fix it. All problems of a check are raised together.

PeftError                code 1   base, never raised itself
  ConfigError            code 2   the user's config or command line
  UnsupportedError       code 2   a combination that has no exact meaning (says why, and what to use)
  DataError              code 3   file, row, field, split
  AdapterError           code 4   adapter and base do not fit
    DeadSiteError                 a site that no gradient or no read reaches
    MergeError                    cannot be folded into the base, or not exactly
    FingerprintError              the base is not the one that the adapter was trained on
  TrainingError          code 5   NaN, out of memory, disk full
  EnvironmentError_      code 6   missing extra, broken wheel
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, NamedTuple


class Problem(NamedTuple):
    """One finding. Empty fields are left out of the printed text."""

    where: str
    got: str = ""
    allowed: str = ""
    fix: str = ""


class PeftError(Exception):
    """Raise with one problem's fields, or with `problems=[...]` to report all findings of one check together."""

    code = 1
    kind = "error"

    def __init__(
        self,
        where: str = "",
        got: Any = "",
        allowed: Any = "",
        fix: str = "",
        *,
        problems: Iterable[Problem] | None = None,
    ):
        self.problems = list(problems) if problems is not None else [Problem(where, _text(got), _text(allowed), fix)]
        super().__init__(self.problems)

    def __reduce__(self):
        return _rebuild, (type(self), self.problems)

    def __str__(self) -> str:
        count = len(self.problems)
        lines = [f"error[{self.kind}]: {count} problem{'s' * (count != 1)}"]
        for number, problem in enumerate(self.problems, 1):
            label = f"{number}."
            for field, text in zip(problem._fields, problem, strict=True):
                if text:
                    lines.append(f"{label:>4} {field:<8} {text}")
                    label = ""
        return "\n".join(lines)


def _rebuild(cls, problems):
    return cls(problems=[Problem(*p) for p in problems])


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple, set, frozenset)):
        return ", ".join(map(str, value))
    return repr(value)


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """'did you mean `rank`?' when one allowed name is close, else ''."""
    near = difflib.get_close_matches(str(name), list(allowed), n=1, cutoff=0.6)
    return f"did you mean `{near[0]}`?" if near else ""


class ConfigError(PeftError):
    code, kind = 2, "config"


class UnsupportedError(PeftError):
    code, kind = 2, "unsupported"


class DataError(PeftError):
    code, kind = 3, "data"


def refuse(problems: list[Problem], where: str = "data", shown: int = 12) -> None:
    """Raises one DataError with the first findings and the number of the others; nothing to say is no error."""
    if problems:
        rest = [Problem(where, f"{len(problems) - shown} more findings")] if len(problems) > shown else []
        raise DataError(problems=[*problems[:shown], *rest])


class AdapterError(PeftError):
    code, kind = 4, "adapter"


class DeadSiteError(AdapterError):
    pass


class MergeError(AdapterError):
    pass


class FingerprintError(AdapterError):
    pass


class TrainingError(PeftError):
    code, kind = 5, "training"


class EnvironmentError_(PeftError):
    code, kind = 6, "environment"
