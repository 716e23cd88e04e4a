"""csv and tsv tables with a sequence column: plain assays, FLIP's splits, ProteinGym's assays, labels per residue."""

from __future__ import annotations

from typing import Any, Literal

from core.data.text import Faults, Table, read_table, require
from domains.protein.data.crop import Shortening
from domains.protein.data.fasta import unlabelled
from domains.protein.data.proteins import (
    MISSING,
    Proteins,
    read_label,
    read_resolved,
    read_sequence,
    read_split,
)
from domains.protein.data.residues import clean, differences, parse_mutations
from domains.protein.data.splits import Splitting

SPLIT_COLUMNS = ("split", "set")


class Csv(Proteins):
    """Proteins of a table, one per row.

    path          csv or tsv, gzipped or not             seq, id   columns; id None numbers the rows
    target        label column, None: no labels          target_type   number, class, or residue (a letter for each)
    group         column that splits keep together       resolved      column of 0/1 per residue
    mutant        column such as A23T:G45D, against `sequence`: gives sites, and the wild type by reverting
    wildtype      FASTA file or sequence, where the assay has one
    split_column  for split given; None looks for `split`, `set`       validation   FLIP's True/False column
    missing       rows without a label: error or drop    others  splits.Splitting and crop.Shortening say
    """

    def __init__(
        self,
        path: str,
        *,
        seq: str = "sequence",
        target: str | None = "target",
        target_type: Literal["number", "class", "residue"] = "number",
        id: str | None = None,
        group: str | None = None,
        resolved: str | None = None,
        mutant: str | None = None,
        numbering: int = 1,
        wildtype: str | None = None,
        split_column: str | None = None,
        validation: str | None = None,
        missing: Literal["error", "drop"] = "error",
        split: str = "given",
        seed: int = 0,
        val: float = 0.1,
        test: float = 0.2,
        threshold: float = 0.3,
        clusters: str | None = None,
        limit: dict[str, int] | None = None,
        drop_leaks: bool = False,
        max_length: int | None = None,
        too_long: Literal["crop", "drop", "error"] = "crop",
    ):
        splitting = Splitting(split, seed, val, test, limit, threshold, clusters, drop_leaks)
        super().__init__(splitting, Shortening(max_length, too_long))
        self.path, self.seq, self.target, self.target_type = path, seq, target, target_type
        self.id, self.group, self.resolved = id, group, resolved
        self.mutant, self.numbering, self.wildtype = mutant, numbering, wildtype
        self.split_column, self.validation, self.missing = split_column, validation, missing

    def read(self) -> tuple[str, list[dict[str, Any]]]:
        table = read_table(self.path)
        named = {"data.seq": self.seq, "data.target": self.target, "data.id": self.id, "data.group": self.group}
        named |= {"data.resolved": self.resolved, "data.mutant": self.mutant, "data.validation": self.validation}
        require(table, [(key, column) for key, column in named.items() if column])
        column = split_column(table, self.splitting.kind, self.split_column)
        native = wildtype_sequence(self.wildtype)
        faults, rows = Faults(table.file), []
        for line, cells in table.rows:
            if self.target and self.missing == "drop" and cells[self.target].strip().lower() in MISSING:
                self.notes["rows without a label, left out"] = self.notes.get("rows without a label, left out", 0) + 1
                continue
            sequence = read_sequence(faults, line, self.seq, cells[self.seq])
            name = cells[self.id].strip() if self.id else f"row{line}"
            if not name:
                faults.add(line, self.id or "id", "no id", "an id in every row")
            row = {"id": name, "group": name, "sequence": sequence, "split": "", "line": line}
            if self.group:
                row["group"] = cells[self.group].strip() or name
            if self.target:
                text = cells[self.target]
                row["label"] = read_label(faults, line, self.target, text, self.target_type, sequence)
            if self.resolved:
                row["resolved"] = read_resolved(faults, line, self.resolved, cells[self.resolved], sequence)
            if self.mutant:
                row |= self._reverted(faults, line, cells[self.mutant], sequence)
            elif native:
                positions = differences(sequence, native)
                row |= {"wildtype": native} if positions is None else {"wildtype": native, "sites": positions}
            if column:
                flag = cells[self.validation] if self.validation else ""
                row["split"] = read_split(faults, line, column, cells[column], flag)
            rows.append(row)
        faults.check()
        return table.file, rows

    def _reverted(self, faults: Faults, line: int, mutant: str, sequence: str) -> dict[str, Any]:
        """Sites and wild type from the mutant's name read backwards: T at 23 in the sequence, A in the wild type."""
        backwards = ":".join(part[-1:] + part[1:-1] + part[:1] for part in mutant.strip().split(":"))
        if mutant.strip().upper() in ("", "WT"):
            backwards = ""
        changes, fault = parse_mutations(backwards, sequence, self.numbering)
        if fault:
            got = f"`{mutant}` does not fit the sequence"
            faults.add(line, self.mutant or "mutant", got, f"numbers from {self.numbering}", "data.numbering=0 or 1")
        native = list(sequence)
        for position, residue in changes.items():
            native[position] = residue
        return {"sites": sorted(changes), "wildtype": "".join(native)}


def split_column(table: Table, kind: str, named: str | None) -> str | None:
    """The column of the given split: the one that the config names, else `split` or `set`; None for other splits."""
    if kind != "given":
        return None
    if named is None:
        named = next((c for c in table.columns if c.lower() in SPLIT_COLUMNS), None)
    if named is None:
        faults = Faults(table.file)
        fix = "data.split=identity (proteins), random, two_vs_rest, contiguous, or data.split_column=NAME"
        faults.add(None, "header", "no column `split` or `set` for data.split=given", ", ".join(table.columns), fix)
        faults.check()
    require(table, [("data.split_column", str(named))])
    return named


def wildtype_sequence(source: str | None) -> str:
    """The one sequence of a FASTA file, or the text itself where it is a sequence; '' for None."""
    if source is None:
        return ""
    sequence, fault = clean(source)
    if not fault and source.isalpha():
        return sequence
    items = unlabelled(source)
    if len(items) != 1:
        faults = Faults(source)
        faults.add(None, "", f"{len(items)} sequences", "one, the wild type")
        faults.check()
    return items[0]["sequence"]
