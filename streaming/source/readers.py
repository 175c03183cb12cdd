"""Reads one logged file by DuckDB: Parquet in its own types, CSV as texts, JSON lines as numbers, texts and lists of them.

Readers only read. What a text means is decided where columns become features, by one code for all entrances.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntFlag
from pathlib import Path
from typing import NamedTuple

import duckdb
import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet

from basis.decoding import why
from basis.problems import Problem, ProblemList, Problems, Unreadable
from streaming.features.columns import Ids
from streaming.source.files import FoundFile, Kind
from streaming.source.settings import File

_UTF8 = "utf-8-sig"
_SHOWN = 60
_TOLD = 100
_MIXED_LINE_ENDS = "state machine reached an invalid state"


class Broken(NamedTuple):
    """A row that its reader cannot take apart: the line it begins at, its text and what is wrong with it."""

    line: int
    text: str
    detail: str


class Rows(NamedTuple):
    """What a file holds: the rows that can be read, with those of the columns asked for that it has.

    ``lines`` returns the line that each row begins at, int64 [n], counted from 1 (Parquet: the row). It may read the file again.
    """

    table: pa.Table
    lines: Callable[[], Ids]
    broken: list[Broken]
    missing: list[Problem]


def read_file(found: FoundFile, file: File, columns: Sequence[str] | None, most: int | None = None) -> Rows:
    """Read the columns of one file; where ``columns`` is None all that it has, with those that cannot be used in ``missing``. Of
    its rows the first ``most`` where given; lines of broken ones are then not looked up.

    Raises:
        Problems: the file as a whole is unusable.
        Unreadable: the operating system fails to read it.
    """
    path, kind = found.path, found.kind
    own = None if columns is None else [name for name in columns if name not in found.partitions]
    try:
        path.open("rb").close()  # so that a file without read permission is told like one whose folder has none
        if path.stat().st_size == 0:
            raise Problems([Problem(str(path), "file", "0 bytes", "allowed: a file with rows")])
        with _connection() as db:
            rows = _READERS[kind](db, path, file, own, most)
    except (OSError, duckdb.IOException) as error:
        said = error.strerror if isinstance(error, OSError) else None
        raise Unreadable([Problem(str(path), "file", said or why(error), "allowed: a file that can be read")]) from None
    except (duckdb.Error, pa.ArrowException, UnicodeError, EOFError, csv.Error) as error:
        raise Problems([Problem(str(path), "file", why(error), _WHOLE[kind])]) from None
    table = rows.table.select([name for name in rows.table.column_names if name not in found.partitions])
    for name, value in found.partitions.items():
        if columns is None or name in columns:
            table = table.append_column(name, pa.repeat(pa.scalar(value, pa.string()), table.num_rows))
    return rows._replace(table=table)


_WHOLE: dict[Kind, str] = {
    "parquet": "allowed: a whole Parquet file",
    "csv": "allowed: CSV with a header line, in UTF-8 or with its encoding",
    "jsonl": "allowed: one JSON object a line, in UTF-8",
}


@contextmanager
def _connection() -> Iterator[duckdb.DuckDBPyConnection]:
    """A database in memory that loads nothing from elsewhere; times with a zone come in UTC."""
    with tempfile.TemporaryDirectory(prefix="minutely-") as folder:
        settings = {"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}
        db = duckdb.connect(config={**settings, "temp_directory": folder})
        try:
            db.execute("set TimeZone = 'UTC'")
            yield db
        finally:
            db.close()


def _text(value: str) -> str:
    """A text in a query."""
    return "'" + value.replace("'", "''") + "'"


def _name(value: str) -> str:
    """A name in a query."""
    return '"' + value.replace('"', '""') + '"'


def _source(path: Path) -> str:
    """A file in a query, whose name is no pattern."""
    return _text("".join(f"[{each}]" if each in "*?[" else each for each in str(path)))


def _select(columns: Sequence[str]) -> str:
    return ", ".join(map(_name, columns)) or "0 as nothing"


def _limit(most: int | None) -> str:
    return "" if most is None else f"limit {most}"


def _usable(path: Path, present: Sequence[str], wanted: Sequence[str] | None) -> tuple[list[str], list[Problem]]:
    """Return the columns that a file has once, and problems with the others."""
    wanted = list(dict.fromkeys(present)) if wanted is None else wanted
    has = "the file has: " + ", ".join(present[:_SHOWN])
    missing = [
        Problem(str(path), f"column {column}", "missing", has)
        if column not in present
        else Problem(str(path), f"column {column}", "is given twice", "allowed: once")
        for column in wanted
        if present.count(column) != 1
    ]
    return [column for column in wanted if present.count(column) == 1], missing


_Columns = list[str] | None


def _parquet(db: duckdb.DuckDBPyConnection, path: Path, _file: File, columns: _Columns, most: int | None) -> Rows:
    with pa.parquet.ParquetFile(path) as file:
        present = file.schema_arrow.names
    usable, missing = _usable(path, present, columns)
    table = db.sql(f"select {_select(usable)} from read_parquet({_source(path)}) {_limit(most)}").to_arrow_table()
    return Rows(table.select(usable), lambda: np.arange(1, table.num_rows + 1), [], missing)


def _csv(db: duckdb.DuckDBPyConnection, path: Path, file: File, columns: _Columns, most: int | None) -> Rows:
    if file.encoding is not None:
        return _recoded(db, path, file, columns, most)
    with _opened(path, _UTF8, errors="replace") as text:
        header = next(csv.reader(text, delimiter=file.delimiter), [])
    present = file.columns or header
    usable, missing = _usable(path, present, columns)
    inner = {name if present.count(name) == 1 else f"{name} {at}": "VARCHAR" for at, name in enumerate(present)}
    query = f"""select {_select(usable)} from read_csv({_source(path)}, auto_detect = false, header = {file.columns is None},
        columns = {{{", ".join(f"{_text(name)}: {_text(kind)}" for name, kind in inner.items())}}},
        delim = {_text(file.delimiter)}, quote = '"', escape = '"', nullstr = '', allow_quoted_nulls = false,
        store_rejects = true) {_limit(most)}"""
    try:
        table = db.sql(query).to_arrow_table()
    except duckdb.InvalidInputException as error:
        if _MIXED_LINE_ENDS not in str(error):
            raise
        return _recoded(db, path, file, columns, most)
    refused = db.sql("select line, error_type, error_message, csv_line from reject_errors order by all").fetchall()
    details = {line: (text, _why_refused(kind, said)) for line, kind, said, text in refused if text.strip()}
    blank = {line for line, _, _, _ in refused} - set(details)
    lines: dict[int, int] = {}

    def find_lines() -> Ids:
        good, begins = _csv_lines(path, file, {*details, *blank})
        lines.update(begins)
        return good if len(good) == table.num_rows else np.arange(1, table.num_rows + 1)

    if details and most is None:
        find_lines()
    broken = [Broken(lines.get(number, number), text, detail) for number, (text, detail) in details.items()]
    return Rows(table.select(usable), find_lines, broken, missing)


def _why_refused(kind: str, said: str) -> str:
    """What is wrong with a row of a CSV file, in our words where DuckDB's are about its options."""
    match kind:
        case "MISSING COLUMNS" | "TOO MANY COLUMNS":
            expected, found = (part.split()[0] for part in said.partition("Columns: ")[2].split("Found: "))
            return f"{found} columns, {expected} expected"
        case "INVALID ENCODING":
            return "not in UTF-8; encoding: names another, such as latin-1"
        case "UNQUOTED VALUE":
            return "a quote without its end"
    return why(ValueError(said))


