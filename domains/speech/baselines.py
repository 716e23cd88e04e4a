"""Answers that need no network: what a speaking or listening model has to beat.

mean_mel      every frame is the mean of train: it keeps the true length, so only the spectrum is judged
nearest_copy  the training recording whose phones are most alike, as it is: the right voice, mostly the wrong words
prior         class shares of train       mfcc_logistic  mean, spread and slope of 20 MFCCs, logistic regression
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from typing import Any

import numpy as np

from core.contracts import Data
from domains.speech import metrics
from domains.speech.data.audio import resample

STRENGTHS = (0.01, 0.1, 1.0, 10.0)  # inverse regularisation
RATE, COEFFICIENTS = 8_000, 20  # of the MFCCs: the lowest rate among the field's data


def spoken(data: Data, mel: Callable[[dict[str, Any]], np.ndarray], log: str = "natural") -> dict[str, list[dict]]:
    """Name -> rows (id, group, truth, mcd, mel_l1, score) on test.

    mel   item -> (frames, n_mels) log mel spectrogram of its recording, the model's recipe
    """
    train = data.items("train")
    heard = [mel(item) for item in train]
    mean = np.concatenate(heard).mean(0)
    rows: dict[str, list[dict]] = {"mean_mel": [], "nearest_copy": []}
    for item in data.items("test"):
        truth = mel(item)
        nearest = max(range(len(train)), key=lambda i: alike(item, train[i]))
        for name, guess in (("mean_mel", np.tile(mean, (len(truth), 1))), ("nearest_copy", heard[nearest])):
            found = metrics.utterance(truth, guess, log=log)
            row = {"id": str(item["id"]), "group": str(item["group"]), "truth": item.get("text", "")}
            rows[name].append(row | {"prediction": name.replace("_", " "), **found, "score": found["mcd"]})
    return rows


def alike(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Share of phones (else letters) in common runs, 0..1."""
    first, second = ([s for s, _ in item["phones"]] if item.get("phones") else item["text"] for item in (one, other))
    return SequenceMatcher(None, first, second, autojunk=False).ratio()


def classes(data: Data, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Name -> (test items, classes) probabilities, in the order of `names`."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss
    from sklearn.preprocessing import StandardScaler

    train, val, test = (data.items(split) for split in ("train", "val", "test"))
    truth = [np.array([item["label"] for item in part]) for part in (train, val)]
    share = np.array([(truth[0] == name).mean() for name in names])
    found = {"prior": np.tile(share, (len(test), 1))}
    if len(set(truth[0].tolist())) < 2:
        return found
    scaler = StandardScaler().fit(sounds(train))
    x, x_val, x_test = (scaler.transform(sounds(part)) if part else np.zeros((0, 1)) for part in (train, val, test))
    models = [LogisticRegression(C=strength, max_iter=500).fit(x, truth[0]) for strength in STRENGTHS]
    known = np.isin(truth[1], models[0].classes_)

    def loss(model: Any) -> float:
        return log_loss(truth[1][known], model.predict_proba(x_val[known]), labels=model.classes_)

    best = min(models, key=loss) if known.any() else models[1]
    table = np.zeros((len(test), len(names)))
    table[:, [list(names).index(name) for name in best.classes_]] = best.predict_proba(x_test)
    return found | {"mfcc_logistic": table}


def sounds(items: Sequence[dict[str, Any]]) -> np.ndarray:
    """(items, 61) mean, standard deviation and mean absolute slope of MFCCs over the utterance, and its log seconds."""
    import torch

    from domains.speech.features import audio_library

    settings = {"n_fft": 256, "hop_length": 80, "n_mels": 32}
    transform = audio_library().transforms.MFCC(RATE, COEFFICIENTS, melkwargs=settings)
    rows = []
    for item in items:
        samples = resample(*item["read"](), RATE)
        samples = np.pad(samples, (0, max(0, 512 - len(samples))))
        found = transform(torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))).numpy().astype(np.float64)
        slope = np.abs(np.diff(found, axis=1)).mean(1)
        rows.append(np.concatenate([found.mean(1), found.std(1), slope, [np.log(item["seconds"])]]))
    return np.array(rows)
