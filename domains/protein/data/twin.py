"""Synthetic proteins with known labels, made at run time from a seed (world.py says how). No file, no licence.

structure   secondary structure, H, E or C per residue; test families never seen in training
signal      one of four classes, decided by the first structural word
contacts    pairs of residues of neighbouring structural elements (packing.py)
landscape   fitness of variants at four sites of one wild type, additive and pairwise; split by number of mutations
"""

from __future__ import annotations

import itertools
from typing import Any, Literal

import numpy as np

from core.data.splits import assert_disjoint
from core.errors import ConfigError
from domains.protein.data.crop import Shortening
from domains.protein.data.packing import contacts
from domains.protein.data.proteins import Proteins
from domains.protein.data.splits import Splitting
from domains.protein.data.world import INDEX, RESIDUES, World

__all__ = ["Twin", "World"]


class Twin(Proteins):
    """Items of the twin's world: id, group (family), sequence, label; a landscape also has sites and wildtype.

    label             what is asked: structure (str per residue), signal (class), contacts (its own field), landscape
                      (float, wild type 1)
    world             which world; the embedded mini ESM-2 was pretrained in world 0
    seed              which labelled proteins are drawn for train; val and test stay the same
    train, val, test  number of proteins (variants); a smaller train set is the beginning of a larger one
    split             landscape only: train on few mutations, or on low fitness, test on the rest
    """

    kind = "twin"

    def __init__(
        self,
        label: Literal["structure", "signal", "contacts", "landscape"] = "structure",
        *,
        world: int = 0,
        seed: int = 0,
        train: int = 40,
        val: int = 16,
        test: int = 150,
        split: Literal["one_vs_rest", "two_vs_rest", "three_vs_rest", "low_vs_high"] = "two_vs_rest",
    ):
        small = [(name, n) for name, n in (("train", train), ("val", val), ("test", test)) if n < 1]
        if small:
            raise ConfigError(where=f"data.{small[0][0]}", got=small[0][1], allowed="at least 1 protein")
        super().__init__(Splitting(), Shortening())
        self.label, self.world, self.seed, self.split = label, world, seed, split
        self.sizes = {"train": train, "val": val, "test": test}

    def setup(self) -> None:
        world = World(self.world)
        parts = landscape(world, self.sizes, self.split, self.seed) if self.label == "landscape" else {}
        for split, n in self.sizes.items():
            if self.label != "landscape":
                per = 3 if split == "test" else 1
                proteins = world.sample(split, -(-n // per), per, self.seed if split == "train" else 0)[:n]
                parts[split] = [
                    {"id": p["id"], "group": p["group"], "sequence": p["sequence"], **self._answer(p)} for p in proteins
                ]
        assert_disjoint(parts, ("id", "sequence", "group"))
        self._whole, self._items = parts, dict(parts)

    def _answer(self, protein: dict[str, Any]) -> dict[str, Any]:
        if self.label == "contacts":
            return {"contacts": contacts(protein["structure"])}
        return {"label": protein[self.label]}


def landscape(world: World, sizes: dict[str, int], split: str, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Variants of four sites by split, as GB1's library: three neighbours in one word and one site in a later word.

    fitness   exp(sum of site effects + sum of pair effects), wild type 1; most variants are worse. A site effect
              follows the word's own profile, so that a model which knows the words can guess part of it
    """
    rng = world.rng("landscape")
    _, parts = world.family(rng)
    profile = np.concatenate([p for p, _ in parts])
    wildtype = "".join(RESIDUES[i] for i in profile.argmax(1))
    first = int(rng.integers(1, len(parts[0][0]) - 3))
    sites = (first, first + 1, first + 2, int(rng.integers(len(wildtype) - len(parts[-1][0]), len(wildtype))))
    native = [INDEX[wildtype[s]] for s in sites]

    effects = 0.25 * np.log(profile[list(sites)]) + rng.normal(0, 0.5, (4, 20))
    effects -= effects[np.arange(4), native][:, None]
    log_fitness = sum(effects[i].reshape([20 if j == i else 1 for j in range(4)]) for i in range(4))
    for i, j in itertools.combinations(range(4), 2):
        pair = rng.normal(0, 0.3, (20, 20))
        pair[native[i], :] = pair[:, native[j]] = 0
        log_fitness = log_fitness + pair.reshape([20 if k in (i, j) else 1 for k in range(4)])
    fitness = np.exp(log_fitness).ravel()
    letters = np.stack(np.unravel_index(np.arange(20**4), (20,) * 4), axis=1)
    mutations = (letters != np.array(native)).sum(1)

    if split == "low_vs_high":
        seen = fitness <= 1.0
    else:
        seen = mutations <= {"one_vs_rest": 1, "two_vs_rest": 2, "three_vs_rest": 3}[split]
    held = world.rng("test").permutation(np.flatnonzero(seen))
    pool = world.rng("train", seed).permutation(np.setdiff1d(held, held[: sizes["val"]], assume_unique=True))
    unseen = world.rng("test", 1).permutation(np.flatnonzero(~seen))
    if sizes["train"] > len(pool):
        raise ConfigError(where="data.train", got=sizes["train"], allowed=f"at most {len(pool)} with split {split}")

    chosen = {"train": pool[: sizes["train"]], "val": held[: sizes["val"]], "test": unseen[: sizes["test"]]}
    return {
        name: [_variant(wildtype, sites, letters[v], float(fitness[v])) for v in variants]
        for name, variants in chosen.items()
    }


def _variant(wildtype: str, sites: tuple[int, ...], letters: np.ndarray, fitness: float) -> dict[str, Any]:
    sequence = list(wildtype)
    for site, letter in zip(sites, letters, strict=True):
        sequence[site] = RESIDUES[letter]
    name = "".join(RESIDUES[letter] for letter in letters)
    return {
        "id": name,
        "group": name,
        "sequence": "".join(sequence),
        "label": fitness,
        "sites": list(sites),
        "wildtype": wildtype,
    }