def _csv_lines(path: Path, file: File, broken: set[int]) -> tuple[Ids, dict[int, int]]:
    """Return the line that each good row begins at, and those of ``broken`` ones, which are given as DuckDB counts: by rows and
    blank lines, whatever line breaks are in their quotes."""
    good: list[int] = []
    begins: dict[int, int] = {}
    limit = csv.field_size_limit(sys.maxsize)
    try:
        with _opened(path, _UTF8, errors="replace") as text:
            reader = csv.reader(text, delimiter=file.delimiter)
            begin = 1
            for number, row in enumerate(reader, 1):
                if number in broken:
                    begins[number] = begin
                elif row and (number > 1 or file.columns is not None):
                    good.append(begin)
                begin = reader.line_num + 1
    finally:
        csv.field_size_limit(limit)
    return np.array(good, np.int64), begins


def _recoded(db: duckdb.DuckDBPyConnection, path: Path, file: File, columns: _Columns, most: int | None) -> Rows:
    """Read a copy in UTF-8 with one kind of line ends, which is what DuckDB reads."""
    folder = tempfile.mkdtemp(prefix="minutely-")
    try:
        copy = Path(folder, "utf-8.csv")
        with _opened(path, file.encoding or _UTF8, newline=None) as text, copy.open("w", encoding="utf-8") as out:
            shutil.copyfileobj(text, out, 1 << 20)
        rows = _csv(db, copy, file.model_copy(update={"encoding": None}), columns, most)
        lines = rows.lines()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    missing = [problem._replace(file=str(path)) for problem in rows.missing]
    return rows._replace(lines=lambda: lines, missing=missing)


