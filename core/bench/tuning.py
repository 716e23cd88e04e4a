"""Which learning rates were tried for each method, which one validation chose, and whether it lies at the edge."""

from __future__ import annotations

from dataclasses import dataclass, field

from core.bench import numerals
from core.bench.cells import Cell, Run


@dataclass
class Tried:
    """Mean validation score by (method's label, learning rate); `chosen` is the learning rate of the tested runs,
    `metric` what the validation scores are of."""

    scores: dict[tuple[str, float], float] = field(default_factory=dict)
    chosen: dict[str, float] = field(default_factory=dict)
    metric: str = ""

    @property
    def labels(self) -> list[str]:
        return list(dict.fromkeys(label for label, _ in self.scores))

    @property
    def lrs(self) -> list[float]:
        return sorted({lr for _, lr in self.scores})

    def row(self, label: str) -> list[str]:
        """One text per learning rate: `0.61`, `[0.63]` if chosen, `[0.63] !` if that is at the edge."""
        out = []
        for lr in self.lrs:
            score = self.scores.get((label, lr))
            text = numerals.score(score) if score is not None else ""
            if score is not None and self.chosen.get(label) == lr:
                text = f"[{text}]" + (" !" if self._edge(label) else "")
            out.append(text)
        return out

    def edge(self, cell: Cell) -> bool:
        """True where more than two learning rates were tried and the smallest or largest won."""
        return self._edge(cell.label)

    def _edge(self, label: str) -> bool:
        tried = sorted(lr for name, lr in self.scores if name == label)
        return len(tried) > 2 and self.chosen.get(label) in (tried[0], tried[-1])


def table(rows: list[Cell], trials: list[Run]) -> Tried:
    """Validation scores of trials, and of tested runs that were trials themselves, by cell and learning rate."""
    tried, seen = Tried(), {}
    for cell in rows:
        if not cell.runs or not trials:
            continue
        record = cell.runs[0].record
        tried.chosen[cell.label] = record.lr
        setting = record.method, record.options, sorted(record.targets)
        mine = [
            trial
            for trial in trials
            if trial.record.tuning_group == record.tuning_group
            and (trial.record.method, trial.record.options, sorted(trial.record.targets)) == setting
        ]
        seeds = {t.record.seed for t in mine}
        for run in [*mine, *(run for run in cell.runs if run.record.seed in seeds)]:
            line = run.record.validation()
            if line is not None and line.value is not None and run.record.lr is not None:
                seen.setdefault((cell.label, run.record.lr), {})[run.record.seed] = line.value
                tried.metric = (run.record.selected or run.record.primary).name
    tried.scores = {key: sum(values.values()) / len(values) for key, values in seen.items()}
    return tried
