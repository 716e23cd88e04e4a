"""Predictors that need no network: the bar that an adapted protein model has to clear. Same splits, scikit-learn.

residue label   majority; logistic regression on a one-hot window of 7 residues to either side
class           prior; logistic regression on one-hot positions (sequences of one length) and on 1- to 3-mer shares
number          ridge on one-hot positions (sequences of one length), on 1- to 3-mer shares; for variants the negative
                edit distance to the wild type, and the BLOSUM62 loss of the mutations
Strengths of regularisation are chosen on validation. Large training sets are sampled (`MOST`), test sets never.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import sparse

from core.contracts import Data
from domains.protein.data.identity import blosum62, letters
from domains.protein.data.residues import differences

Items = Sequence[dict[str, Any]]
SIDE = 7
LETTERS = 21  # 20 residues, anything else
UNSCORED = "-"
MOST = {"residues": 60_000, "rows": 20_000}
STRENGTHS = (0.01, 0.1, 1.0)  # inverse regularisation of logistic regression
ALPHAS = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)  # ridge


def residues(data: Data, label: Callable[[dict[str, Any]], str]) -> dict[str, list[dict[str, Any]]]:
    """Prediction rows (id, group, truth, prediction) on test for labels per residue; `label(item)` has "-" where
    nothing is scored."""
    train = _windows(data.items("train"), label, MOST["residues"])
    val = _windows(data.items("val"), label, MOST["residues"] // 3)
    common = Counter(train[1].tolist()).most_common(1)[0][0]
    rows: dict[str, list[dict[str, Any]]] = {"majority": [], "one_hot_window": []}
    model = _logistic(*train, *val)
    for item in data.items("test"):
        truth = label(item)
        guess = "".join(model.predict(_window(item["sequence"])))
        row = {"id": str(item["id"]), "group": str(item.get("group", item["id"])), "truth": truth}
        rows["majority"].append({**row, "prediction": common * len(truth)})
        rows["one_hot_window"].append({**row, "prediction": guess})
    return rows


def classes(data: Data, names: Sequence[str], label: Callable[[Any], str]) -> dict[str, np.ndarray]:
    """Name -> (test items, classes) probabilities, in the order of `names`; `label` names an item's label."""
    train, val, test = _sampled(data.items("train")), data.items("val"), data.items("test")
    truth = [np.array([label(item["label"]) for item in part]) for part in (train, val)]
    share = np.array([(truth[0] == name).mean() for name in names])
    found = {"prior": np.tile(share, (len(test), 1))}
    for name, features in _features(train, val, test).items():
        model = _logistic(features[0], truth[0], features[1], truth[1])
        table = np.zeros((len(test), len(names)))
        columns = [list(names).index(c) for c in model.classes_]
        table[:, columns] = model.predict_proba(features[2])
        found[f"{name}_logistic"] = table
    return found


def values(data: Data) -> dict[str, np.ndarray]:
    """Name -> (test items,) predictions of a number; larger is better for the two that read no label."""
    train, val, test = _sampled(data.items("train")), data.items("val"), data.items("test")
    found: dict[str, np.ndarray] = {}
    if all(isinstance(item.get("label"), (int, float)) for part in (train, val) for item in part):
        truth = [np.array([item["label"] for item in part], dtype=float) for part in (train, val)]
        for name, features in _features(train, val, test).items():
            found[f"{name}_ridge"] = _ridge(features[0], truth[0], features[1], truth[1]).predict(features[2])
    native = [item.get("wildtype") for item in test]
    if all(native):
        found["edit_distance"] = -np.array(
            [float(levenshtein(item["sequence"], item["wildtype"])) for item in test], dtype=float
        )
        if all(len(item["sequence"]) == len(item["wildtype"]) for item in test):
            found["blosum62"] = np.array([substitution_score(item["sequence"], item["wildtype"]) for item in test])
    # A library of single mutants has one distance: no ranking at all. A ridge that cannot rank is a finding, and stays.
    return {name: value for name, value in found.items() if name.endswith("_ridge") or np.ptp(value) > 0}


def levenshtein(a: str, b: str) -> int:
    """Least number of substitutions, insertions and deletions that turn a into b."""
    start = 0
    while start < min(len(a), len(b)) and a[start] == b[start]:
        start += 1
    a, b = a[start:], b[start:]
    while a and b and a[-1] == b[-1]:
        a, b = a[:-1], b[:-1]
    row = np.arange(len(b) + 1)
    text, steps = np.array(list(b)), np.arange(len(b) + 1)
    for i, letter in enumerate(a, 1):
        new = np.minimum(np.append(row[1:] + 1, row[-1] + 1)[: len(b)], row[:-1] + (text != letter)) if b else row[:0]
        # Insertions run along the row: new[j] = min over k <= j of new[k] + (j - k).
        row = np.minimum.accumulate(np.append(i, new) - steps) + steps
    return int(row[-1])