@contextmanager
def _opened(path: Path, encoding: str, errors: str = "strict", newline: str | None = "") -> Iterator[io.TextIOWrapper]:
    """Open a text, compressed or not."""
    with _bytes(path) as reader:
        yield io.TextIOWrapper(reader, encoding, errors, newline)


@contextmanager
def _bytes(path: Path) -> Iterator[io.BufferedReader]:
    with pa.input_stream(str(path), compression="detect") as raw:
        yield io.BufferedReader(raw, 1 << 20)


def _json_lines(db: duckdb.DuckDBPyConnection, path: Path, _file: File, given: _Columns, most: int | None) -> Rows:
    objects = f"read_json_objects({_source(path)}, format = 'newline_delimited', ignore_errors = true)"
    columns = _keys(db, f"{objects} {_limit(most)}") if given is None else given
    wanted = _text(json.dumps(dict.fromkeys(columns, "JSON")))
    db.execute(
        f"""create temp table lines as
        select json_type(json) = 'OBJECT' as whole, json, {f"from_json(json, {wanted})" if columns else "null"} as found
        from {objects} {_limit(most)}"""
    )
    whole = db.sql("select coalesce(whole, false) as whole from lines").to_arrow_table().column(0)
    good = np.asarray(whole.to_numpy(), np.bool_)
    broken = [] if good.all() else _broken_lines(path, good)
    if not good.any():
        told = [Problem(str(path), f"line {each.line}", shown(each.text), each.detail) for each in broken[:_TOLD]]
        raise Problems([Problem(str(path), "rows", "0", "allowed: a file with rows"), *told])
    kinds = _kinds_of(db, "lines where whole", {name: f"found.{_name(name)}" for name in columns})
    problems = ProblemList()
    usable: dict[str, str] = {}
    missing: list[Problem] = []
    for column in columns:
        with problems.collect():
            if not kinds[column] and not _is_there(db, column):
                has = db.sql("select distinct unnest(json_keys(json)) from lines where whole limit 1000").fetchall()
                missing += _usable(path, [name for (name,) in has], [column])[1]
            else:
                usable[column] = _json_column(db, path, column, kinds[column])
    if given is None:
        missing += problems.found
    else:
        problems.raise_any()
    query = ", ".join(f"{value} as {_name(column)}" for column, value in usable.items()) or "0 as nothing"
    table = db.sql(f"select {query} from lines where whole").to_arrow_table().select(list(usable))

    def find_lines() -> Ids:
        return np.array([number for number, _ in _filled_lines(path)], np.int64)[good]

    return Rows(table, find_lines, broken, missing)


def _keys(db: duckdb.DuckDBPyConnection, objects: str) -> list[str]:
    """Return the keys of JSON objects, in the order in which they come."""
    numbered = f"select json_keys(json) as keys, row_number() over () as row from (select json from {objects})"
    found = db.sql(f"select keys from ({numbered}) group by keys order by min(row)").fetchall()
    return list(dict.fromkeys(name for (names,) in found for name in names or []))


class _Kind(IntFlag):
    """What values of a column are, in JSON's words; integers by the type that holds them."""

    INTEGER = 1
    BEYOND_FLOAT = 2
    BEYOND_INT64 = 4
    FLOAT = 8
    ARRAY = 16
    OBJECT = 32
    OTHER = 64


_INTEGERS = _Kind.INTEGER | _Kind.BEYOND_FLOAT
_MOST_EXACT = 15
"""Digits of an integer that a float holds, whichever they are."""


