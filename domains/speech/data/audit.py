"""What a careful listener would ask of recordings before believing a score: clipping, silence, rates, leaks, speakers.

errors    stop the run (`run.audit=warn` lets it go on): what makes the test score meaningless
warnings  are shown; facts go to the run card: numbers, and histograms as {"bins": [...], "counts": [...]}
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from core.contracts import Audit
from domains.speech.data.audio import Header, sounding

Items = dict[str, list[dict[str, Any]]]
SAMPLE = 400  # recordings that are listened to, per split; the card says so where there are more
FULL_SCALE, CLIPPED = 0.999, 4  # of full scale; so many such samples in a row are clipping
DC, SILENCE, BELOW = 0.01, 0.5, 40.0  # mean of the samples; seconds at one end; dB below the loudest 10 ms
QUIET = -45.0  # dB of the mean square
STANDARD = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,;:!?'\"()-&%$/")


def audit(
    items: Items,
    *,
    together: str = "utterance",
    headers: dict[Path, Header] | None = None,
    notes: dict[str, int] | None = None,
    listen: int = SAMPLE,
) -> Audit:
    """Findings over the items by split.

    together   what the split claims to keep together: utterance (its text), speaker or session
    headers    of the sound files read        notes   reader's counts (what was left out)
    listen     at most so many recordings of a split are listened to
    """
    found = Audit()
    found.facts |= notes or {}
    _sizes(items, headers or {}, found)
    _leaks(items, together, found)
    _text(items, found)
    _labels(items, found)
    _sound(items, listen, found)
    return found


def histogram(values: Any, bins: Any = 10) -> dict[str, list]:
    counts, edges = np.histogram(np.asarray(values, dtype=float), bins=bins)
    return {"bins": [float(f"{edge:.4g}") for edge in edges], "counts": counts.tolist()}


def _sizes(items: Items, headers: dict[Path, Header], found: Audit) -> None:
    for split, part in items.items():
        found.facts[f"{split} items"] = len(part)
        found.facts[f"{split} minutes"] = round(sum(item["seconds"] for item in part) / 60, 2)
        found.facts[f"{split} speakers"] = len({item["speaker"] for item in part})
    seconds = [item["seconds"] for part in items.values() for item in part]
    if seconds:
        found.facts["seconds"] = histogram(seconds)
    rates = Counter(h.sample_rate for h in headers.values())
    if rates:
        found.facts["sample rates of the files"] = [f"{rate} Hz: {n}" for rate, n in rates.most_common()]
    if len(rates) > 1:
        shown = ", ".join(f"{n} files at {rate} Hz" for rate, n in rates.most_common())
        found.warnings.append(f"a mix of sample rates, resampled: {shown}; nothing is above half of a file's own rate")
    if several := sum(h.channels > 1 for h in headers.values()):
        found.facts["files with several channels, averaged"] = several


def _leaks(items: Items, together: str, found: Audit) -> None:
    """The same text, speaker or session on both sides of a split, where the split claims that there is none."""
    told = {"utterance": "text", "speaker": "speaker", "session": "session"}
    for key in ("text", "speaker", "session"):
        where: dict[str, dict[str, str]] = defaultdict(dict)
        for split, part in items.items():
            for item in part:
                if item.get(key):
                    where[item[key]].setdefault(split, item["id"])
        if not where:
            continue
        shared = {value: splits for value, splits in where.items() if len(splits) > 1}
        found.facts[f"{key}s in two splits"] = len(shared)
        if shared and key == told[together]:
            value, splits = next(iter(shared.items()))
            names = " = ".join(f"{name} ({split})" for split, name in splits.items())
            names = f"`{value[:40]}`, {names}; data.split=random data.together={together}"
            found.errors.append(f"{len(shared)} {key}{'s' * (len(shared) > 1)} in two splits: {names}")


def _text(items: Items, found: Audit) -> None:
    said = [item for part in items.values() for item in part if item.get("text")]
    if not said:
        return
    rate = np.array([len(item["text"]) / max(item["seconds"], 1e-3) for item in said])
    found.facts["characters per second"] = histogram(rate)
    middle = float(np.median(rate))
    out = np.flatnonzero((rate > 2 * middle) | (rate < middle / 2))
    found.facts["utterances with unusual characters per second"] = len(out)
    if len(out):
        worst = said[out[np.argmax(np.abs(np.log(rate[out] / middle)))]]
        speed = len(worst["text"]) / max(worst["seconds"], 1e-3)
        found.warnings.append(
            f"{len(out)} utterances have under half or over twice the median of {middle:.1f} characters per second: "
            f"text and sound may not belong together (worst: {worst['id']}, {speed:.1f})"
        )
    other = Counter(c for item in said for c in item["text"] if c not in STANDARD)
    found.facts["characters outside plain English"] = sum(other.values())
    if other:
        shown = " ".join(c for c, _ in other.most_common(10))
        found.warnings.append(f"characters that may not be spoken: {shown}")


def _labels(items: Items, found: Audit) -> None:
    train, test = items.get("train", []), items.get("test", [])
    if not any(item.get("label") for item in train):
        return
    count = {split: Counter(item["label"] for item in part) for split, part in items.items()}
    for split in ("train", "test"):
        names = sorted(count.get(split, {}))
        found.facts[f"{split} classes"] = {"bins": names, "counts": [count[split][name] for name in names]}
    if len(count["train"]) == 1:
        found.errors.append(f"all train labels are {next(iter(count['train']))}: nothing to learn")
    if unseen := sorted(set(count.get("test", {})) - set(count["train"])):
        found.warnings.append(f"test has classes that train lacks: {', '.join(unseen[:10])}")
    per: dict[str, set[str]] = defaultdict(set)
    for item in train:
        per[item["speaker"]].add(item["label"])
    if len(per) > 1 and all(len(labels) == 1 for labels in per.values()) and len(count["train"]) < len(per):
        found.warnings.append("every train speaker has one label only: a model may learn speakers instead of labels")
    shared = {item["speaker"] for item in train} & {item["speaker"] for item in test}
    labels = {item["label"] for item in train}
    if shared and not labels <= {item["speaker"] for item in train}:
        found.facts["test speakers heard in training"] = len(shared)


def _sound(items: Items, listen: int, found: Audit) -> None:
    """What only listening tells: levels, silence, clipping, a mean beside 0, the same recording twice."""
    rows: list[tuple[str, dict[str, float]]] = []
    digests: dict[str, dict[str, str]] = defaultdict(dict)
    for split, part in items.items():
        chosen = range(len(part))
        if len(part) > listen:
            chosen = np.sort(np.random.default_rng(0).choice(len(part), listen, replace=False))
            found.facts[f"{split} recordings listened to"] = listen
        for i in chosen:
            samples, rate = part[i]["read"]()
            rows.append((part[i]["id"], listened(samples, rate)))
            digests[hashlib.sha256(samples.tobytes()).hexdigest()].setdefault(split, part[i]["id"])
    if not rows:
        return
    shared = [splits for splits in digests.values() if len(splits) > 1]
    found.facts["recordings in two splits"] = len(shared)
    if shared:
        names = " = ".join(f"{name} ({split})" for split, name in shared[0].items())
        found.errors.append(f"{len(shared)} recording{'s' * (len(shared) > 1)} in two splits: {names}")
    found.facts["loudness, dB"] = histogram([max(row["loudness"], -100) for _, row in rows])
    found.facts["silence at the ends, s"] = histogram([row["leading"] + row["closing"] for _, row in rows])
    for text, key, over in (
        ("are clipped", "clipped", 0),
        (f"have a mean over {DC} of full scale (DC)", "dc", DC),
        (f"begin or end with more than {SILENCE} s of silence (data.trim={BELOW:.0f} cuts it)", "edge", SILENCE),
        (f"are softer than {QUIET:.0f} dB (data.loudness=-25 lifts them)", "quiet", 0),
    ):
        bad = [(row[key], name) for name, row in rows if row[key] > over]
        found.facts[f"recordings that {text.partition(' (data')[0]}"] = len(bad)
        if bad:
            found.warnings.append(f"{len(bad)} of {len(rows)} recordings {text}, such as {max(bad)[1]}")


def listened(samples: np.ndarray, rate: int) -> dict[str, float]:
    """Of one recording: clipped (samples), dc, loudness (dB), leading, closing and edge (s), quiet (0 or 1)."""
    power = float(np.square(samples, dtype=np.float64).mean())
    first, last = sounding(samples, rate, BELOW)
    leading, closing = first / rate, (len(samples) - last) / rate
    loudness = 10 * np.log10(max(power, 1e-12))
    return {
        "clipped": clipped(samples),
        "dc": abs(float(samples.mean())),
        "loudness": loudness,
        "leading": leading,
        "closing": closing,
        "edge": max(leading, closing),
        "quiet": float(loudness < QUIET),
    }


def clipped(samples: np.ndarray) -> int:
    """Samples in runs of at least four at one value near full scale, or at the recording's own flat top."""
    peak = float(np.abs(samples).max(initial=0.0))
    if peak < 0.5:
        return 0
    flat = (np.abs(samples) >= min(peak, FULL_SCALE) * 0.9999).astype(np.int8)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [0]])))
    runs = edges[1::2] - edges[::2]
    return int(runs[runs >= CLIPPED].sum())