def substitution_score(sequence: str, wildtype: str) -> float:
    """Sum over mutated positions of BLOSUM62(wild, mutant) - BLOSUM62(wild, wild); 0 for the wild type."""
    scores, new, old = blosum62(), letters(sequence), letters(wildtype)
    at = differences(sequence, wildtype) or []
    return float((scores[old[at], new[at]] - scores[old[at], old[at]]).sum())


def _sampled(items: Items) -> Items:
    if len(items) <= MOST["rows"]:
        return items
    chosen = np.random.default_rng(0).choice(len(items), MOST["rows"], replace=False)
    return [items[i] for i in np.sort(chosen)]


def _features(train: Items, val: Items, test: Items) -> dict[str, list]:
    """Name -> [train, val, test] sparse features: one-hot where all sequences have one length, and k-mer shares."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.preprocessing import normalize

    text = [[item["sequence"] for item in part] for part in (train, val, test)]
    found = {}
    if len({len(sequence) for part in text for sequence in part}) == 1:
        stacks = [_stack(part, len(text[0][0])) for part in text]
        varied = np.flatnonzero((np.concatenate(stacks) != stacks[0][0]).any(0))
        found["one_hot"] = [_one_hot(stack[:, varied]) for stack in stacks]
    counter = CountVectorizer(analyzer="char", ngram_range=(1, 3), lowercase=False).fit(text[0])
    # Scaled to about one count per letter, so that one grid of strengths suits short and long proteins.
    found["kmer"] = [normalize(counter.transform(part).astype(float), norm="l1") * 100 for part in text if part]
    if not text[1]:
        found["kmer"].insert(1, found["kmer"][0][:0])
    return found


def _stack(sequences: list[str], width: int) -> np.ndarray:
    return np.array([letters(sequence) for sequence in sequences], dtype=np.int64).reshape(len(sequences), width)


def _one_hot(codes: np.ndarray) -> sparse.csr_matrix:
    """(rows, positions) letter codes -> (rows, positions * 21) sparse indicators."""
    rows, positions = codes.shape
    columns = (codes + LETTERS * np.arange(positions)).ravel()
    pointer = np.arange(0, rows * positions + 1, positions) if positions else np.zeros(rows + 1, dtype=np.int64)
    return sparse.csr_matrix((np.ones(rows * positions), columns, pointer), shape=(rows, max(1, positions) * LETTERS))


def _window(sequence: str) -> sparse.csr_matrix:
    """(residues, 15 * 22) indicators of the residues from 7 before to 7 after; the ends have a letter of their own."""
    padded = np.pad(letters(sequence), SIDE, constant_values=LETTERS)
    codes = np.lib.stride_tricks.sliding_window_view(padded, 2 * SIDE + 1)
    width = codes.shape[1]
    columns = (codes + (LETTERS + 1) * np.arange(width)).ravel()
    pointer = np.arange(0, columns.size + 1, width)
    return sparse.csr_matrix((np.ones(columns.size), columns, pointer), shape=(len(codes), width * (LETTERS + 1)))


def _windows(items: Items, label: Callable, most: int) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Windows and labels of the scored residues of whole proteins, drawn at random until there are `most` residues."""
    blocks, truth, total = [], [], 0
    for i in np.random.default_rng(0).permutation(len(items)):
        text = np.array(list(label(items[i])))
        scored = np.flatnonzero(text != UNSCORED)
        blocks.append(_window(items[i]["sequence"])[scored])
        truth.append(text[scored])
        total += len(scored)
        if total >= most:
            break
    if not blocks:
        return sparse.csr_matrix((0, (2 * SIDE + 1) * (LETTERS + 1))), np.array([], dtype=str)
    return sparse.vstack(blocks, format="csr"), np.concatenate(truth)


def _logistic(x: Any, y: np.ndarray, x_val: Any, y_val: np.ndarray) -> Any:
    """Logistic regression whose strength is best on validation; one class only: a model that says so."""
    from sklearn.dummy import DummyClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    if len(set(y.tolist())) == 1:
        return DummyClassifier(strategy="prior").fit(x, y)
    models = [LogisticRegression(C=strength, max_iter=300).fit(x, y) for strength in STRENGTHS]
    known = np.isin(y_val, models[0].classes_)
    if not known.any():
        return models[1]
    return min(
        models,
        key=lambda model: log_loss(y_val[known], model.predict_proba(x_val[known]), labels=model.classes_),
    )


def _ridge(x: Any, y: np.ndarray, x_val: Any, y_val: np.ndarray) -> Any:
    """Ridge regression whose penalty ranks validation best (has the least error there, where ranks are equal)."""
    from scipy.stats import spearmanr
    from sklearn.linear_model import Ridge

    models = [Ridge(alpha=alpha).fit(x, y) for alpha in ALPHAS]
    if len(y_val) < 3 or np.ptp(y_val) == 0:
        return models[ALPHAS.index(1.0)]

    def quality(model: Any) -> tuple[float, float]:
        guess = model.predict(x_val)
        rank = spearmanr(guess, y_val).statistic if np.ptp(guess) > 0 else 0.0
        return round(float(rank), 3), -float(np.mean((guess - y_val) ** 2))

    return max(models, key=quality)
