"""The twin's world: proteins made at run time from a seed, in which masked prediction and structure share a latent.

Words       a library of structural words (helix 8-12, strand 5-8, turn 3-6 residues), each a profile of residues
Fold        a Markov walk over words: structured, turn, structured, ...   Family  a fold with some positions redrawn
Protein     a noisy copy of a family with small insertions; labels H, E, C are properties of the word
Switches    six structured words are H or E by the state of the word before: a rule that masked prediction does not need

So a language model learns the words without labels, and few labels suffice for who knows the words.
Families of different streams are drawn independently: splits never share a family.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

RESIDUES = "LAGVSERTIDPKQNFYMHWC"
INDEX = {residue: i for i, residue in enumerate(RESIDUES)}
# Residue frequencies of natural proteins, in per cent in the order of RESIDUES.
PER_CENT = (9.9, 8.3, 7.1, 6.9, 6.5, 6.2, 5.5, 5.3, 5.9, 5.4, 4.7, 5.8, 3.9, 4.1, 3.9, 2.9, 2.4, 2.3, 1.1, 1.4)
BACKGROUND = np.array(PER_CENT) / sum(PER_CENT)
PROPENSITY = {"H": "AELKMQR", "E": "VIYFTW", "C": "GPNDS"}
LENGTHS = {"H": (8, 12), "E": (5, 8), "C": (3, 6)}
HYDROPHOBIC = np.array([residue in "AILMFVWCY" for residue in RESIDUES])
SIMILAR = ("AVILMC", "FYWH", "KR", "DE", "STNQ", "GP")
SIGNALS = ("S0", "S1", "S2", "S3")
STREAMS = ("pretrain", "held", "train", "val", "test", "landscape")


class World:
    """A word library and its grammar.

    seed          which world; weights pretrained in one world are of little use in another
    words         number of helix, strand and turn words
    peak, group   share of a position's consensus residue, and of the residues similar to it
    propensity    how much plain composition betrays the state; lower is harder for a model from scratch
    switches      structured words whose state depends on the word before
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        words: tuple[int, int, int] = (10, 10, 6),
        peak: float = 0.72,
        group: float = 0.14,
        propensity: float = 0.5,
        switches: int = 6,
    ):
        self.seed, self.peak, self.group = seed, peak, group
        rng = np.random.default_rng(seed)
        self.words: list[tuple[str, np.ndarray]] = []
        for state, count in zip("HEC", words, strict=True):
            for _ in range(count):
                self.words.append((state, self._word(rng, state, propensity)))
        self.states = np.array([state for state, _ in self.words])
        structured = np.flatnonzero(self.states != "C")
        self.switches = set(rng.choice(structured, switches, replace=False).tolist())
        self.follows = rng.dirichlet(np.full(len(self.words), 0.25), len(self.words))
        self.signal = {int(w): SIGNALS[i % len(SIGNALS)] for i, w in enumerate(rng.permutation(structured))}

    def _word(self, rng: np.random.Generator, state: str, propensity: float) -> np.ndarray:
        """Profile (positions, 20) whose consensus follows propensity and an amphipathic or alternating pattern."""
        prefer = np.where([residue in PROPENSITY[state] for residue in RESIDUES], 3.0, 1.0)
        low, high = LENGTHS[state]
        phase, profile = rng.uniform(0, 360), []
        for i in range(rng.integers(low, high + 1)):
            helix, strand = math.cos(math.radians(phase + 100 * i)) > 0.3, (i + int(phase)) % 2 == 0
            buried = {"H": helix, "E": strand, "C": False}[state]
            weights = BACKGROUND * (prefer * np.where(buried == HYDROPHOBIC, 2.5, 1.0)) ** propensity
            profile.append(self._position(rng.choice(20, p=weights / weights.sum())))
        return np.array(profile)

    def _position(self, consensus: int) -> np.ndarray:
        similar = next(group for group in SIMILAR if RESIDUES[consensus] in group)
        p = BACKGROUND * (1 - self.peak - self.group)
        p[[INDEX[residue] for residue in similar]] += self.group / len(similar)
        p[consensus] += self.peak
        return p / p.sum()

    def family(self, rng: np.random.Generator, drift: float = 0.15) -> tuple[str, list[tuple[np.ndarray, str]]]:
        """(signal class, [(profile, state) per word]): three to five structured words with turns between them."""
        word, last, signal, parts = int(rng.integers(len(self.words))), "C", "", []
        for k in range(2 * int(rng.integers(3, 6)) - 1):
            p = (self.follows[word] + 0.01) * ((self.states == "C") == (k % 2 == 1))
            word = int(rng.choice(len(p), p=p / p.sum()))
            state, profile = self.words[word]
            profile = profile.copy()
            for i in np.flatnonzero(rng.random(len(profile)) < drift):
                profile[i] = self._position(rng.choice(20, p=BACKGROUND))
            if word in self.switches:
                state = "E" if last == "H" else "H"
            last = last if state == "C" else state
            signal = signal or self.signal[word]
            parts.append((profile, state))
        return signal, parts

    def member(self, rng: np.random.Generator, parts: list, insert: float = 0.3) -> tuple[str, str]:
        """(sequence, labels) of one protein of a family; both strings have the same length."""
        sequence: list[int] = []
        label = ""
        for profile, state in parts:
            sequence += (profile.cumsum(1) > rng.random((len(profile), 1))).argmax(1).tolist()
            label += state * len(profile)
            if rng.random() < insert:
                extra = int(rng.integers(1, 4))
                sequence += rng.choice(20, extra, p=BACKGROUND).tolist()
                label += "C" * extra
        return "".join(RESIDUES[i] for i in sequence), label

    def rng(self, stream: str, seed: int = 0) -> np.random.Generator:
        """Random numbers of one named stream; streams and seeds are independent of each other."""
        return np.random.default_rng((self.seed, STREAMS.index(stream), seed))

    def sample(self, stream: str, families: int, per: int, seed: int = 0) -> list[dict[str, Any]]:
        """`families` x `per` proteins, in family order. A smaller call gives the beginning of a larger one.

        stream    pretrain, held, train, val, test, landscape: each with its own families
        returns   dicts of id, group (the family), sequence, structure (H, E, C per residue), signal (class)
        """
        rng, proteins = self.rng(stream, seed), []
        for f in range(families):
            signal, parts = self.family(rng)
            name = f"{stream}-{seed}-{f}"
            for m in range(per):
                sequence, structure = self.member(rng, parts)
                proteins.append(
                    {"id": f"{name}-{m}", "group": name, "sequence": sequence, "structure": structure, "signal": signal}
                )
        return proteins
