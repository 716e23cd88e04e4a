"""What a careful reader would ask of the data before believing a score: leaks, patients, empty masks, grids, balance.

errors    stop the run (`run.audit=warn` lets it go on): what makes the test score meaningless
warnings  are shown; facts go to the run card: numbers, and histograms as {"bins": [...], "counts": [...]}
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import numpy as np

from core.contracts import Audit

ALIKE = 0.995  # correlation of two thumbnails from which on the images are near duplicates
COMPARED = 20_000_000  # pairs of thumbnails at most; of more, held-out images are sampled
FAR = 2.0  # a voxel size this many times the median, or below its inverse, is an outlier
ORDER = ("train", "val", "test")

Parts = dict[str, list[dict[str, Any]]]


def audit(rows: Parts, *, classes: list[str], notes: dict[str, int]) -> Audit:
    """Findings over the scanned rows by split.

    classes   names of a mask's classes from the background on, [] where there are no masks      notes   reader's counts
    """
    found = Audit()
    for split, part in rows.items():
        found.facts[f"{split} images"] = len(part)
        found.facts[f"{split} patients"] = len({row["group"] for row in part})
    found.facts |= {key: value for key, value in notes.items() if not _assumption(key)}
    found.warnings += [key for key in notes if _assumption(key)]
    _leaks(rows, found)
    _alike(rows, found)
    _grids(rows, found)
    if classes:
        _masks(rows, classes, found)
    else:
        _labels(rows, found)
    _subgroups(rows, found)
    return found


def _assumption(key: str) -> bool:
    return "(data." in key


def _leaks(rows: Parts, found: Audit) -> None:
    """The same patient, or the same image to the pixel, on both sides of a split."""
    fixes = {
        "group": (
            "patient",
            "data.split=random keeps patients together, data.drop_leaks=true leaves them out of train",
        ),
        "digest": ("image", "data.drop_leaks=true leaves them out of train"),
    }
    for key, (what, fix) in fixes.items():
        where: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for split in ORDER:
            for row in rows.get(split, []):
                where[row[key]][split].append(row["id"])
        shared = [splits for splits in where.values() if len(splits) > 1]
        found.facts[f"{what}s in two splits"] = len(shared)
        if shared:
            sides = Counter(split for splits in shared for split, ids in splits.items() for _ in ids)
            counts = ", ".join(f"{sides[split]} in {split}" for split in ORDER if sides[split])
            shown = "; ".join(" = ".join(f"{ids[0]} ({split})" for split, ids in s.items()) for s in shared[:3])
            plural = "s" * (len(shared) > 1)
            found.errors.append(f"{len(shared)} {what}{plural} in two splits ({counts} images): {shown}; {fix}")
    repeats, conflicts = 0, 0
    labels = defaultdict(set)
    for part in rows.values():
        repeats += sum(n - 1 for n in Counter(row["digest"] for row in part).values())
        for row in part:
            labels[row["digest"]].add(row.get("label"))
    conflicts = sum(len(values) > 1 for values in labels.values())
    found.facts["repeated images within splits"] = repeats
    if conflicts:
        found.warnings.append(f"{conflicts} images have two labels: the same pixels, different classes")


def _alike(rows: Parts, found: Audit) -> None:
    """Held-out images that look like a train image, though not to the pixel."""
    train = rows.get("train", [])
    held = [row for split in ("val", "test") for row in rows.get(split, [])]
    if not train or not held or len({row["thumbnail"].shape for row in [*train, *held]}) > 1:
        return
    most = max(1, COMPARED // len(train))
    if len(held) > most:
        held = [held[i] for i in np.sort(np.random.default_rng(0).choice(len(held), most, replace=False))]
        found.facts["held-out images compared with train"] = len(held)
    base = np.stack([row["thumbnail"] for row in train])
    near, shown = 0, ""
    for start in range(0, len(held), 512):
        part = held[start : start + 512]
        likeness = np.stack([row["thumbnail"] for row in part]) @ base.T
        for row, values in zip(part, likeness, strict=True):
            closest = int(values.argmax())
            if values[closest] >= ALIKE and row["digest"] != train[closest]["digest"]:
                near += 1
                shown = shown or f"{row['id']} and {train[closest]['id']}, correlation {values[closest]:.4f}"
    found.facts["held-out images nearly in train"] = near
    if near:
        found.warnings.append(f"{near} held-out images nearly equal a train image ({shown}): look at them")


def _grids(rows: Parts, found: Audit) -> None:
    everything = [row for part in rows.values() for row in part]
    shapes = Counter(" x ".join(map(str, row["stored"][1:])) for row in everything)
    found.facts["image sizes"] = {"bins": list(shapes)[:8], "counts": list(shapes.values())[:8]}
    channels = {row["channels"] for row in everything}
    if len(channels) > 1 and everything[0]["read"].prepare.channels is None:
        found.errors.append(f"images with {' and '.join(map(str, sorted(channels)))} channels; data.prepare.channels=1")
    dimensions = {len(row["shape"]) for row in everything}
    if len(dimensions) > 1:
        found.errors.append("pictures and volumes in one data set; one of them at a time")
        return
    spacing = np.array([row["spacing"] for row in everything])
    middle = np.median(spacing, 0)
    found.facts["spacing, mm (median)"] = [float(f"{s:.4g}") for s in middle]
    far = ((spacing > FAR * middle) | (spacing < middle / FAR)).any(1)
    if far.any():
        first = everything[int(np.flatnonzero(far)[0])]
        size = " x ".join(f"{s:.3g}" for s in first["spacing"])
        text = f"{int(far.sum())} images with a spacing far from the median ({first['id']}: {size} mm)"
        fix = "; data.prepare.spacing resamples" if len(middle) == 3 else ""
        found.warnings.append(text + fix)


def _masks(rows: Parts, classes: list[str], found: Audit) -> None:
    pairs = next(row["read"].values for part in rows.values() for row in part)
    for split, part in rows.items():
        empty = sum(not (set(row["present"]) - {0}) for row in part)
        found.facts[f"{split} empty masks"] = empty
        if part and empty == len(part):
            found.errors.append(f"all {split} masks are empty: nothing to learn or to score")
        elif empty and split == "train":
            found.warnings.append(f"{empty} of {len(part)} train masks are empty: crops of them hold no foreground")
    for index, name in enumerate(classes[1:], 1):
        values = {value for value, i in pairs or () if i == index}
        with_it, share = {}, []
        for split, part in rows.items():
            # Without pairs everything above 0 is the one class.
            amount = [sum(n for v, n in r["present"].items() if (v in values if values else v)) for r in part]
            with_it[split] = sum(n > 0 for n in amount)
            share += amount if split == "train" else []
        found.facts[f"images with {name}"] = {"bins": list(with_it), "counts": list(with_it.values())}
        found.facts[f"{name}, share of train pixels"] = float(f"{np.mean(share):.3g}") if share else 0.0
        if not with_it.get("train"):
            found.warnings.append(f"no train mask has {name}")


def _labels(rows: Parts, found: Audit) -> None:
    counts = {split: Counter(row.get("label") for row in part) for split, part in rows.items()}
    names = sorted({str(name) for count in counts.values() for name in count})
    for split, count in counts.items():
        found.facts[f"{split} classes"] = {"bins": names, "counts": [count.get(name, 0) for name in names]}
    train = counts.get("train", Counter())
    for split in ("train", "test"):
        if counts.get(split) and len(counts[split]) == 1:
            only = next(iter(counts[split]))
            found.errors.append(f"all {split} labels are {only}: nothing to learn or to tell apart")
    if unseen := sorted(set(counts.get("test", ())) - set(train)):
        found.errors.append(f"test has classes that train lacks: {', '.join(map(str, unseen[:10]))}")
    total, most = sum(train.values()), max(train.values(), default=0)
    if total and most / total > 0.8 and len(train) > 1:
        found.warnings.append(f"{most / total:.0%} of the train labels are one class: read AUROC, not accuracy")


def _subgroups(rows: Parts, found: Audit) -> None:
    """Items of each subgroup by split, and a warning where a subgroup says much of the label."""
    columns = dict.fromkeys(column for part in rows.values() for row in part for column in row.get("subgroups") or {})
    for column in columns:
        for split, part in rows.items():
            count = Counter(row["subgroups"][column] for row in part)
            found.facts[f"{split} by {column}"] = {"bins": sorted(count), "counts": [count[v] for v in sorted(count)]}
        train = [(row["subgroups"][column], row["label"]) for row in rows["train"] if "label" in row]
        by_value = defaultdict(Counter)
        for value, label in train:
            by_value[value][label] += 1
        right = sum(max(count.values()) for count in by_value.values())
        commonest = max(Counter(label for _, label in train).values(), default=0)
        if train and right - commonest > 0.2 * len(train):
            found.warnings.append(
                f"{column} tells the label in {right / len(train):.0%} of the train images: a shortcut"
            )
