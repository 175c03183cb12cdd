"""Reads logged files into Arrow tables: Parquet, CSV and JSON lines. Broken rows are rejected; broken files are errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from basis.decoding import why
from basis.problems import Problem, ProblemList, Problems, Unreadable
from streaming.features.arrow_columns import as_numbers
from streaming.features.values import as_arrow
from streaming.source.settings import File

_FORMATS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
}
_SHOWN = 60
_TOLD_ROWS = 100


class Reject(NamedTuple):
    """A row that cannot be used: ``place`` names line and column."""

    file: str
    place: str
    value: str
    reason: str
    detail: str


def as_problems(rejects: Sequence[Reject]) -> list[Problem]:
    """Return unusable rows as problems: by file and kind, the first hundred and how many more there are."""
    found = []
    counts: Counter[tuple[str, str, str]] = Counter()
    for reject in rejects:
        kind = (reject.file, reject.reason, reject.detail)
        counts[kind] += 1
        if counts[kind] <= _TOLD_ROWS:
            found.append(Problem(reject.file, reject.place, reject.value, reject.detail))
    for (file, _, detail), count in counts.items():
        if count > _TOLD_ROWS:
            found.append(Problem(file, f"{count - _TOLD_ROWS} more lines", "", detail))
    return found


@dataclass
class RowFile:
    """Rows read from a file. ``lines`` int64 holds the line of each in the file, counted from 1 (Parquet: the row).

    ``missing`` has the columns that were asked for and are not there.
    """

    name: str
    table: pa.Table
    lines: pa.Array
    rejects: list[Reject] = field(default_factory=list)
    missing: list[Problem] = field(default_factory=list)
    _told: set[Reject] = field(default_factory=set)

    def column(self, name: str) -> pa.Array:
        """Return a column; an empty `Problems` if it is missing, which ``missing`` already reports."""
        if name not in self.table.column_names:
            raise Problems([])
        return self.table.column(name).combine_chunks()

    def reject(
        self, broken: pa.Array, column: str, values: pa.Array | pa.ChunkedArray, reason: str, detail: str
    ) -> None:
        """Reject the rows where ``broken`` is true, for their value in ``column``."""
        at = pc.indices_nonzero(broken)
        for line, value in zip(pc.take(self.lines, at).to_pylist(), as_shown(pc.take(values, at)), strict=True):
            found = Reject(self.name, f"line {line}, column {column}", _show(value), reason, detail)
            if found not in self._told:
                self._told.add(found)
                self.rejects.append(found)

    def reject_broken(self, broken: pa.Array | None, column: str, values: pa.Array, detail: str, allowed: str) -> None:
        """Reject the rows where ``broken`` is true; `Problems` if those are all rows with a value."""
        if broken is None or not pc.any(broken).as_py():
            return
        if pc.sum(broken).as_py() == len(values) - values.null_count:
            text = f"text such as {_show(values.drop_null()[0].as_py())}"
            raise Problems([Problem(self.name, f"column {column}", text, allowed)])
        self.reject(broken, column, values, "malformed", detail)

    def keep(self, mask: pa.Array) -> None:
        """Keep only the rows where ``mask`` is true."""
        self.table, self.lines = self.table.filter(mask), self.lines.filter(mask)


def read(folder: Path, file: File, columns: Sequence[str]) -> RowFile:
    """Return the rows of a file with those of ``columns`` that it has; `Problems` if the file as a whole is unusable, `Unreadable`
    if the operating system fails to read it."""
    path = folder / file.file
    try:
        require(folder, file)
        return _read(path, file, columns)
    except OSError as error:
        allowed = "allowed: a file that can be read"
        raise Unreadable([Problem(str(path), "file", error.strerror or str(error), allowed)]) from None


def require(folder: Path, file: File) -> None:
    """Raise `Problems` if a file is missing; if its folder is, name only the folder, the same for every file in it."""
    if not folder.is_dir():
        allowed = "no such folder; allowed: the folder of the logs, relative to the working directory, or --data DIR"
        raise Problems([Problem(str(folder.absolute()), "source.dir", repr(str(folder)), allowed)])
    path = folder / file.file
    if not path.is_file():
        raise Problems([Problem(str(path), "file", "", "not there; allowed: a file in the source's folder")])


def _read(path: Path, file: File, columns: Sequence[str]) -> RowFile:
    if path.stat().st_size == 0:
        raise Problems([Problem(str(path), "file", "0 bytes", "allowed: a file with rows")])
    path.open("rb").close()  # Arrow reports a file without read permission like a broken one
    kind = file.format or _FORMATS.get(path.suffix)
    if kind is None:
        raise Problems([Problem(str(path), "ending", path.suffix, "allowed: format: parquet, csv or jsonl")])
    readers = {"parquet": _parquet, "csv": _csv, "jsonl": _json_lines}
    rows = readers[kind](path, file, list(dict.fromkeys(columns)))
    if rows.table.num_rows == 0 and rows.table.num_columns:
        raise Problems([Problem(str(path), "rows", "0", "allowed: a file with rows")])
    return rows


def numbers(rows: RowFile, column: str) -> pa.Array:
    """Return a column as float64, null where missing. Rows with anything but a number are rejected; `Problems` if all are."""
    values = rows.column(column)
    try:
        found, broken = as_numbers(values)
    except TypeError as error:
        raise Problems([Problem(rows.name, f"column {column}", str(error), "allowed: numbers")]) from None
    rows.reject_broken(broken, column, values, "not a number", "allowed: numbers")
    return found


def as_shown(values: pa.Array | pa.ChunkedArray) -> list[Any]:
    """Return values to show in messages; times as texts, since Python's types cannot hold all of Arrow's times."""
    found: list[Any] = (values.cast(pa.string()) if pa.types.is_temporal(values.type) else values).to_pylist()
    return found


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _missing(path: Path, present: list[str], wanted: Sequence[str]) -> list[Problem]:
    has = ", ".join(present[:_SHOWN])
    return [
        Problem(str(path), f"column {column}", "missing", f"the file has: {has}")
        if column not in present
        else Problem(str(path), f"column {column}", "is given twice", "allowed: once")
        for column in wanted
        if present.count(column) != 1
    ]


def _as_text(kind: pa.DataType) -> pa.DataType:
    """Replace string views, a layout of texts that newer writers use, by large strings, in lists too."""
    if pa.types.is_string_view(kind):
        return pa.large_string()
    if pa.types.is_large_list(kind):
        return pa.large_list(_as_text(kind.value_type))
    return pa.list_(_as_text(kind.value_type)) if pa.types.is_list(kind) else kind


def _parquet(path: Path, _file: File, columns: list[str]) -> RowFile:
    try:
        with pa.parquet.ParquetFile(path) as file:
            present = file.schema_arrow.names
            table = file.read(columns=[column for column in columns if present.count(column) == 1])
        for at, column in enumerate(table.schema):
            kind = _as_text(column.type)
            if kind != column.type:
                table = table.set_column(at, column.with_type(kind), table.column(at).cast(kind))
        table.validate(full=True)  # also checks that texts are UTF-8, which the format does not guarantee
    except (pa.ArrowException, OSError) as error:
        raise Problems([Problem(str(path), "file", _show(str(error)), "allowed: a whole Parquet file")]) from None
    lines = pa.array(range(1, table.num_rows + 1), pa.int64())
    return RowFile(str(path), table, lines, missing=_missing(path, present, columns))


def _csv(path: Path, file: File, columns: list[str]) -> RowFile:
    refused: list[Reject] = []
    left_out: set[int] = set()

    def refuse(row: Any) -> str:
        left_out.add(row.number)
        if row.text.strip():
            detail = f"{row.actual_columns} columns, {row.expected_columns} expected"
            refused.append(Reject(str(path), f"line {row.number}", _show(row.text), "malformed", detail))
        return "skip"

    # The handler must see blank lines too: if the reader skipped them, line numbers would be wrong.
    parse = pa.csv.ParseOptions(
        delimiter=file.delimiter, invalid_row_handler=refuse, ignore_empty_lines=False, newlines_in_values=True
    )
    options = pa.csv.ReadOptions(use_threads=False)  # only a single thread reports line numbers
    try:
        with pa.csv.open_csv(path, read_options=options, parse_options=parse) as reader:
            present = reader.schema.names
        refused.clear()
        left_out.clear()
        missing = _missing(path, present, columns)
        columns = [column for column in columns if present.count(column) == 1]
        convert = pa.csv.ConvertOptions(
            include_columns=columns,
            column_types=dict.fromkeys(columns, pa.string()),
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            null_values=[""],
        )
        table = pa.csv.read_csv(path, read_options=options, parse_options=parse, convert_options=convert)
    except Exception as error:
        allowed = "allowed: CSV in UTF-8 with a header line"
        raise Problems([Problem(str(path), "file", why(error), allowed)]) from None
    lines = pa.array(
        [line for line in range(2, table.num_rows + len(left_out) + 2) if line not in left_out], pa.int64()
    )
    for column in columns[:1]:
        blank = pc.is_null(table.column(column))
        for other in columns[1:]:
            blank = pc.and_(blank, pc.is_null(table.column(other)))
        table, lines = table.filter(pc.invert(blank)), lines.filter(pc.invert(blank).combine_chunks())
    return RowFile(str(path), table, lines, refused, missing)


def _json_lines(path: Path, _file: File, columns: list[str]) -> RowFile:
    """Read line by line: Arrow's own reader gives up on a file at one broken line, and crashes the process at a line of null."""
    rows: list[dict[str, Any]] = []
    lines, rejects = [], []
    decoder = msgspec.json.Decoder(dict[str, Any])
    with path.open("rb") as file:
        for line, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                rows.append(decoder.decode(text))
                lines.append(line)
            except Exception as error:
                rejects.append(Reject(str(path), f"line {line}", _show(text[:_SHOWN]), "malformed", why(error)))
    present = list(dict.fromkeys(name for row in rows for name in row))
    if not rows:
        raise Problems([Problem(str(path), "rows", "0", "allowed: a file with rows"), *as_problems(rejects)])
    found, problems = {}, ProblemList()
    for name in columns:
        if name in present:
            with problems.collect():
                try:
                    found[name] = as_arrow([row.get(name) for row in rows])
                except Exception as error:
                    allowed = "allowed: numbers, texts, or lists of them"
                    raise Problems([Problem(str(path), f"column {name}", why(error), allowed)]) from None
    problems.raise_any()
    return RowFile(str(path), pa.table(found), pa.array(lines, pa.int64()), rejects, _missing(path, present, columns))