def _kinds_of(db: duckdb.DuckDBPyConnection, where: str, values: dict[str, str]) -> dict[str, _Kind]:
    """Return what the values of columns are; nothing for null."""
    if not values:
        return {}
    kinds = [
        f"""bit_or(case coalesce(json_type({value}), 'NULL') when 'NULL' then 0
        when 'DOUBLE' then {_Kind.FLOAT} when 'ARRAY' then {_Kind.ARRAY} when 'OBJECT' then {_Kind.OBJECT}
        when 'BIGINT' then {_INTEGERS} when 'UBIGINT' then
            case when length({value}) <= {_MOST_EXACT} then {_Kind.INTEGER}
            when length({value}) < 19 or length({value}) = 19 and {value} <= '{2**63 - 1}' then {_INTEGERS}
            else {_Kind.BEYOND_INT64} end
        else {_Kind.OTHER} end)"""
        for value in values.values()
    ]
    (found,) = db.sql(f"select {', '.join(kinds)} from {where}").fetchall()
    return {name: _Kind(kind or 0) for name, kind in zip(values, found, strict=True)}


def _is_there(db: duckdb.DuckDBPyConnection, column: str) -> bool:
    """Whether any line has a column, though with nothing but null."""
    query = f"select bool_or(list_contains(json_keys(json), {_text(column)})) from lines where whole"
    return bool(db.sql(query).fetchall()[0][0])


def _json_column(db: duckdb.DuckDBPyConnection, path: Path, column: str, kinds: _Kind) -> str:
    """Return a column in a query: numbers, or lists of them, where one type holds all its values, else texts."""
    value = f"found.{_name(column)}"
    place, allowed = f"column {column}", "allowed: numbers, texts, or lists of them"
    if _Kind.OBJECT in kinds:
        raise Problems([Problem(str(path), place, "an object", allowed)])
    if not kinds:
        return "null"
    if _Kind.ARRAY not in kinds:
        return _as(kinds, value)
    if kinds != _Kind.ARRAY:
        raise Problems([Problem(str(path), place, "lists beside single values", allowed)])
    items = f"(select unnest(json_extract({value}, '$[*]')) as value from lines where whole)"
    within = _kinds_of(db, items, {column: "value"})[column]
    if within & (_Kind.ARRAY | _Kind.OBJECT):
        raise Problems([Problem(str(path), place, "a list or an object within a list", allowed)])
    each = f"list_transform(json_extract({value}, '$[*]'), lambda each: {_as(within, 'each')})"
    return f"case when json_type({value}) = 'ARRAY' then {each} end"


def _as(kinds: _Kind, value: str) -> str:
    """A JSON value in a query, in the type that holds all of its column; NaN, which some writers leave, is missing."""
    if kinds and kinds in _INTEGERS:
        return f"try_cast({value} as bigint)"
    if kinds and kinds in _Kind.INTEGER | _Kind.FLOAT:
        return f"try_cast({value} as double)"
    number = f"cast(nullif(try_cast({value} as double), 'nan') as varchar)"
    return f"case json_type({value}) when 'DOUBLE' then {number} else {value} ->> '$' end"


def _broken_lines(path: Path, good: npt.NDArray[np.bool_]) -> list[Broken]:
    """Return the lines that hold no JSON object."""
    found = []
    decoder = msgspec.json.Decoder(dict)
    for (number, line), is_good in zip(_filled_lines(path), good.tolist(), strict=False):
        if not is_good:
            try:
                decoder.decode(line)
                detail = "no JSON that can be read"
            except Exception as error:
                detail = why(error)
            found.append(Broken(number, line.decode("utf-8", "replace").rstrip("\r\n"), detail))
    return found


def _filled_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file that are not blank, with their numbers."""
    with _bytes(path) as lines:
        yield from ((number, line) for number, line in enumerate(lines, 1) if line.strip())


def shown(value: object) -> str:
    """Return a value as messages show it."""
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


_READERS: dict[Kind, Callable[[duckdb.DuckDBPyConnection, Path, File, _Columns, int | None], Rows]] = {
    "parquet": _parquet,
    "csv": _csv,
    "jsonl": _json_lines,
}
