"""Text files as they come: gzipped or not, with a byte order mark or not, any line ending; and a list of their faults.

A row's number is the line on which it begins, counted from 1, as an editor shows it.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from core.errors import DataError, Problem, did_you_mean
from core.paths import locate

SHOWN = 20


class Faults:
    """Collects what is wrong with a file's rows; `check()` raises one DataError that shows the first 20."""

    def __init__(self, file: str):
        self.file = file
        self.problems: list[Problem] = []

    def add(self, row: int | None, field: str, got: str, allowed: str = "", fix: str = "") -> None:
        place = self.file if row is None else f"{self.file}:{row}"
        self.problems.append(Problem(f"{place}, {field}" if field else place, got, allowed, fix))

    def check(self) -> None:
        if self.problems:
            more = len(self.problems) - SHOWN
            rest = [Problem(self.file, f"{more} more of these")] if more > 0 else []
            raise DataError(problems=self.problems[:SHOWN] + rest)


class Table(NamedTuple):
    """A table with a header: `rows` are (line, cells by column name); a missing cell is ''."""

    file: str
    columns: list[str]
    rows: list[tuple[int, dict[str, str]]]


def read_text(path: str) -> tuple[str, str]:
    """(file name, content) of a text file; gzip is recognised by its first bytes, whatever the name.

    DataError   missing, a folder, empty, not readable, truncated gzip, not UTF-8
    """
    file = locate(path)
    try:
        data = Path(file).read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except FileNotFoundError:
        folder = file.parent if file.parent.is_dir() else Path(".")
        near = did_you_mean(file.name, [p.name for p in folder.iterdir()])
        raise DataError(where=str(path), got="no such file", allowed="a file that exists", fix=near) from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(where=str(path), got=f"broken gzip file ({error})", fix="fetch or write it again") from None
    except OSError as error:
        raise DataError(where=str(path), got=f"not readable: {error.strerror}", allowed="a text file") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        got = f"byte {data[error.start]:#04x} is not UTF-8"
        raise DataError(where=f"{path}:{line}", got=got, allowed="text in UTF-8") from None
    if not text.strip():
        raise DataError(where=str(path), got="empty file", allowed="at least one record")
    return file.name, text


def read_table(path: str, delimiter: str | None = None) -> Table:
    """Rows of a csv or tsv file; quoted cells and line breaks inside quotes are understood, empty lines left out.

    delimiter   one character; None takes the tab, comma or semicolon that the header has most of
    DataError   as read_text; no header, a column twice, a row longer than the header, a quote that never closes
    """
    file, text = read_text(path)
    header = text.lstrip("\r\n").splitlines()[0]
    delimiter = delimiter or max("\t,;", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    faults, columns, rows, line = Faults(file), [], [], 1
    try:
        for cells in reader:
            start, line = line, reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if not columns:
                columns = [cell.strip() for cell in cells]
                for name in sorted({c for c in columns if columns.count(c) > 1}):
                    faults.add(start, "header", f"column `{name}` twice", "each column once")
                continue
            if len(cells) > len(columns):
                faults.add(start, "", f"{len(cells)} cells", f"{len(columns)}, as the header has")
                continue
            rows.append((start, dict(zip(columns, cells + [""] * (len(columns) - len(cells)), strict=True))))
    except csv.Error as error:
        faults.add(line, "", f"not a table: {error}", "quotes closed, cells under 128 KiB")
    if not rows and not faults.problems:
        faults.add(None, "", "a header and no rows", "at least one row")
    faults.check()
    return Table(file, columns, rows)


def json_lines(text: str, faults: Faults) -> Iterator[tuple[int, Any]]:
    """(line, value) of every line that is JSON; other lines that are not empty are faults."""
    for line, content in enumerate(text.split("\n"), 1):  # a text may hold what Unicode calls a line break
        if content.strip():
            try:
                yield line, json.loads(content)
            except ValueError as error:
                faults.add(line, "", f"not JSON: {error}", "one object per line")


def refuse_repeated_ids(file: str, rows: list[dict[str, Any]]) -> None:
    """DataError that lists every row whose `id` an earlier row has; `line` says where a row begins."""
    faults, first = Faults(file), {}
    for row in rows:
        line = first.setdefault(row["id"], row["line"])
        if line != row["line"]:
            faults.add(row["line"], "id", f"`{row['id']}` again", f"each id once (first in line {line})")
    faults.check()


def require(table: Table, columns: Iterable[tuple[str, str]]) -> None:
    """DataError that lists every (config key, column) that the table lacks, with the nearest name."""
    faults = Faults(table.file)
    for key, column in columns:
        if column not in table.columns:
            near = did_you_mean(column, table.columns)
            fix = f"{near} set {key}" if near else f"set {key} to one of these"
            faults.add(None, "header", f"no column `{column}` ({key})", ", ".join(table.columns), fix)
    faults.check()
