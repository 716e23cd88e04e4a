"""FASTA: proteins, their labels beside them. Labels come from the headers (`>P1 TARGET=Nucleus SET=train`) or, per
residue, from a second FASTA with the same ids (`>P1 SET=train VALIDATION=False`, then a letter per residue), as FLIP's.
"""

from __future__ import annotations

import re
from typing import Any, Literal, NamedTuple

from core.data.text import Faults, read_text
from domains.protein.data.crop import Shortening
from domains.protein.data.proteins import Proteins, read_label, read_resolved, read_sequence, read_split
from domains.protein.data.splits import Splitting

ATTRIBUTE = re.compile(r"(\w+)=(\S+)")


class Record(NamedTuple):
    line: int
    id: str
    attributes: dict[str, str]
    body: str


def read_fasta(path: str) -> tuple[str, list[Record]]:
    """(file name, records) of a FASTA file; lines of a record are joined, `;` comments and empty lines left out.

    DataError   as read_text; text before the first header, a header without id, a record without residues
    """
    file, text = read_text(path)
    faults, records, body = Faults(file), [], []

    def close() -> None:
        if records:
            records[-1] = records[-1]._replace(body="".join(body))
            if not body:
                faults.add(records[-1].line, records[-1].id, "a header and no residues", "a sequence below the header")

    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith(">"):
            close()
            body = []
            words = line[1:].split()
            if not words:
                faults.add(number, "header", "no id", ">ID and a description")
            attributes = {key.upper(): value for key, value in ATTRIBUTE.findall(line)}
            records.append(Record(number, words[0] if words else "", attributes, ""))
        elif line.strip() and not line.startswith(";"):
            if not records:
                faults.add(number, "", f"`{line.strip()[:20]}` before any header", "a line that begins with `>`")
                break
            body.append(line.strip())
    close()
    if not records:
        faults.add(None, "", "no record", "lines that begin with `>`")
    faults.check()
    return file, records


def unlabelled(path: str) -> list[dict[str, Any]]:
    """Items (id, group, sequence) of a FASTA file, for prediction; DataError as read_fasta, with each bad sequence."""
    file, records = read_fasta(path)
    faults, items = Faults(file), []
    for record in records:
        sequence = read_sequence(faults, record.line, record.id, record.body)
        items.append({"id": record.id, "group": record.id, "sequence": sequence})
    faults.check()
    return items


class Fasta(Proteins):
    """Proteins of a FASTA file.

    path         sequences, one id each                       labels     FASTA of one letter per residue, same ids
    target       header key of the label (TARGET), or None    resolved   FASTA of 0/1 per residue, same ids
    target_type  number or class, of the header label
    split        given reads SET= and VALIDATION= of the label file's headers, else of the sequences' own
    others       splits.Splitting and crop.Shortening say
    """

    def __init__(
        self,
        path: str,
        *,
        labels: str | None = None,
        resolved: str | None = None,
        target: str | None = None,
        target_type: Literal["number", "class"] = "class",
        group: str | None = None,
        split: str = "identity",
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
        self.path, self.labels, self.resolved = path, labels, resolved
        self.target, self.target_type, self.group = target, target_type, group

    def read(self) -> tuple[str, list[dict[str, Any]]]:
        file, records = read_fasta(self.path)
        faults, rows = Faults(file), []
        for record in records:
            sequence = read_sequence(faults, record.line, record.id, record.body)
            row = {"id": record.id, "group": record.id, "sequence": sequence, "split": "", "line": record.line}
            if self.group:
                row["group"] = self._attribute(faults, record, self.group)
            if self.target:
                text = self._attribute(faults, record, self.target)
                row["label"] = read_label(faults, record.line, self.target, text, self.target_type, sequence)
            if "SET" in record.attributes:
                row["split"] = self._split(faults, record)
            rows.append(row)
        faults.check()
        if self.labels:
            self._join(rows, self.labels, "label")
        if self.resolved:
            self._join(rows, self.resolved, "resolved")
        return file, rows

    def _attribute(self, faults: Faults, record: Record, key: str) -> str:
        if key.upper() not in record.attributes:
            has = ", ".join(record.attributes) or "none"
            faults.add(record.line, record.id, f"no `{key}=` in the header (it has {has})", f"`{key}=value`")
        return record.attributes.get(key.upper(), "")

    @staticmethod
    def _split(faults: Faults, record: Record) -> str:
        return read_split(faults, record.line, "SET", record.attributes["SET"], record.attributes.get("VALIDATION", ""))

    def _join(self, rows: list[dict[str, Any]], path: str, field: str) -> None:
        """Labels (or resolved flags) and splits of a second FASTA into the rows; ids must agree both ways."""
        file, records = read_fasta(path)
        faults, by_id = Faults(file), {}
        for record in records:
            if record.id in by_id:
                faults.add(record.line, "id", f"`{record.id}` again", "each id once")
            by_id[record.id] = record
        for row in rows:
            record = by_id.pop(row["id"], None)
            if record is None:
                faults.add(None, row["id"], f"no {field} record for this id", "one record per sequence")
            elif field == "resolved":
                row[field] = read_resolved(faults, record.line, row["id"], record.body, row["sequence"])
            else:
                row[field] = read_label(faults, record.line, row["id"], record.body, "residue", row["sequence"])
            if record is not None and "SET" in record.attributes:
                row["split"] = self._split(faults, record)
        for record in by_id.values():
            faults.add(record.line, record.id, "an id without a sequence", f"ids of {self.path}")
        faults.check()
