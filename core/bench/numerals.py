"""How numbers are written for people: three digits, thousands separated, unknown is `-`. ASCII."""

from __future__ import annotations

import math
from typing import Any

UNKNOWN = "-"


def number(value: float | None) -> str:
    """Three significant digits: 0.0123, 1.23, 12.3, 1,234; 3e-07 for the very small."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-3 or size >= 1e7:
        return f"{value:.3g}"
    if size >= 100:
        return f"{value:,.0f}"
    return f"{value:.{2 - math.floor(math.log10(size))}f}"


def short(value: float | None) -> str:
    """As `number`, without zeros that end a fraction: for axes and bars."""
    text = number(value)
    return text.rstrip("0").rstrip(".") if "." in text and "e" not in text else text


def count(value: int | None) -> str:
    return UNKNOWN if value is None else f"{int(value):,}"


def score(value: float | None, unit: str = "") -> str:
    """Three decimals, or three digits from 10 upward: a column of scores lines up."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    text = f"{value:.3f}" if abs(value) < 10 else number(value)
    return f"{text} {unit}" if unit else text


def interval(ends: Any) -> str:
    return "" if ends is None or ends[0] is None else f"[{score(ends[0])}, {score(ends[1])}]"


def signed(value: float | None) -> str:
    return UNKNOWN if value is None or not math.isfinite(value) else ("+" if value >= 0 else "") + score(value)


def size(value: float | None) -> str:
    """Bytes for people: 512 B, 64.3 KiB, 23.1 MiB, 1.20 GiB."""
    if value is None:
        return UNKNOWN
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{int(value)} B" if unit == "B" else f"{number(value)} {unit}"
        value /= 1024
    return f"{number(value)} GiB"


def mebibytes(value: float | None) -> str:
    return UNKNOWN if value is None else number(value / 2**20)


def seconds(value: float | None) -> str:
    """12.3 ms, 4.56 s, 3 min 20 s, 2 h 05 min."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    if value < 0.1:
        return f"{number(value * 1000)} ms"
    if value < 120:
        return f"{number(value)} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def ratio(value: float | None, base: float | None) -> str:
    """`0.52x`, or '' where a side is unknown."""
    return "" if value is None or not base else f"{short(value / base)}x"
