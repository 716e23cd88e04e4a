"""One sentence per question, made only of measured numbers and tested verdicts."""

from __future__ import annotations

from core.bench import cells, numerals
from core.bench.cells import FULL, PROBE, SCRATCH, Cell, Missing

TESTED = ("better", "worse", "tied")


def told(verdict: str, against: str) -> str:
    """`better than probe`, `tied with full`"""
    return f"{verdict} {'with' if verdict == 'tied' else 'than'} {against}"


def listed(names: list[str]) -> str:
    """`a`, `a and b`, `a, b and c`"""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def anchor(rows: list[Cell], key: str) -> str:
    """The label of an anchor among `rows`, or what it would be called."""
    return next((cell.label for cell in rows if cell.method == key and cell.runs), cells.ANCHORS[key])


def answer(rows: list[Cell]) -> str:
    """`lora leads with q3 0.636 [0.616, 0.656]: better than probe, tied with full, at 0.53x its saved bytes.`"""
    methods = [cell for cell in rows if not cell.anchor and cell.value is not None]
    if not methods:
        known = [cell for cell in rows if cell.value is not None]
        scores = ", ".join(f"{cell.label} {numerals.score(cell.value)}" for cell in known)
        return f"No adapter to compare yet. {known[0].metric}: {scores}." if known else "Nothing scored yet."
    best = methods[0]
    words = [told(best.verdicts[key], anchor(rows, key)) for key in (PROBE, FULL) if best.verdicts.get(key) in TESTED]
    sentence = f"{best.label} leads with {best.metric} {numerals.score(best.value)} {numerals.interval(best.ci95)}"
    sentence = sentence.strip()
    sentence += ": " + ", ".join(words) if words else ""
    full = next((cell for cell in rows if cell.method == FULL and cell.runs), None)
    if full is not None and best.verdicts.get(FULL):
        ratios = [
            f"{ratio} its {name}"
            for name, field in (("saved bytes", "saved_activation_bytes"), ("step time", "step_time_s"))
            if (ratio := numerals.ratio(best.mean(field), full.mean(field)))
        ]
        sentence += f", at {' and '.join(ratios)}" if ratios else ""
    return sentence + "."


def notes(rows: list[Cell], lost: list[Missing], chosen) -> list[str]:
    """What to know before believing the sentence."""
    methods = [cell for cell in rows if not cell.anchor and cell.value is not None]
    lines = []
    if len(methods) > 1:
        best = methods[0]
        others = methods[1:]
        cells.judge([(cell, best) for cell in others], ["best"] * len(others))
        tied = [cell.label for cell in others if cell.verdicts["best"] == "tied"]
        if tied:
            lines.append(f"No difference seen between {best.label} and {listed(tied)}.")
    there = {cell.method: cell for cell in rows if cell.runs}
    missing = [name for key, name in cells.ANCHORS.items() if key not in there and key != SCRATCH]
    if missing:
        lines.append(f"Anchor missing: {', '.join(missing)}. Without it a score cannot be judged.")
    scratch, probe, full = (there.get(key) for key in (SCRATCH, PROBE, FULL))
    if scratch and full and scratch.value is not None and full.value is not None:
        verdict = scratch.verdicts.get(FULL)
        gain = {"worse": "pretraining helps: scratch is worse than full", "better": "scratch is better than full",
                "tied": "scratch is tied with full: no gain from pretraining seen"}.get(verdict)  # fmt: skip
        lines += [gain[0].upper() + gain[1:] + "."] if gain else []
    if probe and full and full.verdicts.get(PROBE) in ("tied", "worse"):
        verdict = told(full.verdicts[PROBE], f"the {probe.label}")
        lines.append(f"Full fine-tuning is {verdict} here: there is no gap for an adapter to close.")
    beaten = [cell.label.replace("_", " ") for cell in rows if not cell.runs and cell.verdicts.get(PROBE) == "better"]
    if beaten:
        lines.append(
            f"Better than the {anchor(rows, PROBE)}, without any training of the network: {', '.join(beaten)}."
        )
    one = [cell.label for cell in rows if len(cell.runs) == 1]
    if one:
        lines.append(f"One seed only: {', '.join(one)}.")
    edges = [cell.label for cell in rows if chosen.edge(cell)]
    if edges:
        lines.append(f"Best learning rate at the edge of those tried, so the score may be too low: {', '.join(edges)}.")
    unequal = {cell.runs[0].record.tuning_budget for cell in rows if cell.runs}
    if len(unequal) > 1:
        lines.append("Learning rates were not tuned equally; see the column trials.")
    if lost:
        lines.append(f"{len(lost)} cell{'s' * (len(lost) != 1)} failed or missing, listed below.")
    return lines
