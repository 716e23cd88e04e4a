"""What is trained on: proteins of the twin's world, or real sequences with conservation classes.

A corpus holds tokens of the ESM alphabet (residues 4..23 in the order of RESIDUES, 24 is X) and, where a protein has
them, one class per residue. Secondary-structure labels are never read here: they are a test.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import DataError, EnvironmentError_
from core.paths import data_dir

BOS, PAD, EOS, FIRST, X, MASK, VOCABULARY = 0, 1, 2, 4, 24, 32, 33
RESIDUES = "LAGVSERTIDPKQNFYMHWC"
CLASSES = 9  # of conservation, 1 variable to 9 conserved; stored from 0
_TOKEN = np.full(256, X, np.uint8)
_TOKEN[[ord(c) for c in RESIDUES]] = FIRST + np.arange(20)


@dataclass
class Corpus:
    """Proteins of one split.

    tokens   one (residues,) uint8 per protein
    classes  one (residues,) int8 per protein, -1 where unknown; None: the protein has no label
    facts    counts for the card
    """

    tokens: list[np.ndarray]
    classes: list[np.ndarray | None]
    facts: dict[str, Any] = field(default_factory=dict)

    def residues(self) -> int:
        return sum(map(len, self.tokens))


def encode(sequence: str) -> np.ndarray:
    return _TOKEN[np.frombuffer(sequence.encode("ascii", "replace"), np.uint8)]


def twin(world: int = 0, families: int = 1500, members: int = 6, held: int = 100) -> tuple[Corpus, Corpus]:
    """(training, held-out) proteins of one world, from two streams that share no family."""
    from domains.protein.data.world import World

    made = World(world)

    def corpus(stream: str, count: int, per: int) -> Corpus:
        tokens = [encode(p["sequence"]) for p in made.sample(stream, count, per)]
        facts = {"world": world, "families": count, "proteins": len(tokens), "residues": sum(map(len, tokens))}
        return Corpus(tokens, [None] * len(tokens), facts)

    return corpus("pretrain", families, members), corpus("held", held, 2)


def real_data() -> Path:
    """The folder of real data. EnvironmentError_ where there is none."""
    folder = data_dir()
    if folder is None:
        raise EnvironmentError_(
            where="PEFT_ATLAS_DATA",
            got="no folder of real data",
            allowed="a folder with protein/flip_*.tsv.gz",
            fix="set PEFT_ATLAS_DATA; `mini` needs no data",
        )
    return folder


def read(folder: Path, name: str) -> list[dict[str, str]]:
    """Rows of one FLIP table: id, split, sequence, label (and resolved)."""
    path = folder / "protein" / f"flip_{name}.tsv.gz"
    if not path.is_file():
        raise DataError(where=str(path), got="no such file", fix="set PEFT_ATLAS_DATA to the folder of real data")
    csv.field_size_limit(10**7)
    with gzip.open(path, "rt") as lines:
        return list(csv.DictReader(lines, delimiter="\t"))


def wildtype(folder: Path, name: str) -> str:
    lines = (folder / "protein" / f"{name}_wt.fasta").read_text().splitlines()
    return "".join(line.strip() for line in lines if not line.startswith(">"))


def transfer_pool(rows: list[dict[str, str]], size: int = 240) -> list[dict[str, str]]:
    """Secondary-structure training proteins that no pretraining sees: `size` of 80 residues and more, by md5 of id."""
    long = [r for r in rows if r["split"] == "train" and len(r["sequence"]) >= 80]
    return sorted(long, key=lambda r: hashlib.md5(r["id"].encode()).hexdigest())[:size]


def references(folder: Path) -> list[str]:
    """Sequences whose relatives are not trained on: all validation and test sets, two wild types, the transfer pool."""
    tables = {name: read(folder, name) for name in ("secondary_structure", "conservation", "bind")}
    held = [r["sequence"] for rows in tables.values() for r in rows if r["split"] != "train"]
    pool = [r["sequence"] for r in transfer_pool(tables["secondary_structure"])]
    return sorted({*held, *pool, wildtype(folder, "gb1"), wildtype(folder, "blat")})


def real(folder: Path, cache: Path) -> tuple[Corpus, Corpus]:
    """(training, held-out) real proteins. Held-out is of FLIP's conservation validation set: no relative in training.

    cache   JSON of sequences found related, written once (the search takes minutes), read when the inputs are the same
    """
    import torch

    classes: dict[str, np.ndarray | None] = {}
    origin: dict[str, str] = {}
    for name in ("conservation", "secondary_structure", "bind"):
        for row in read(folder, name):
            if row["split"] == "train" and row["sequence"] not in classes:
                classes[row["sequence"]] = _classes(row["label"]) if name == "conservation" else None
                origin[row["sequence"]] = name
    related = _related(list(classes), references(folder), cache)
    removed = {name: 0 for name in ("conservation", "secondary_structure", "bind")}
    for sequence in related:
        removed[origin[sequence]] += 1
        del classes[sequence]
    held = [r for r in read(folder, "conservation") if r["split"] == "val"]
    order = torch.randperm(len(held), generator=torch.Generator().manual_seed(0))[:240].tolist()
    held = [held[i] for i in order]
    train = Corpus([encode(s) for s in classes], list(classes.values()))
    labelled = [t for t, c in zip(train.tokens, train.classes, strict=True) if c is not None]
    train.facts = {
        "proteins": len(train.tokens),
        "residues": train.residues(),
        "proteins with conservation": len(labelled),
        "residues with conservation": sum(map(len, labelled)),
        "removed as related": removed,
        "references": len(references(folder)),
    }
    return train, Corpus([encode(r["sequence"]) for r in held], [_classes(r["label"]) for r in held])


def _classes(label: str) -> np.ndarray:
    value = np.frombuffer(label.encode(), np.uint8).astype(np.int8) - ord("1")
    return np.where((value >= 0) & (value < CLASSES), value, -1).astype(np.int8)


def _related(candidates: list[str], reference: list[str], cache: Path) -> list[str]:
    """Candidates that have a relative among the references, in order."""
    from domains.protein.pretraining import homologs

    key = hashlib.sha256("\n".join([*candidates, "", *reference, homologs.RULE]).encode()).hexdigest()
    if cache.is_file():
        stored = json.loads(cache.read_text())
        if stored["inputs"] == key:
            return [candidates[i] for i in stored["related"]]
    search, found = homologs.References(reference), []
    for i, sequence in enumerate(candidates):
        if search.related(sequence) >= 0:
            found.append(i)
        if i % 1000 == 0:
            print(f"homologs  {i:,} of {len(candidates):,} searched, {len(found):,} related", flush=True)
    cache.parent.mkdir(parents=True, exist_ok=True)
    temporary = cache.with_suffix(".tmp")
    temporary.write_text(json.dumps({"inputs": key, "related": found}))
    os.replace(temporary, cache)
    return [candidates[i] for i in found]
