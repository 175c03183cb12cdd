"""Reads a CSV file by DuckDB, all its columns as texts, and finds the line of each row."""

from __future__ import annotations

import csv
import io
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import duckdb
import numpy as np

from basis.decoding import why
from basis.problems import Problem, Problems
from streaming.features.columns import Ids
from streaming.source.duck import limit, quoted, source, usable_columns
from streaming.source.rows import Broken, Request, Rows, opened
from streaming.source.settings import File

_UTF8 = "utf-8-sig"
_NO_END = "a quote without its end"
_MIXED_LINE_ENDS = "state machine reached an invalid state"


def read_csv(db: duckdb.DuckDBPyConnection, asked: Request) -> Rows:
    """Read a CSV file; an empty field is missing, an empty text in quotes is not."""
    path, file, most = asked.path, asked.file, asked.most
    if file.encoding is not None:
        return _recoded(db, asked)
    with _texts(asked.plain, _UTF8, errors="replace") as text:
        header = next(csv.reader(text, delimiter=file.delimiter), [])
    present = file.columns or header
    if not any(present):
        allowed = "allowed: the names of the columns, or `columns` in the config"
        raise Problems([Problem(str(path), "line 1", "blank", allowed)])
    usable, missing = usable_columns(path, present, asked.columns)
    inner = {at: f"c{at}" for at in range(len(present))}  # names may differ in case only, which DuckDB does not
    wanted = ", ".join(inner[present.index(name)] for name in usable) or "0 as nothing"
    query = f"""select {wanted} from read_csv({source(asked.plain)}, auto_detect = false, header = {file.columns is None},
        columns = {{{", ".join(f"{name}: 'VARCHAR'" for name in inner.values())}}}, hive_partitioning = false,
        delim = {quoted(file.delimiter)}, quote = '"', escape = '"', nullstr = '', allow_quoted_nulls = false,
        store_rejects = true, parallel = false) {limit(most)}"""
    try:
        table = db.sql(query).to_arrow_table()
    except duckdb.InvalidInputException as error:
        if _MIXED_LINE_ENDS not in str(error):
            raise
        return _recoded(db, asked)
    table = table.rename_columns(usable) if usable else table.select([])
    count = table.num_rows
    refused = db.sql("select line, error_type, error_message, csv_line from reject_errors order by all").fetchall()
    details = {line: (text, _why_refused(kind, said)) for line, kind, said, text in refused if text.strip()}
    blank = {line for line, _, _, _ in refused} - set(details)
    lines: dict[int, int] = {}
    cut = _cut_row(path, file) if most is None else None

    def find_lines() -> Ids:
        good, begins = _csv_lines(path, file, {*details, *blank}, len(present))
        good = good if cut is None else good[good != cut.line]
        lines.update(begins)
        return good if len(good) == count else np.arange(1, count + 1)

    if details and most is None:
        find_lines()
    broken = [Broken(lines.get(number, number), text, detail) for number, (text, detail) in details.items()]
    return Rows(table, find_lines, broken if cut is None else [*broken, cut], missing)


def _cut_row(path: Path, file: File) -> Broken | None:
    """Return the last row of a file if it begins a quote that has no end, which DuckDB leaves out silently."""
    with opened(path) as reader:
        quotes = sum(chunk.count(b'"') for chunk in iter(lambda: reader.read(1 << 20), b""))
    if quotes % 2 == 0:
        return None
    begin, begins_next = 1, 1
    with _texts(path, _UTF8, errors="replace") as text, _any_field_size():
        reader_ = csv.reader(text, delimiter=file.delimiter)
        for _ in reader_:
            begin, begins_next = begins_next, reader_.line_num + 1
    with _texts(path, _UTF8, errors="replace") as text:
        row = "".join(islice(text, begin - 1, None))
    return Broken(begin, row, _NO_END) if row.count('"') % 2 else None


def _why_refused(kind: str, said: str) -> str:
    """What is wrong with a row of a CSV file, in our words where DuckDB's are about its options."""
    match kind:
        case "MISSING COLUMNS" | "TOO MANY COLUMNS":
            expected, found = (part.split()[0] for part in said.partition("Columns: ")[2].split("Found: "))
            return f"{found} columns, {expected} expected"
        case "INVALID ENCODING":
            return "not in UTF-8; encoding: names another, such as latin-1"
        case "UNQUOTED VALUE":
            return _NO_END
    return why(ValueError(said))


def _csv_lines(path: Path, file: File, broken: set[int], columns: int) -> tuple[Ids, dict[int, int]]:
    """Return the line that each good row begins at, and those of ``broken`` ones, which are given as DuckDB counts: by rows and
    blank lines, whatever line breaks are in their quotes. Of one column, a blank line is a row, whose value is missing."""
    good: list[int] = []
    begins: dict[int, int] = {}
    with _texts(path, _UTF8, errors="replace") as text, _any_field_size():
        reader = csv.reader(text, delimiter=file.delimiter)
        begin = 1
        for number, row in enumerate(reader, 1):
            if number in broken:
                begins[number] = begin
            elif (row or columns == 1) and (number > 1 or file.columns is not None):
                good.append(begin)
            begin = reader.line_num + 1
    return np.array(good, np.int64), begins


@contextmanager
def _any_field_size() -> Iterator[None]:
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _recoded(db: duckdb.DuckDBPyConnection, asked: Request) -> Rows:
    """Read a copy in UTF-8 with one kind of line ends, which is what DuckDB reads."""
    folder = tempfile.mkdtemp(prefix="minutely-")
    try:
        copy = Path(folder, "utf-8.csv")
        encoding = asked.file.encoding or _UTF8
        with _texts(asked.plain, encoding, newline=None) as text, copy.open("w", encoding="utf-8") as out:
            shutil.copyfileobj(text, out, 1 << 20)
        file = asked.file.model_copy(update={"encoding": None})
        rows = read_csv(db, asked._replace(path=copy, plain=copy, file=file))
        lines = rows.lines()
    except Problems as problems:
        raise Problems([problem._replace(file=str(asked.path)) for problem in problems.problems]) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    missing = [problem._replace(file=str(asked.path)) for problem in rows.missing]
    return rows._replace(lines=lambda: lines, missing=missing)


@contextmanager
def _texts(path: Path, encoding: str, errors: str = "strict", newline: str | None = "") -> Iterator[io.TextIOWrapper]:
    """Open a text, compressed or not."""
    with opened(path) as reader:
        yield io.TextIOWrapper(reader, encoding, errors, newline)
