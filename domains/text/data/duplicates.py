"""Near duplicates by MinHash: which text of a collection is most like a given one, in time linear in both.

Similarity   Jaccard index of the sets of 5-word shingles (shorter texts: of their words), exact for the candidates
Candidates   texts that agree on a band of 4 of 64 minima      Broder 1997; bands: Leskovec et al., Mining of Massive
             Datasets, ch. 3: at similarity .8 a pair is missed with probability (1 - .8^4)^16 = 2e-4, at .5 it is .36
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

MINIMA, BAND, SHINGLE = 64, 4, 5
PRIME = (1 << 61) - 1


def shingles(text: str) -> frozenset[int]:
    """Hashes of the runs of five words; of a shorter text, of its words."""
    said = text.split()
    size = SHINGLE if len(said) > SHINGLE else 1
    return frozenset(zlib.crc32(" ".join(said[i : i + size]).encode()) for i in range(len(said) - size + 1))


def signature(hashes: frozenset[int], rng: np.random.Generator) -> np.ndarray:
    """(64,) the minima of as many random permutations of the hashes."""
    factors, shifts = rng.integers(1, 1 << 31, (2, MINIMA), dtype=np.uint64)
    values = np.fromiter(hashes, np.uint64, len(hashes))[:, None]
    return ((values * factors + shifts) % np.uint64(PRIME)).min(0)


def near(texts: Sequence[str], collection: Sequence[str], alike: float) -> list[tuple[int, float]]:
    """(place in the collection, similarity) of the most similar candidate of each text; (-1, 0.) without a candidate.

    alike   a similarity from which the search may stop for a text
    """
    theirs = [shingles(text) for text in collection]
    buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    for place, hashes in enumerate(theirs):
        for band in _bands(hashes):
            buckets[band].append(place)
    found = []
    for text in texts:
        own, best = shingles(text), (-1, 0.0)
        for place in dict.fromkeys(p for band in _bands(own) for p in buckets.get(band, ())):
            both = len(own & theirs[place])
            similarity = both / (len(own) + len(theirs[place]) - both) if both else 0.0
            if similarity > best[1]:
                best = (place, similarity)
            if similarity >= max(alike, 0.999):
                break
        found.append(best)
    return found


def _bands(hashes: frozenset[int]) -> list[tuple[int, bytes]]:
    if not hashes:
        return []
    minima = signature(hashes, np.random.default_rng(0))
    return [(i, minima[i : i + BAND].tobytes()) for i in range(0, MINIMA, BAND)]
