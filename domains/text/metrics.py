"""Scores of generated texts, on plain strings.

prediction   one text       references   at least one text that would be right       slots   name -> value to be said
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from domains.text.data.slots import SHARED, said


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Corpus BLEU of sacrebleu, 0..100: 13a tokens, n up to 4, exponential smoothing, brevity penalty by the closest
    reference length. Not a mean over texts: resample texts and compute it anew for an interval. Post 2018."""
    import sacrebleu

    most = max(map(len, references))
    # One list per place; sacrebleu leaves an absent reference out where it is None.
    places = [[found[i] if i < len(found) else None for found in references] for i in range(most)]
    return float(sacrebleu.corpus_bleu(list(predictions), places).score)


def rouge_l(prediction: str, references: Sequence[str]) -> float:
    """F of the longest common subsequence of words, 0..1, for the best reference; Lin 2004, as rouge-score without
    stemming."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    return max(scorer.score(reference, prediction)["rougeL"].fmeasure for reference in references)


def exact(prediction: str, references: Sequence[str]) -> bool:
    """Whether the text is one of the references, spacing aside."""
    return " ".join(prediction.split()) in {" ".join(reference.split()) for reference in references}


def slot_recall(prediction: str, slots: Mapping[str, str]) -> float:
    """Share of the slots that the text says, 0..1."""
    return sum(said(prediction, name, value) for name, value in slots.items()) / len(slots)


def slot_errors(prediction: str, slots: Mapping[str, str], values: Mapping[str, set[str]]) -> tuple[int, int]:
    """(missing, invented) slots of a text. Invented: it says a value that the record has in no slot, and does not only
    say it in place of a missing one. (missing + invented) / slots is E2E's slot error rate.

    values   slot -> every value that the data knows for it; of E2E's prices and ratings only the missing are counted,
             because each says the other's words
    """
    own = {name for name, value in slots.items() if said(prediction, name, value)}
    invented = 0
    for name, known in values.items():
        if name in SHARED or (name in slots and name not in own):
            continue
        others = known - set(slots.values())
        # A value inside an own one ("The Eagle" in "The Golden Eagle") is not another.
        kept = [v for v in others if not any(v.lower() in value.lower() for value in slots.values())]
        invented += any(said(prediction, name, value) for value in kept)
    return len(slots) - len(own), invented


def distinct(predictions: Sequence[str], n: int) -> float:
    """Different n-grams over all n-grams of all texts, 0..1; near 0 where a model repeats itself. Li et al. 2016."""
    grams: Counter[tuple[str, ...]] = Counter()
    for text in predictions:
        words = text.split()
        grams.update(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    return len(grams) / grams.total() if grams else 0.0


def length_ratio(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Words of the texts over words of the references that are closest to them in length."""
    written = [len(text.split()) for text in predictions]
    closest = [
        min((len(r.split()) for r in found), key=lambda words, own=own: (abs(words - own), words))
        for own, found in zip(written, references, strict=True)
    ]
    return sum(written) / max(1, sum(closest))
