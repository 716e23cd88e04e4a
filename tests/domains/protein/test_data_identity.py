"""Identity: the alignment is biotite's, the short cuts must not change what it says."""

import numpy as np
import pytest
from biotite.sequence import ProteinSequence
from biotite.sequence.align import SubstitutionMatrix, align_optimal, get_sequence_identity
from hypothesis import given, settings
from hypothesis import strategies as st

from domains.protein.baselines import levenshtein, substitution_score
from domains.protein.data.identity import Index, aligned_identity, blosum62, clusters, letters, nearest
from domains.protein.data.residues import STANDARD

proteins = st.text(STANDARD, min_size=5, max_size=40)


def random_protein(rng, n):
    return "".join(rng.choice(list(STANDARD), n))


def relative_of(rng, sequence, keep):
    """A homolog: every residue kept with chance `keep`, one insertion and one deletion."""
    text = [c if rng.random() < keep else rng.choice(list(STANDARD)) for c in sequence]
    at, gone = sorted(rng.integers(10, len(text) - 10, 2))
    return "".join([*text[:at], *random_protein(rng, 3), *text[at:gone], *text[gone + 2 :]])


@settings(max_examples=50, deadline=None)
@given(proteins, proteins)
def test_identity_is_biotites_and_symmetric_at_the_ends(a, b):
    best = align_optimal(
        ProteinSequence(a), ProteinSequence(b), SubstitutionMatrix.std_protein_matrix(), gap_penalty=(-10, -1),
        terminal_penalty=False, max_number=1,
    )[0]  # fmt: skip
    assert aligned_identity(a, b) == pytest.approx(get_sequence_identity(best, mode="shortest"))
    assert aligned_identity(a, a) == 1.0 and aligned_identity(a, "W" + a) == 1.0


def test_nearest_finds_what_all_alignments_find():
    """12 queries against 60 references: above 50 % the short cut gives the exact maximum."""
    rng = np.random.default_rng(0)
    references = [random_protein(rng, int(n)) for n in rng.integers(60, 120, 60)]
    queries = [relative_of(rng, references[i], keep) for i, keep in enumerate(np.linspace(0.6, 1, 12))]
    exact = np.array([max(aligned_identity(q, r) for r in references) for q in queries])
    found, spent = nearest(queries, references)
    assert np.abs(found - exact).max() < 0.02  # measured 0.0
    assert 12 <= spent <= 36


def test_strangers_with_one_tag_are_no_relatives():
    """A purification tag in every protein makes no cluster; copies of one protein do."""
    rng = np.random.default_rng(0)
    tag = "MGSSHHHHHHSSGLVPRGSH"
    strangers = [tag + random_protein(rng, 150) for _ in range(60)]
    assert len(set(clusters(strangers, 0.3))) == 60
    found, _ = nearest(strangers[:5], strangers[5:])
    assert found.max() < 0.3
    copies = [relative_of(rng, strangers[0], 0.8) for _ in range(5)]
    assert len(set(clusters(strangers + copies, 0.5))) == 60


def test_members_reach_the_threshold_to_their_representative():
    rng = np.random.default_rng(3)
    parents = [random_protein(rng, 120) for _ in range(12)]
    sequences = [relative_of(rng, p, keep) for p in parents for keep in (0.95, 0.75, 0.6)]
    found = clusters(sequences, 0.5)
    for i, leader in enumerate(found):
        assert aligned_identity(sequences[i], sequences[leader]) >= 0.5
        assert i // 3 == leader // 3 and found[leader] == leader
    assert len(set(found)) <= 15  # 12 families; a parent's two far children may be too far from each other


def test_place_by_place_is_a_lower_bound():
    rng = np.random.default_rng(0)
    a, b = random_protein(rng, 60), random_protein(rng, 60)
    _, share = Index([b]).matching(letters(a))
    assert share[0] == np.mean([x == y for x, y in zip(a, b, strict=True)])


def test_sequences_shorter_than_a_4mer_are_handled():
    assert clusters(["MK", "MK", "W", "MKVLAW"], 0.9)[1] == 0
    assert nearest(["MK", "W"], ["MK", "VL"])[0].tolist() == [1.0, 0.0]


def test_blosum62_is_the_published_table():
    table = blosum62()
    at = {residue: i for i, residue in enumerate(STANDARD)}
    known = {("W", "W"): 11, ("A", "A"): 4, ("E", "D"): 2, ("L", "I"): 2, ("G", "W"): -2, ("P", "F"): -4}
    assert all(table[at[a], at[b]] == table[at[b], at[a]] == score for (a, b), score in known.items())
    assert substitution_score("MKV", "MKV") == 0 and substitution_score("MDV", "MEV") == 2 - 5


@given(st.text("ABC", max_size=5), st.text("ABC", max_size=5))
def test_levenshtein_is_the_textbook_recursion(a, b):
    def slow(x, y):
        if not x or not y:
            return len(x) + len(y)
        return min(slow(x[1:], y) + 1, slow(x, y[1:]) + 1, slow(x[1:], y[1:]) + (x[0] != y[0]))

    assert levenshtein(a, b) == slow(a, b)


def test_two_shared_4mers_alone_make_no_candidate():
    """Strangers with two planted 4-mers on one diagonal are let go before any alignment; relatives are not."""
    rng = np.random.default_rng(5)
    a, b = (list(random_protein(rng, 150)) for _ in "ab")
    a[40:44], a[60:64] = b[50:54], b[70:74] = list("MKVL"), list("DEPW")
    a[44:60], b[54:70] = "G" * 16, "W" * 16
    stranger, relative = "".join(a), relative_of(rng, "".join(b), 0.8)
    index = Index(["".join(b)])
    assert index.candidates(letters(stranger)) == [] and len(index.candidates(letters(relative))) == 1
