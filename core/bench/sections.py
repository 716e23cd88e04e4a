"""Parts of the run card as rows of text: costs, scores, sites, data audit, certificate, how to repeat it.

Numbers are written here, so that a template holds none; what is not known is left out or `-`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from core.bench import numerals, result
from core.bench.result import Record
from core.errors import DataError


def key(record: Record) -> list[tuple[str, str]]:
    fraction = f" ({numerals.number(100 * record.fraction)} %)" if record.fraction is not None else ""
    values = [
        ("trainable parameters", numerals.count(record.trainable) + fraction, record.trainable),
        ("adapter file", numerals.size(record.adapter_bytes), record.adapter_bytes),
        ("saved for backward, per step", numerals.size(record.saved_activation_bytes), record.saved_activation_bytes),
        ("per step", numerals.seconds(record.step_time_s), record.step_time_s),
        ("in all", numerals.seconds(record.wall_s), record.wall_s),
    ]
    return [(name, text) for name, text, known in values if known is not None]


def error_block(record: Record) -> str | None:
    if record.error is None:
        return None
    error = record.error
    fields = [(name, getattr(error, name)) for name in ("where", "got", "allowed", "fix")]
    lines = [f"error: {error.class_}, exit code {error.code}"]
    return "\n".join(lines + [f"  {name:<8} {text}" for name, text in fields if text])


def costs(record: Record, full: Record | None) -> list[dict[str, str]]:
    plan = record.plan or result.Plan()
    rows = [
        ("trainable parameters, head excluded", numerals.count, "trainable", None),
        ("trainable parameters of the head", numerals.count, "head_trainable", None),
        ("adapter file", numerals.size, "adapter_bytes", None),
        ("saved for backward, per step", numerals.size, "saved_activation_bytes", None),
        (f"peak memory{f' ({record.memory_kind})' if record.memory_kind else ''}", numerals.size, "peak_memory_bytes",
         plan.peak_memory_bytes),
        ("time per step (median)", numerals.seconds, "step_time_s", None),
        ("wall time", numerals.seconds, "wall_s", plan.wall_s),
        ("GFLOP forward, per example", lambda value: numerals.number(value and value / 1e9), "flops_forward", None),
        ("GFLOP backward, per example", lambda value: numerals.number(value and value / 1e9), "flops_backward", None),
        ("examples per second", numerals.number, "examples_per_s", None),
    ]  # fmt: skip
    out = []
    for name, text, field, planned in rows:
        real, other = getattr(record, field), getattr(full, field, None)
        if real is not None or planned is not None:
            ratio = numerals.ratio(real, other)
            out.append({"name": name, "plan": text(planned) if planned is not None else "", "real": text(real),
                        "full": text(other), "ratio": ratio})  # fmt: skip
    return out


def cost_note(record: Record) -> str:
    facts = [
        f"{record.steps:,} steps" if record.steps else "",
        f"batch {record.batch_size}" if record.batch_size else "",
        f"{record.examples_seen:,} examples seen" if record.examples_seen else "",
        record.precision or "",
        f"{record.devices.count} x {record.devices.kind}" if record.devices else "",
        record.hardware or "",
    ]
    return ", ".join(fact for fact in facts if fact)


def all_scores(record: Record) -> list[dict[str, str]]:
    primary = (record.primary.split, record.primary.name) if record.primary else None
    rows = [
        {"split": split, "name": name, "value": numerals.score(line.value, line.unit),
         "ci": numerals.interval(line.ci95), "n": numerals.count(line.n)}
        for split in sorted(record.metrics, key=lambda split: (split != "test", split))
        for name, line in record.metrics[split].items()
    ]  # fmt: skip
    return rows if len(rows) > 1 or primary is None else []


def sites(directory: Path) -> dict[str, Any]:
    """`sites`: one row per role, path, reason and shape, in network order, and `sites_total`."""
    rows = _json(directory / "sites.json")
    rows = rows.get("rows", []) if isinstance(rows, dict) else rows or []
    table: dict[tuple, list[int | None]] = {}
    for row in rows:
        shape = row.get("shape")
        shape = f"({', '.join(f'{n:,}' for n in shape)})" if isinstance(shape, (list, tuple)) else str(shape or "-")
        key = row.get("role", "-"), row.get("path", "-"), row.get("why", ""), shape
        sums = table.setdefault(key, [0, 0])
        sums[0] += row.get("sites", 1)
        sums[1] += row.get("parameters") or 0
    shown = [
        {"role": role, "path": path, "why": why, "shape": shape, "sites": f"{n:,}", "parameters": f"{size:,}"}
        for (role, path, why, shape), (n, size) in table.items()
    ]
    totals = [sum(column) for column in zip(*table.values(), strict=True)] if table else [0, 0]
    return {"sites": shown, "sites_total": {"sites": f"{totals[0]:,}", "parameters": f"{totals[1]:,}"}}


def audit(directory: Path) -> dict[str, Any] | None:
    audit = _json(directory / "audit.json")
    if not audit:
        return None
    facts = [fact for name, value in audit.get("facts", {}).items() for fact in _facts(name, value)]
    return {"errors": audit.get("errors", []), "warnings": audit.get("warnings", []),
            "facts": sorted(facts, key=lambda fact: bool(fact["bars"]))}  # fmt: skip


def _facts(name: str, value: Any) -> list[dict[str, Any]]:
    """One fact as text or as bars; a dict of facts is one line, or one entry per histogram in it."""
    shown = name.replace("_", " ")
    if isinstance(value, dict) and {"bins", "counts"} <= value.keys():
        counts, bins = value["counts"], value["bins"]
        high = max(counts, default=0) or 1
        edges = len(bins) == len(counts) + 1
        names = [
            f"{_plain(bins[i])} to {_plain(bins[i + 1])}" if edges else _plain(bins[i]) for i in range(len(counts))
        ]
        bars = [
            {"height": round(100 * n / high, 1), "title": f"{label}: {n:,}"}
            for label, n in zip(names, counts, strict=True)
        ]
        return [{"name": shown, "bars": bars, "first": _plain(bins[0]) if bins else "", "text": "",
                 "last": _plain(bins[-1]) if bins else ""}]  # fmt: skip
    if isinstance(value, dict) and any(isinstance(part, dict) for part in value.values()):
        return [fact for key, part in value.items() for fact in _facts(f"{name}, {key}", part)]
    if isinstance(value, dict):
        text = ", ".join(f"{key} {_plain(part)}" for key, part in value.items())
    elif isinstance(value, (list, tuple)):
        text = ", ".join(_plain(part) for part in value[:12]) + (
            f", and {len(value) - 12:,} more" if len(value) > 12 else ""
        )
    else:
        text = _plain(value)
    return [{"name": shown, "bars": [], "text": text or "-"}]


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return numerals.short(value) if isinstance(value, float) else str(value)


def certificate(record: Record) -> list[dict[str, str]]:
    found = record.certificate or result.Certificate()
    if record.certificate is None and record.merge_error is None:
        return []
    live = found.live
    words = {True: ("yes", "yes"), False: ("no", "NO"), None: ("unknown", "not checked")}
    merged = ("unknown", "not checked, or not mergeable")
    if record.merge_error is not None:
        merged = (
            "yes" if record.merge_error <= 1e-5 else "no",
            f"relative error {numerals.number(record.merge_error)}",
        )
    rows = [
        ("every site is read and gets a gradient",
         ("yes" if live[0] == live[1] else "no", f"{live[0]} of {live[1]}") if live else words[None]),
        ("merged into the base, it computes the same", merged),
        ("the base has the same bits after training", words[found.base_bit_equal]),
        ("no group is in two splits", words[found.splits_disjoint]),
        ("saved and loaded again, it has the same bits", words[found.reload_equal]),
    ]  # fmt: skip
    return [{"name": name, "state": state, "value": text} for name, (state, text) in rows]


def repeat(record: Record) -> list[tuple[str, str]]:
    options = ", ".join(f"{key} {value}" for key, value in record.options.items())
    git = (
        record.git
        and record.git.commit
        and record.git.commit[:12] + (" with local changes" if record.git.dirty else "")
    )
    rows = [
        ("seed", record.seed),
        ("method", f"{record.method}" + (f" ({options})" if options else "")),
        ("roles", ", ".join(record.targets)),
        ("lr", numerals.short(record.lr) if record.lr else None),
        ("lr trials", f"{record.tuning_budget}, chosen on validation" if record.tuning_budget else None),
        ("versions", ", ".join(f"{name} {version}" for name, version in record.versions.items())),
        ("code", git),
        ("base", f"{record.base_fingerprint or ''} {numerals.count(record.base_parameters)} parameters"
         if record.base_parameters else record.base_fingerprint),
        ("split", record.split_hash and record.split_hash[:16]),
        ("config", record.config_hash and record.config_hash[:16]),
        ("started", record.started),
        ("run", record.run_id),
    ]  # fmt: skip
    return [(name, str(value)) for name, value in rows if value not in (None, "")]


def _json(path: Path) -> Any:
    """Content of a JSON file, None where it does not exist. DataError names the file."""
    text = text_of(path)
    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError as error:
        raise DataError(str(path), f"not JSON: {error}", "a whole JSON file") from error


def text_of(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None
