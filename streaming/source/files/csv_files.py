"""Reads a CSV file by DuckDB, all its columns as texts, and finds the line of each row."""

from __future__ import annotations

import csv
import io
import shutil
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import duckdb
import numpy as np
import pyarrow as pa

from basis.decoding import why
from basis.problems import Problem, Problems
from streaming.features.columns import Ids
from streaming.source.files.contents import Broken, Contents, ToRead, opened, usable_columns
from streaming.source.files.duck import limit, quoted, source, streamed
from streaming.source.settings import File

if TYPE_CHECKING:
    import _csv

_DELIMITERS = (",", ";", "\t", "|")
_UTF8 = "utf-8-sig"
_NO_END = "a quote without its end"
_WHOLE_QUOTES = "allowed: quotes around whole values, and those within them twice"
_MIXED_LINE_ENDS = "state machine reached an invalid state"


class _Text(NamedTuple):
    """How a file reads as text."""

    path: Path
    encoding: str = _UTF8
    errors: str = "replace"
    newline: str | None = ""

    @contextmanager
    def open(self) -> Iterator[io.TextIOWrapper]:
        """Open it, compressed or not."""
        with opened(self.path) as reader:
            yield io.TextIOWrapper(reader, self.encoding, self.errors, self.newline)


def read_csv(db: duckdb.DuckDBPyConnection, asked: ToRead) -> Contents:
    """Read a CSV file; an empty field is missing, an empty text in quotes is not."""
    if asked.file.encoding is not None:
        return _recoded(db, asked)
    return _Reading(db, asked, asked.plain, _Text(asked.path)).rows()


def _recoded(db: duckdb.DuckDBPyConnection, asked: ToRead) -> Contents:
    """Read a copy in UTF-8 with one kind of line ends, which is what DuckDB reads."""
    copy = asked.scratch / "utf-8.csv"
    text = _Text(asked.path, asked.file.encoding or _UTF8, "strict", None)
    with text._replace(path=asked.plain).open() as lines, copy.open("w", encoding="utf-8") as out:
        shutil.copyfileobj(lines, out, 1 << 20)
    return _Reading(db, asked, copy, text).rows()


class _Reading:
    """Reads ``plain``, a file or its copy in UTF-8, whose text counts the lines."""

    def __init__(self, db: duckdb.DuckDBPyConnection, asked: ToRead, plain: Path, text: _Text) -> None:
        self._db = db
        self._asked = asked
        self._plain = plain
        self._text = text
        self._size = asked.path.stat().st_size
        self._count = 0
        self._cut: Broken | None = None
        self._details: dict[int, tuple[str, str]] = {}
        self._blank: set[int] = set()
        self._rest: Contents | None = None
        file = asked.file
        with _Text(plain).open() as found:
            header = next(csv.reader(found, delimiter=file.delimiter), [])
        self._present = file.columns or header
        if not any(self._present):
            allowed = "allowed: the names of the columns, or `columns` in the config"
            raise Problems([Problem(str(asked.path), "line 1", "blank", allowed)])
        if len(self._present) == 1 and asked.columns and self._present[0] not in asked.columns:
            _look_for_delimiter(asked, plain)

    def rows(self) -> Contents:
        """Return what is read as the tables are taken."""
        usable, missing = usable_columns(self._asked.path, self._present, self._asked.columns)
        return Contents(self._tables(usable), self.lines, self.broken, missing)

    def _tables(self, usable: list[str]) -> Iterator[pa.Table]:
        file, most = self._asked.file, self._asked.most
        inner = [f"c{at}" for at in range(len(self._present))]  # names may differ in case only, which DuckDB does not
        wanted = ", ".join(inner[self._present.index(name)] for name in usable) or "0 as nothing"
        query = f"""select {wanted} from read_csv({source(self._plain)}, auto_detect = false,
            header = {file.columns is None}, columns = {{{", ".join(f"{name}: 'VARCHAR'" for name in inner)}}},
            hive_partitioning = false, delim = {quoted(file.delimiter)}, quote = '"', escape = '"', nullstr = '',
            allow_quoted_nulls = false, store_rejects = true, parallel = false) {limit(most)}"""
        try:
            for table in streamed(self._db, query, usable):
                self._count += table.num_rows
                yield table
        except duckdb.InvalidInputException as error:
            if _MIXED_LINE_ENDS not in str(error) or self._text.newline is None:
                raise
            yield from self._go_on(usable)
            return
        refused = self._db.sql("select line, error_type, error_message, csv_line from reject_errors order by all")
        for line, kind, said, text in refused.fetchall():
            if text.strip():
                self._details[line] = (text.lstrip("\r\n"), _why_refused(kind, said))
            else:
                self._blank.add(line)
        self._cut = self._left_out() if most is None else None

    def _left_out(self) -> Broken | None:
        """Return the last row if its quote has no end and DuckDB leaves it out, which it does not say.

        Raises:
            Problems: it leaves out others too, after quotes that it takes otherwise.
        """
        with self._text.open() as found:
            if not any('"' in chunk for chunk in iter(lambda: found.read(1 << 20), "")):
                return None
        file = self._asked.file
        rows, is_open = _counted(self._text, file, len(self._present))
        known = (file.columns is None) + self._count + len(self._details) + len(self._blank)
        if rows == known + 1 and is_open:
            return _last_row(self._text, file)
        if rows != known and self._asked.path.stat().st_size == self._size:
            raise Problems([Problem(str(self._asked.path), "rows", f"{known} of {rows} are read", _WHOLE_QUOTES)])
        return None

    def _go_on(self, usable: list[str]) -> Iterator[pa.Table]:
        """Read a copy with one kind of line ends, behind the rows that are read already."""
        done, self._rest = self._count, _recoded(self._db, self._asked)
        for table in self._rest.tables:
            yield table.slice(min(done, table.num_rows))
            done -= min(done, table.num_rows)

    def lines(self) -> Ids:
        """Return the line of each row."""
        if self._rest is not None:
            return self._rest.lines()
        good, _ = self._numbered()
        return good

    def broken(self) -> list[Broken]:
        """Return the rows that were refused."""
        if self._rest is not None:
            return self._rest.broken()
        begins = self._numbered()[1] if self._details and self._asked.most is None else {}
        found = [Broken(begins.get(number, number), *said) for number, said in self._details.items()]
        return found if self._cut is None else [*found, self._cut]

    def _numbered(self) -> tuple[Ids, dict[int, int]]:
        """Return the lines of good rows, and those of broken ones by their numbers."""
        broken = {*self._details, *self._blank}
        good, begins = _csv_lines(self._text, self._asked.file, broken, len(self._present))
        return (good if self._cut is None else good[good != self._cut.line]), begins


