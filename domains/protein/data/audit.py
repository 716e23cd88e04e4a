"""What a careful reader would ask of the data before believing a score: homologs in train, leaks, conflicts, labels.

errors    stop the run (`run.audit=warn` lets it go on): what makes the test score meaningless
warnings  are shown; facts go to the run card: numbers, and histograms as {"bins": [...], "counts": [...]}
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import numpy as np

from core.contracts import Audit
from domains.protein.data.identity import BANDS, nearest
from domains.protein.data.residues import STANDARD

Items = dict[str, list[dict[str, Any]]]
BAND_NAMES = ("below 20 %", "20-30 %", "30-50 %", "above 50 %")
SAMPLE = 1000  # test proteins compared with train; more are sampled, and the card says so


def audit(
    items: Items, *, over_limit: dict[str, int], notes: dict[str, int], identity: dict[str, float] | None = None
) -> Audit:
    """Findings over the items by split.

    over_limit   split -> how many items the length limit touched       notes   reader's counts (rows left out)
    identity     what `compared` gave, where it is known
    """
    found = Audit()
    _sizes(items, over_limit, notes, found)
    _leaks(items, found)
    _repeats(items, found)
    _residues(items, found)
    _labels(items, found)
    _homologs(items, compared(items) if identity is None else identity, found)
    return found


def compared(items: Items) -> dict[str, float]:
    """Test id -> identity (0..1) to the most similar train sequence; of large test splits a sample."""
    train, test = items.get("train", []), items.get("test", [])
    if not train or not test:
        return {}
    if len(test) > SAMPLE:
        test = [test[i] for i in np.sort(np.random.default_rng(0).choice(len(test), SAMPLE, replace=False))]
    values, _ = nearest([item["sequence"] for item in test], [item["sequence"] for item in train], budget=SAMPLE)
    return dict(zip((item["id"] for item in test), values.tolist(), strict=True))


def bands(identity: dict[str, float]) -> dict[str, list[str]]:
    """Band name -> ids of the test items whose nearest train protein lies in it."""
    out: dict[str, list[str]] = {name: [] for name in BAND_NAMES}
    for name, value in identity.items():
        out[BAND_NAMES[int(np.searchsorted(BANDS[1:-1], value, side="right"))]].append(name)
    return out


def histogram(values: Any, bins: Any = 10) -> dict[str, list]:
    counts, edges = np.histogram(np.asarray(values, dtype=float), bins=bins)
    return {"bins": [float(f"{edge:.4g}") for edge in edges], "counts": counts.tolist()}


def _sizes(items: Items, over_limit: dict[str, int], notes: dict[str, int], found: Audit) -> None:
    everything = [item for part in items.values() for item in part]
    for split, part in items.items():
        found.facts[f"{split} items"] = len(part)
        found.facts[f"{split} groups"] = len({item["group"] for item in part})
    lengths = [len(item["sequence"]) for item in everything]
    if lengths:
        found.facts["length"] = histogram(lengths)
        found.facts["longest"] = max(lengths)
    found.facts |= notes
    for split, n in over_limit.items():
        if n:
            found.facts[f"{split} items over the length limit"] = n
    if touched := sum(over_limit.values()):
        found.warnings.append(f"{touched:,} of {len(everything):,} sequences are over the length limit (data.too_long)")


def _leaks(items: Items, found: Audit) -> None:
    """The same id, sequence or group on both sides of a split."""
    for key in ("sequence", "group"):
        where: dict[str, dict[str, str]] = defaultdict(dict)
        for split, part in items.items():
            for item in part:
                where[item[key]].setdefault(split, item["id"])
        shared = [splits for splits in where.values() if len(splits) > 1]
        found.facts[f"{key}s in two splits"] = len(shared)
        if shared:
            shown = "; ".join(" = ".join(f"{name} ({split})" for split, name in s.items()) for s in shared[:3])
            fix = "data.drop_leaks=true leaves them out of train" if key == "sequence" else "data.split=random"
            found.errors.append(f"{len(shared)} {key}{'s' * (len(shared) > 1)} in two splits: {shown}; {fix}")


def _repeats(items: Items, found: Audit) -> None:
    repeats, conflicts, worst = 0, 0, 0.0
    by_sequence: dict[str, list[Any]] = defaultdict(list)
    for part in items.values():
        within = Counter(item["sequence"] for item in part)
        repeats += sum(n - 1 for n in within.values())
        for item in part:
            by_sequence[item["sequence"]].append(item.get("label"))
    for labels in by_sequence.values():
        if len(set(labels)) > 1:
            conflicts += 1
            if all(isinstance(label, float) for label in labels):
                worst = max(worst, max(labels) - min(labels))
    found.facts["repeated sequences within splits"] = repeats
    found.facts["sequences with conflicting labels"] = conflicts
    if conflicts:
        size = f", up to {worst:.3g} apart" if worst else ""
        found.warnings.append(f"{conflicts} sequences have conflicting labels{size}")
    native = {item["wildtype"] for part in items.values() for item in part if item.get("wildtype")}
    if native:
        found.facts["wild type in train"] = sum(item["sequence"] in native for item in items.get("train", []))
        elsewhere = [s for s in ("val", "test") for item in items.get(s, []) if item["sequence"] in native]
        if elsewhere:
            found.warnings.append(f"the wild type itself is in {', '.join(sorted(set(elsewhere)))}")


def _residues(items: Items, found: Audit) -> None:
    text = Counter()
    for part in items.values():
        for item in part:
            text.update(item["sequence"])
    total = sum(text.values())
    unusual = {residue: n for residue, n in sorted(text.items()) if residue not in STANDARD}
    found.facts["residues"] = total
    found.facts["non-standard residues"] = sum(unusual.values())
    if unusual:
        found.facts["non-standard letters"] = {"bins": list(unusual), "counts": list(unusual.values())}
    if total and sum(text[letter] for letter in "ACGTUN") / total > 0.9:
        found.warnings.append("the sequences look like nucleotides: over 90 % of the letters are A, C, G, T, U, N")


def _labels(items: Items, found: Audit) -> None:
    train, test = items.get("train", []), items.get("test", [])
    labelled = [item for part in items.values() for item in part if item.get("label") is not None]
    if not labelled:
        return
    if all(isinstance(item["label"], float) for item in labelled):
        values = np.array([item["label"] for item in labelled])
        found.facts["label"] = histogram(values)
        found.facts["label range"] = [float(f"{values.min():.4g}"), float(f"{values.max():.4g}")]
        ties = 1 - len(np.unique(values)) / len(values)
        found.facts["tied labels"] = float(f"{ties:.3g}")
        if ties > 0.5:
            found.warnings.append(f"{ties:.0%} of the labels are ties: rank correlation is blunt")
        for split, part in (("train", train), ("test", test)):
            if len(part) > 1 and len({item["label"] for item in part}) == 1:
                found.errors.append(f"all {split} labels are {part[0]['label']:g}: nothing to learn or to rank")
        return
    per_residue = any(len(item["label"]) == len(item["sequence"]) for item in labelled) and all(
        len(item["label"]) == len(item["sequence"]) for item in labelled
    )
    counts = {"train": _classes(train, per_residue), "test": _classes(test, per_residue)}
    for split, count in counts.items():
        found.facts[f"{split} classes"] = {"bins": sorted(count), "counts": [count[name] for name in sorted(count)]}
    if len(counts["train"]) == 1:
        found.errors.append(f"all train labels are {next(iter(counts['train']))}: nothing to learn")
    unseen = sorted(set(counts["test"]) - set(counts["train"]))
    if unseen and counts["train"]:
        found.warnings.append(f"test has classes that train lacks: {', '.join(unseen[:10])}")
    total, most = sum(counts["train"].values()), max(counts["train"].values(), default=0)
    if total and most / total > 0.9:
        found.warnings.append(f"{most / total:.0%} of the train labels are one class: read macro scores, not accuracy")


def _classes(part: list[dict[str, Any]], per_residue: bool) -> Counter:
    count = Counter()
    for item in part:
        if item.get("label") is None:
            continue
        if not per_residue:
            count[item["label"]] += 1
        elif item.get("resolved"):
            count.update(c for c, seen in zip(item["label"], item["resolved"], strict=True) if seen == "1")
        else:
            count.update(item["label"])
    return count


def _homologs(items: Items, identity: dict[str, float], found: Audit) -> None:
    if not identity:
        return
    if len(identity) < len(items["test"]):
        found.facts["test items compared with train"] = len(identity)
    by_band = bands(identity)
    found.facts["identity test to train"] = histogram(list(identity.values()), np.linspace(0, 1, 11))
    counts = [len(ids) for ids in by_band.values()]
    found.facts["test items by identity to train"] = {"bins": list(by_band), "counts": counts}
    if counts[-1] and not any(item.get("sites") for item in items["test"]):
        share = counts[-1] / len(identity)
        found.warnings.append(f"{counts[-1]} test proteins ({share:.1%}) have a train protein above 50 % identity")
