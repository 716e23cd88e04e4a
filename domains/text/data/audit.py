"""What a careful reader would ask of the texts before believing a score: leaks, near duplicates, what has a loss.

errors    stop the run (`run.audit=warn` lets it go on): what makes the test score or the training meaningless
warnings  are shown; facts go to the run card: numbers, histograms as {"bins", "counts"}, one item as a model sees it
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from core.contracts import Audit
from domains.text.data.duplicates import near
from domains.text.data.texts import Seen, spoken

Items = dict[str, list[dict[str, Any]]]
ALIKE = 0.8  # similarity of 5-word shingles from which two texts are near duplicates


def audit(
    items: Items,
    *,
    seen: dict[str, Seen],
    notes: dict[str, int],
    sample: dict[str, Any] | None = None,
    shared_end: bool = False,
) -> Audit:
    """Findings over the items by split.

    seen     what rendering found in each item, by id; {} before any rendering     notes   the reader's own counts
    sample   one item: tokens, and which have a loss     shared_end   padding and end are one token
    """
    found = Audit()
    for split, part in items.items():
        found.facts[f"{split} items"] = len(part)
        found.facts[f"{split} groups"] = len({item["group"] for item in part})
    found.facts |= notes
    _leaks(items, found)
    _duplicates(items, found)
    if seen:
        _rendered(items, seen, found)
        found.facts["padding and end are one token"] = "yes: labels go by position" if shared_end else "no"
    if sample:
        found.facts["one item, [with a loss]"] = marked(sample)
    return found


def _leaks(items: Items, found: Audit) -> None:
    """The same group, or the same words under two groups, on both sides of a split."""
    for name, key in (("group", lambda item: item["group"]), ("text", words)):
        where: dict[str, dict[str, str]] = defaultdict(dict)
        for split, part in items.items():
            for item in part:
                where[key(item)].setdefault(split, item["id"])
        shared = [splits for splits in where.values() if len(splits) > 1]
        found.facts[f"{name}s in two splits"] = len(shared)
        if shared:
            shown = "; ".join(" = ".join(f"{i} ({split})" for split, i in s.items()) for s in shared[:3])
            fix = "data.split=random keeps them together, data.drop_leaks=true leaves them out of train"
            found.errors.append(f"{len(shared)} {name}{'s' * (len(shared) > 1)} in two splits: {shown}; {fix}")


def words(item: dict[str, Any]) -> str:
    """The words of an item, without case and spacing."""
    return " ".join(" ".join(spoken(item)).lower().split())


def _duplicates(items: Items, found: Audit) -> None:
    """Exact repeats within a split, near duplicates within train and between train and test."""
    for split, part in items.items():
        repeats = len(part) - len({words(item) for item in part})
        if repeats:
            found.facts[f"{split} texts said again"] = repeats
    train, test = items.get("train", []), items.get("test", [])
    if not train or not test:
        return
    across = near([words(item) for item in test], [words(item) for item in train], ALIKE)
    closest = [similarity for _, similarity in across]
    found.facts["test texts nearly like one of train"] = sum(similarity >= ALIKE for similarity in closest)
    found.facts["similarity of test to train"] = histogram(closest, np.linspace(0, 1, 11))
    alike = [(test[i]["id"], train[j]["id"], s) for i, (j, s) in enumerate(across) if s >= ALIKE]
    if alike:
        shown = "; ".join(f"{a} (test) and {b} (train), {s:.2f}" for a, b, s in alike[:3])
        found.warnings.append(f"{len(alike)} test texts are nearly like one of train: {shown}")


def _rendered(items: Items, seen: dict[str, Seen], found: Audit) -> None:
    every = [(split, item["id"], seen[item["id"]]) for split, part in items.items() for item in part]
    if not every:
        return
    tokens = [s.tokens for *_, s in every]
    found.facts["tokens"] = histogram(tokens)
    found.facts["longest, tokens"] = max(tokens)
    found.facts["tokens with a loss"] = histogram([s.supervised for *_, s in every])
    total = sum(tokens)
    found.facts["share of tokens with a loss"] = round(sum(s.supervised for *_, s in every) / total, 4)
    cut = [name for _, name, s in every if s.cut]
    found.facts["items cut"] = len(cut)
    if cut:
        share = 100 * len(cut) / len(every)
        found.warnings.append(f"{len(cut):,} of {len(every):,} items ({share:.1f} %) are cut (task.max_length)")
    open_ended = [name for _, name, s in every if not s.ended and s.supervised]
    found.facts["items whose end has no loss"] = len(open_ended)
    if open_ended:
        found.warnings.append(f"{_names(open_ended)} whose end has no loss: a model does not learn there when to stop")
    unknown = sum(s.unknown for *_, s in every)
    found.facts["unknown tokens"] = unknown
    if unknown:
        found.warnings.append(f"{unknown:,} of {total:,} tokens are unknown to this backbone's tokenizer")


def _names(names: list[str]) -> str:
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return f"{len(names)} item{'s' * (len(names) > 1)} ({shown})"


def marked(sample: dict[str, Any], most: int = 700) -> str:
    """The sample's text, what has a loss in [brackets]."""
    return " ".join(f"[{text}]" if loss else text for text, loss in sample["spans"])[:most]


def histogram(values: Any, bins: Any = 10) -> dict[str, list]:
    counts, edges = np.histogram(np.asarray(values, dtype=float), bins=bins)
    return {"bins": [float(f"{edge:.4g}") for edge in edges], "counts": counts.tolist()}
