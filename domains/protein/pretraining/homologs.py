"""Which sequences are related to a reference set: the local-alignment search of BLAST without gaps, in numpy.

Seeds       two exact 4-mers on one diagonal (or one band of neighbouring diagonals) of a pair nominate the diagonal.
Decision    the best ungapped segment of a nominated diagonal scores at least 62 in BLOSUM62: E <= 0.1 per query in a
            reference of 600,000 residues (lambda .318, K .134). This finds relatives far below 30 % identity.
            Residues of simple stretches (12 residues of at most 2.2 bits: expression tags, repeats) score -1 there.
            Or the pair shares more than 30 % of the shorter one's 6-mers, simple stretches included.
Source      Altschul et al. 1990 and 1997 (two-hit seeds); parameters of the ungapped BLOSUM62 of NCBI BLAST; window and
            threshold of SEG, Wootton and Federhen 1993
"""

from __future__ import annotations

import numpy as np

# Names the rule in stored results: change it with any change that can change a decision.
RULE = "two 4-mers in a band of 4, ungapped BLOSUM62 >= 62, simple 12/2.2 masked, or 6-mers > .3"
LETTERS = "ACDEFGHIKLMNPQRSTVWY"
_CODE = np.full(256, 20, np.int64)
_CODE[[ord(c) for c in LETTERS]] = np.arange(20)


def codes(sequence: str) -> np.ndarray:
    """(residues,) int64: 0..19 in alphabetical order of the letters, 20 for anything else."""
    return _CODE[np.frombuffer(sequence.encode("ascii", "replace"), np.uint8)]


def words(code: np.ndarray, k: int) -> np.ndarray:
    """(residues - k + 1,) int64: the k-mer that starts at each position as a number; -1 if it holds another letter."""
    if len(code) < k:
        return np.empty(0, np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(code, k)
    number = windows @ (20 ** np.arange(k))
    return np.where((windows == 20).any(1), -1, number)


def shared_words(a: str, b: str, k: int = 6) -> float:
    """Share of the shorter sequence's distinct k-mers that the other has too, 0 to 1."""
    first, second = (set(words(codes(s), k).tolist()) - {-1} for s in (a, b))
    return len(first & second) / max(1, min(len(first), len(second)))


def without_simple_stretches(code: np.ndarray, window: int = 12, bits: float = 2.2) -> np.ndarray:
    """`code` with 20 at every residue of a window whose composition has at most `bits` of entropy."""
    if len(code) < window:
        return code
    one_hot = np.zeros((len(code) + 1, 21))
    one_hot[np.arange(1, len(code) + 1), code] = 1
    total = one_hot.cumsum(0)
    share = (total[window:] - total[:-window]) / window
    entropy = -(share * np.log2(np.where(share > 0, share, 1))).sum(1)
    simple = np.zeros(len(code), bool)
    for start in np.flatnonzero(entropy <= bits):
        simple[start : start + window] = True
    return np.where(simple, 20, code)


def _blosum62() -> np.ndarray:
    """(21, 21) int64 over `LETTERS` and one row for anything else (-1, as X)."""
    from biotite.sequence import ProteinSequence
    from biotite.sequence.align import SubstitutionMatrix

    whole = SubstitutionMatrix.std_protein_matrix().score_matrix()
    index = [ProteinSequence.alphabet.encode(c) for c in LETTERS]
    matrix = np.full((21, 21), -1, np.int64)
    matrix[:20, :20] = whole[np.ix_(index, index)]
    return matrix


class References:
    """A searchable set of sequences. `related(sequence)` is the index of one relative in the set, or -1."""

    def __init__(self, sequences: list[str], *, score: int = 62, shared: float = 0.3, seed: int = 4, band: int = 4):
        self.score, self.shared, self.seed, self.band = score, shared, seed, band
        self.codes = [codes(s) for s in sequences]
        self.matrix = _blosum62()
        numbers = [words(c, seed) for c in self.codes]
        number = np.concatenate([*numbers, np.empty(0, np.int64)])
        owner = np.repeat(np.arange(len(numbers)), [len(n) for n in numbers])
        place = np.concatenate([*(np.arange(len(n)) for n in numbers), np.empty(0, np.int64)])
        order = np.argsort(number, kind="stable")
        order = order[number[order] >= 0]
        self.owner, self.place = owner[order], place[order]
        self.first = np.searchsorted(number[order], np.arange(20**seed + 1))
        self.sixes = [np.unique(words(c, 6)) for c in self.codes]
        self.codes = [without_simple_stretches(c) for c in self.codes]

    def related(self, sequence: str) -> int:
        query = codes(sequence)
        number = words(query, self.seed)
        start = np.flatnonzero(number >= 0)
        low, high = self.first[number[start]], self.first[number[start] + 1]
        count = high - low
        if not count.sum():
            return -1
        hit = np.repeat(low - np.concatenate([[0], count.cumsum()[:-1]]), count) + np.arange(count.sum())
        owner, diagonal = self.owner[hit], self.place[hit] - np.repeat(start, count)
        plain = without_simple_stretches(query)
        # Two overlapping grids of bands, so that two neighbouring diagonals always share one cell.
        for shift in (0, self.band // 2):
            cell = owner * 2**20 + (diagonal + 2**18 + shift) // self.band
            _, inverse, hits = np.unique(cell, return_inverse=True, return_counts=True)
            chosen = np.flatnonzero(hits[inverse] >= 2)
            for pair in np.unique(np.stack([owner[chosen], diagonal[chosen]], 1), axis=0):
                if self._segment(plain, self.codes[pair[0]], int(pair[1])) >= self.score:
                    return int(pair[0])
        mine = np.unique(words(query, 6))
        for i in np.unique(owner):
            shorter = min(len(mine), len(self.sixes[i]))
            if shorter and len(np.intersect1d(mine, self.sixes[i], assume_unique=True)) > self.shared * shorter:
                return int(i)
        return -1

    def _segment(self, query: np.ndarray, reference: np.ndarray, diagonal: int) -> int:
        """Score of the best ungapped segment on one diagonal (reference place minus query place)."""
        a, b = max(0, -diagonal), max(0, diagonal)
        n = min(len(query) - a, len(reference) - b)
        total = np.concatenate([[0], self.matrix[query[a : a + n], reference[b : b + n]].cumsum()])
        return int((total - np.minimum.accumulate(total)).max())
