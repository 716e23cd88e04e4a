"""New proteins for a trained run: `atlas predict RUN --input new.fasta --out new.csv`. No labels are read.

FASTA            one protein per record
csv, tsv         the columns of the run's own data: sequences, or variants of its wild type or template
Where the run's data has a wild type or a template, a FASTA's mutated sites are found by comparing with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.errors import DataError

# Constructor arguments of the run's data that say how to read a table; labels, splits and crops are not among them.
TABLE = ("seq", "id", "group", "mutant", "numbering", "wildtype")
VARIANTS = ("variant", "numbering", "wildtype", "positions", "template")


def read(path: Path, data: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Items (id, group, sequence; sites and wildtype where known) of a file, in its order.

    data   the run's `data` config; None reads `sequence` and `id` columns
    DataError   as the readers of domains.protein.data; repeated ids
    """
    from core.data.text import read_text, refuse_repeated_ids
    from domains.protein.data.fasta import unlabelled

    source = {key: value for key, value in (data or {}).items() if value is not None}
    file, text = read_text(str(path))
    if text.lstrip("\ufeff \r\n;").startswith(">"):
        items = [_placed(item, source) for item in unlabelled(str(path))]
        refuse_repeated_ids(file, [{**item, "line": number} for number, item in enumerate(items, 1)])
        return items
    rows = _table(str(path), source)
    refuse_repeated_ids(file, rows)
    return [{key: value for key, value in row.items() if key not in ("line", "split")} for row in rows]


def _table(path: str, source: dict[str, Any]) -> list[dict[str, Any]]:
    from core.data.text import read_table
    from domains.protein.data.table import Csv
    from domains.protein.data.variants import Variants

    columns = read_table(path).columns
    if source.get("variant") in columns:
        kept = {key: source[key] for key in VARIANTS if key in source}
        return Variants(path, target=None, synonymous="keep", split="random", **kept).read()[1]
    kept = {key: source[key] for key in TABLE if key in source}
    kept = {key: value for key, value in kept.items() if key not in ("id", "group", "mutant") or value in columns}
    if kept.get("seq", "sequence") not in columns:
        wanted = " or ".join(filter(None, (f"`{kept.get('seq', 'sequence')}`", source.get("variant"))))
        raise DataError(f"{path}, header", f"columns {', '.join(columns)}", f"a column {wanted}, or a FASTA file")
    if "id" not in kept and "id" in columns:
        kept["id"] = "id"
    return Csv(path, target=None, split="random", **kept).read()[1]


def _placed(item: dict[str, Any], source: dict[str, Any]) -> dict[str, Any]:
    """The item with `sites` and `wildtype`, as the run's own data would have given them."""
    from domains.protein.data.residues import differences
    from domains.protein.data.table import wildtype_sequence
    from domains.protein.data.variants import read_template

    if "template" in source:
        before, after = read_template(source["template"])
        sequence = item["sequence"]
        if sequence.startswith(before) and sequence.endswith(after):
            return item | {"sites": list(range(len(before), len(sequence) - len(after)))}
        return item
    if "wildtype" not in source:
        return item
    native = wildtype_sequence(source["wildtype"])
    changed = differences(item["sequence"], native)
    if changed is None:
        return item
    return item | {"wildtype": native, "sites": list(source.get("positions") or changed)}
