"""Contacts of the twin: neighbouring structural elements pack against each other, antiparallel, as in a hairpin.

The rule is a property of the structure alone, so who knows the words knows the contacts. Not real folding: no element
packs against any but the next one.
"""

from __future__ import annotations

import itertools
import re

STEPS = {"E": (0, 1, 2, 3, 4, 5, 6, 7), "H": (0, 3, 7, 10)}  # residues of an element that face the next one


def contacts(structure: str, separation: int = 6) -> list[list[int]]:
    """0-based pairs [i, j], i < j, at least `separation` apart.

    structure   H, E or C per residue; elements are runs of H or E of three residues and more
    """
    elements = [match for match in re.finditer(r"H{3,}|E{3,}", structure)]
    pairs = []
    for first, second in itertools.pairwise(elements):
        kind = "H" if "H" in first[0][0] + second[0][0] else "E"
        for step in STEPS[kind]:
            i, j = first.end() - 1 - step, second.start() + step
            if i >= first.start() and j < second.end() and j - i >= separation:
                pairs.append([i, j])
    return sorted(pairs)
