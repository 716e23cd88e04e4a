"""Variants of one protein, written short: `A23T:G45D`, the letters at a library's sites (GB1's VDGV), or an insert in a
template (a CDR-H3 in its antibody chain).
"""

from __future__ import annotations

from typing import Any, Literal

from core.data.text import Faults, read_table, read_text, require
from core.errors import ConfigError
from domains.protein.data.crop import Shortening
from domains.protein.data.proteins import MISSING, Proteins, read_label, read_split
from domains.protein.data.residues import clean, mutate, parse_mutations
from domains.protein.data.splits import Splitting
from domains.protein.data.table import split_column, wildtype_sequence


class Variants(Proteins):
    """Variants in a table, one per row; the variant's name is its id.

    path       csv or tsv, gzipped or not             variant    column of mutants, letters or inserts
    wildtype   FASTA file or sequence                 numbering  of its first residue in mutants' names, 1 or 0
    positions  0-based sites of a library: then the column holds one letter per site, and all are `sites`
    template   text file or sequence with {} where the insert goes, instead of a wild type; the insert's span is `sites`
    synonymous mutants that change nothing (P20P), which repeat the wild type's sequence: drop or keep
    others     as table.Csv
    """

    def __init__(
        self,
        path: str,
        *,
        variant: str = "mutant",
        target: str | None = "target",
        target_type: Literal["number", "class"] = "number",
        wildtype: str | None = None,
        numbering: int = 1,
        positions: list[int] | None = None,
        template: str | None = None,
        synonymous: Literal["drop", "keep"] = "drop",
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
        if (wildtype is None) == (template is None):
            got = "neither" if wildtype is None else "both"
            raise ConfigError(where="data.wildtype, data.template", got=got, allowed="one of the two")
        self.path, self.variant, self.target, self.target_type = path, variant, target, target_type
        self.wildtype, self.numbering, self.positions, self.template = wildtype, numbering, positions, template
        self.synonymous, self.missing = synonymous, missing
        self.split_column, self.validation = split_column, validation

    def read(self) -> tuple[str, list[dict[str, Any]]]:
        table = read_table(self.path)
        named = {"data.variant": self.variant, "data.target": self.target, "data.validation": self.validation}
        require(table, [(key, column) for key, column in named.items() if column])
        column = split_column(table, self.splitting.kind, self.split_column)
        native = wildtype_sequence(self.wildtype)
        self._check_positions(native)
        before, after = read_template(self.template) if self.template else ("", "")
        faults, rows, dropped = Faults(table.file), [], {"no change": 0, "no label": 0}
        for line, cells in table.rows:
            text = cells[self.variant].strip()
            if self.target and self.missing == "drop" and cells[self.target].strip().lower() in MISSING:
                dropped["no label"] += 1
                continue
            if self.template:
                made, fault = inserted(before, text, after)
            elif self.positions:
                made, fault = lettered(native, text, self.positions)
            else:
                made, fault = mutated(native, text, self.numbering)
            if fault:
                faults.add(line, self.variant, fault)
            elif (
                made["sequence"] == native and not self.positions and self.synonymous == "drop" and text.upper() != "WT"
            ):
                dropped["no change"] += 1
                continue
            name = text or "WT"
            row = {"id": name, "group": name, **made, "split": "", "line": line}
            if self.target:
                row["label"] = read_label(faults, line, self.target, cells[self.target], self.target_type, "")
            if column:
                flag = cells[self.validation] if self.validation else ""
                row["split"] = read_split(faults, line, column, cells[column], flag)
            rows.append(row)
        faults.check()
        reasons = {"no change": "synonymous variants, left out", "no label": "rows without a label, left out"}
        self.notes |= {reasons[why]: n for why, n in dropped.items() if n}
        return table.file, rows

    def _check_positions(self, native: str) -> None:
        if self.positions is None:
            return
        outside = [p for p in self.positions if not 0 <= p < len(native)]
        if outside or len(set(self.positions)) != len(self.positions) or not self.positions:
            allowed = f"different positions from 0 to {len(native) - 1}"
            raise ConfigError(where="data.positions", got=self.positions, allowed=allowed)


Made = tuple[dict[str, Any], str]


def mutated(native: str, text: str, numbering: int) -> Made:
    """({sequence, wildtype, sites}, fault) of a mutant name."""
    changes, fault = parse_mutations(text, native, numbering)
    return {"sequence": mutate(native, changes), "wildtype": native, "sites": sorted(changes)}, fault


def lettered(native: str, text: str, positions: list[int]) -> Made:
    """({sequence, wildtype, sites}, fault) of the letters at a library's sites; every variant has all sites."""
    text, fault = clean(text)
    if not fault and len(text) != len(positions):
        fault = f"{len(text)} letters for {len(positions)} positions"
    if fault:
        return {"sequence": native, "wildtype": native, "sites": positions}, fault
    sequence = mutate(native, dict(zip(positions, text, strict=True)))
    return {"sequence": sequence, "wildtype": native, "sites": list(positions)}, ""


def inserted(before: str, text: str, after: str) -> Made:
    """({sequence, sites}, fault) of an insert in its template; the sites are the insert's span."""
    text, fault = clean(text)
    sites = list(range(len(before), len(before) + len(text)))
    return {"sequence": before + text + after, "sites": sites}, fault


def read_template(source: str) -> tuple[str, str]:
    """(before, after) the {} of a template, which is text itself or a file."""
    file, text = ("data.template", source) if "{}" in source else read_text(source)
    body = "".join(line for line in text.splitlines() if not line.startswith(">"))
    faults = Faults(file)
    if body.count("{}") != 1:
        faults.add(None, "template", f"{body.count('{}')} places for the insert", "one {}")
        faults.check()
    before, after = (part.strip() for part in body.split("{}"))
    for part in filter(None, (before, after)):
        fault = clean(part)[1]
        if fault:
            faults.add(None, "template", fault, "amino-acid letters around {}")
    faults.check()
    return before.upper(), after.upper()
