"""New input for a trained run: `atlas predict RUN --input lines.txt --out spoken` or `--input new.csv --out rows.csv`.

text         one utterance per line, spoken into OUT/line1.wav, line2.wav, ... with the run's vocoder
csv, tsv     paths of sound files in the column of the run's own data (`path`): a row of classes each
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.errors import ConfigError, DataError

TABLES = (".csv", ".tsv")
READING = ("sample_rate", "trim", "loudness")  # how the run's own recordings became samples


def read(path: Path, data: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Items of a file, in order: {id, group, speaker, seconds, read} of a table, {id, group, text, phones} of a text.

    data   the run's `data` config
    DataError   as core.data.text and the readers of domains.speech.data; a text that cannot be said
    """
    source = {key: value for key, value in (data or {}).items() if value is not None}
    name = Path(path).name.removesuffix(".gz")
    return _recordings(path, source) if name.endswith(TABLES) else _lines(path, source)


def _recordings(path: Path, source: dict[str, Any]) -> list[dict[str, Any]]:
    from core.data.text import read_table
    from domains.speech.data.table import Csv

    column = source.get("audio", "path")
    columns = read_table(str(path)).columns
    if column not in columns:
        raise DataError(f"{path}, header", f"columns {', '.join(columns)}", f"a column `{column}` of sound files")
    kept = {key: source[key] for key in READING if key in source}
    return Csv(str(path), audio=column, id="id" if "id" in columns else None, split="random", **kept).everything()


def _lines(path: Path, source: dict[str, Any]) -> list[dict[str, Any]]:
    from core.data.text import Faults, read_text

    twin = source.get("_target_", "").endswith(".Twin")
    file, text = read_text(str(path))
    faults, items = Faults(file), []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            phones = _phones(line.strip(), source.get("folder"), twin)
        except DataError as error:
            problem = error.problems[0]
            faults.add(number, "", problem.got, problem.allowed)
            continue
        name = f"line{number}"
        items.append({"id": name, "group": name, "text": line.strip(), "phones": phones})
    faults.check()
    return items


def _phones(line: str, folder: str | None, twin: bool) -> list[tuple[str, float]]:
    """What a line says: in the twin's own spelling where the run learned from the twin, else in English."""
    from domains.speech.data import flite, phones, world

    if twin:
        return world.spelled(line)
    if letters := flite.unreadable(line):
        raise DataError("text", f"letters {' '.join(letters)}", "Latin letters, read as English")
    return phones.of_text(line, folder)


def write(run: Any, items: Sequence[dict[str, Any]], out: Path, batch_size: int) -> str:
    """Speaks every item into `out`/ID.wav; says how many, and where to listen first.

    run   core.ship.Shipped          ConfigError: the run's task does not speak, or the items are recordings
    """
    import torch

    from domains.speech.data.audio import write as save

    if not hasattr(run.task, "takes"):
        raise ConfigError("--out", out.name, "a name that ends in .csv or .jsonl: this run's task does not speak")
    if any("text" not in item for item in items):
        raise ConfigError("--input", "recordings", "a text file, one utterance per line")
    batches = [run.task.collate([item], run.model.tokenizer) for item in items]  # all are checked before one is spoken
    device = next(run.model.parameters()).device
    out.mkdir(parents=True, exist_ok=True)
    seconds = 0.0
    for item, batch in zip(items, batches, strict=True):
        batch = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
        with torch.no_grad():
            (row,) = run.task.infer(run.model, batch, run.head)
        save(out / f"{item['id']}.wav", run.task.takes[item["id"]]["samples"], run.model.recipe.sample_rate)
        seconds += row["seconds"]
    return f"{len(items)} utterances, {seconds:.1f} s of speech\nlook   {out / (items[0]['id'] + '.wav')}"
