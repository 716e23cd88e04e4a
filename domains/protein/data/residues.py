"""Amino-acid sequences as text: the alphabet, what is cleaned, what is refused, and how mutations are written."""

from __future__ import annotations

import re

STANDARD = "ACDEFGHIKLMNPQRSTVWY"
UNUSUAL = "BJOUXZ"  # ambiguity codes, pyrrolysine, selenocysteine, unknown: kept, and counted in the audit
ALPHABET = frozenset(STANDARD + UNUSUAL)
MUTATION = re.compile(r"([A-Za-z])(-?\d+)([A-Za-z])")


def clean(text: str) -> tuple[str, str]:
    """(sequence, fault): upper case, without white space and closing stops `*`; fault is '' where it is a protein."""
    sequence = "".join(text.split()).upper().rstrip("*")
    if not sequence:
        return "", "no residues"
    foreign = sorted(set(sequence) - ALPHABET)
    if not foreign:
        return sequence, ""
    if set(foreign) <= set("-."):
        return sequence, "gaps: an aligned sequence"
    if foreign == ["*"]:
        return sequence, f"a stop inside, at residue {sequence.index('*') + 1}"
    shown = " ".join(foreign[:5])
    return sequence, f"{shown!r} at residue {min(sequence.index(c) for c in foreign) + 1}"


def parse_mutations(text: str, wildtype: str, numbering: int = 1) -> tuple[dict[int, str], str]:
    """({0-based position: new residue}, fault) of a mutant such as `A23T:G45D`; `WT` and `` are the wild type.

    numbering   number of the wild type's first residue in the mutant names, 1 or 0 most often
    """
    changes: dict[int, str] = {}
    if text.strip().upper() in ("", "WT", "WILDTYPE", "_WT"):
        return changes, ""
    for part in re.split(r"[:,;/\s]+", text.strip()):
        match = MUTATION.fullmatch(part)
        if match is None:
            return changes, f"`{part}` is no mutation"
        old, number, new = match[1].upper(), int(match[2]), match[3].upper()
        position = number - numbering
        if not 0 <= position < len(wildtype):
            last = len(wildtype) - 1 + numbering
            return changes, f"`{part}`: position {number} outside {numbering}..{last}"
        if wildtype[position] != old:
            return changes, f"`{part}`: the wild type has {wildtype[position]} at {number}"
        if new not in ALPHABET:
            return changes, f"`{part}`: {new} is no residue"
        if position in changes:
            return changes, f"`{part}`: position {number} twice"
        changes[position] = new
    return changes, ""


def mutate(wildtype: str, changes: dict[int, str]) -> str:
    """The wild type with residues replaced at 0-based positions."""
    sequence = list(wildtype)
    for position, residue in changes.items():
        sequence[position] = residue
    return "".join(sequence)


def differences(sequence: str, wildtype: str) -> list[int] | None:
    """0-based positions that differ, or None where the lengths do."""
    if len(sequence) != len(wildtype):
        return None
    return [i for i, (a, b) in enumerate(zip(sequence, wildtype, strict=True)) if a != b]