def _look_for_delimiter(asked: ToRead, plain: Path) -> None:
    """Raise `Problems` if a header of one column has columns that are asked for with another delimiter."""
    for other in _DELIMITERS:
        with _Text(plain).open() as found:
            columns = next(csv.reader(found, delimiter=other), [])
        if not set(columns).isdisjoint(asked.columns or ()):
            allowed = f"makes one column; allowed: {other!r}, which makes {len(columns)}: {', '.join(columns)}"
            raise Problems([Problem(str(asked.path), "delimiter", repr(asked.file.delimiter), allowed)])


def _rows(lines: Iterable[str], file: File) -> _csv.Reader:
    """Take rows apart as DuckDB does: a quote begins a value only at its start, but for blanks before it."""
    return csv.reader(lines, delimiter=file.delimiter, skipinitialspace=file.delimiter != " ")


def _counted(text: _Text, file: File, columns: int) -> tuple[int, bool]:
    """Return how many rows a file has, with its header, and whether it ends within a quote."""
    with text.open() as found, _any_field_size():
        rows = _rows(chain(found, [_BEHIND]), file)
        filled = rows if columns == 1 else filter(None, rows)  # of one column, a blank line is a row
        ((count, last),) = deque(enumerate(filled, 1), maxlen=1)
    is_open = last != [""]
    return (count if is_open else count - 1), is_open


_BEHIND = '""'
"""A line that is an empty row of its own behind a file, and a quote within an open one."""


def _last_row(text: _Text, file: File) -> Broken:
    """Return the last row of a file, whose quote has no end."""
    begin, begins_next = 1, 1
    with text.open() as found, _any_field_size():
        reader = _rows(found, file)
        for _ in reader:
            begin, begins_next = begins_next, reader.line_num + 1
    with text.open() as found:
        return Broken(begin, "".join(islice(found, begin - 1, None)), _NO_END)


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


def _csv_lines(text: _Text, file: File, broken: set[int], columns: int) -> tuple[Ids, dict[int, int]]:
    """Return the line that each good row begins at, and those of ``broken`` ones, which are given as DuckDB counts: by rows and
    blank lines, whatever line breaks are in their quotes. Of one column, a blank line is a row, whose value is missing."""
    good: list[int] = []
    begins: dict[int, int] = {}
    with text.open() as found, _any_field_size():
        reader = _rows(found, file)
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
