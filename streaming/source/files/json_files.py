"""Reads JSON lines by DuckDB: columns of numbers where one type holds all their values, else of texts, or of lists of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from enum import IntFlag
from pathlib import Path
from typing import NamedTuple

import duckdb
import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from basis.decoding import why
from basis.problems import Problem, ProblemList, Problems
from streaming.features.columns import Ids
from streaming.source.files.contents import Broken, Contents, ToRead, changed, opened, shown, usable_columns
from streaming.source.files.duck import limit, name, quoted, source, streamed

_TOLD = 100


def read_json_lines(db: duckdb.DuckDBPyConnection, asked: ToRead) -> Contents:
    """Read lines of one object each."""
    path, most = asked.path, asked.most
    options = "format = 'newline_delimited', ignore_errors = true, hive_partitioning = false"
    objects = f"read_json_objects({source(asked.plain)}, {options})"
    columns = _keys(db, f"{objects} {limit(most)}") if asked.columns is None else asked.columns
    structs = _apart(columns)
    _take(db, "json", f"{objects} {limit(most)}", structs)
    sets = db.sql("select distinct json_keys(json) from lines where whole").fetchall()  # seldom more than a few
    if any(len(set(keys)) < len(keys) for (keys,) in sets):
        _take(db, _LAST_FIRST, "lines", structs)
    whole = db.sql("select coalesce(whole, false) as whole from lines").to_arrow_table().column(0)
    good = np.asarray(whole.to_numpy(), np.bool_)
    broken = [] if good.all() else _broken_lines(path, good, {})
    if not len(good) and asked.columns is not None:  # such as an empty file that is compressed
        return Contents(
            iter([pa.table({column: pa.nulls(0) for column in columns})]), lambda: np.zeros(0, np.int64), list, []
        )
    if not good.any():
        told = [Problem(str(path), f"line {each.line}", shown(each.text), each.detail) for each in broken[:_TOLD]]
        raise Problems([Problem(str(path), "rows", "0", "allowed: a file with rows"), *told])
    values = {key: _value(key, f"part{at}.{name(key)}") for at, keys in enumerate(structs) for key in keys}
    kinds = _kinds_of(db, "lines where whole", values)
    if asked.columns is None:
        columns = _with_inner(db, columns, values, kinds)
    shapes: dict[str, _Shape] = {}
    problems = ProblemList()
    usable: dict[str, str] = {}
    missing: list[Problem] = []
    for column in columns:
        with problems.collect():
            if not kinds[column] and not _is_there(db, column):
                has = db.sql("select distinct unnest(json_keys(json)) from lines where whole limit 1000").fetchall()
                missing += usable_columns(path, [key for (key,) in has], [column])[1]
            else:
                shapes[column] = _shape_of(db, path, column, values[column], kinds[column])
                usable[column] = _column(db, values[column], kinds[column], shapes[column])
    if asked.columns is None:
        missing += problems.found
    else:
        problems.raise_any()
    odd = {column: shape for column, shape in shapes.items() if shape.misfits}
    details = _misfits(db, odd)
    if details:
        good[list(details)] = False
        broken = _broken_lines(path, good, details)
    query = ", ".join(f"{value} as c{at}" for at, value in enumerate(usable.values())) or "0 as nothing"
    where = " and ".join(["whole", *(f"coalesce({shape.sql} = {quoted(shape.most)}, true)" for shape in odd.values())])
    tables = streamed(db, f"select {query} from lines where {where}", list(usable))

    def find_lines() -> Ids:
        numbers = np.array([number for number, _ in _filled_lines(path)][: len(good)], np.int64)
        return numbers[good[: len(numbers)]]  # of a file that grew, the first rows

    return Contents(tables, find_lines, lambda: broken, missing)


_PAIRS = "list_transform(list_zip(json_keys(json), json_extract(json, '$.*')), lambda each: to_json(each[1]) || ':' || each[2])"
_LAST_FIRST = f"""case when len(json_keys(json)) = list_unique(json_keys(json)) then json
    else json('{{' || array_to_string(list_reverse({_PAIRS}), ',') || '}}') end"""
"""An object that has a key twice, from its end: the last value counts, as in records, and DuckDB takes the first."""


def _take(db: duckdb.DuckDBPyConnection, value: str, lines: str, structs: Sequence[Sequence[str]]) -> None:
    """Make the table of lines, with their columns, out of other lines."""
    parts = [
        f"from_json(json, {quoted(json.dumps(dict.fromkeys(keys, 'JSON')))}) as part{at}"
        for at, keys in enumerate(structs)
    ]
    query = ", ".join(["json_type(json) = 'OBJECT' as whole", "json", *parts])
    db.execute(f"create or replace temp table lines as select {query} from (select {value} as json from {lines})")


def _apart(columns: Sequence[str]) -> list[list[str]]:
    """Return the columns in groups within which no two names differ in case only, which DuckDB does not tell apart."""
    groups: list[list[str]] = []
    for column in columns:
        for group in groups:
            if column.lower() not in {each.lower() for each in group}:
                group.append(column)
                break
        else:
            groups.append([column])
    return groups


def _value(key: str, own: str) -> str:
    """Return a key's value in a query: ``item.id`` is that of ``id`` in the object ``item``, unless a key is called so."""
    return f"coalesce({own}, json_extract(json, {quoted(_path(key))}))" if "." in key and '"' not in key else own


def _path(key: str) -> str:
    return "$." + ".".join(f'"{part}"' for part in key.split("."))


def _with_inner(
    db: duckdb.DuckDBPyConnection, columns: Sequence[str], values: dict[str, str], kinds: dict[str, _Kind]
) -> list[str]:
    """Return columns with the keys of their objects in place of these, and add the ``values`` and ``kinds`` of these keys."""
    found: list[str] = []
    for column in columns:
        is_object = kinds[column] == _Kind.OBJECT and not set(column) & {'"'}
        keys = _keys(db, "lines where whole", _path(column)) if is_object else []
        inner = [f"{column}.{key}" for key in keys if not set(key) & {'"', "."}]
        if inner and len(inner) <= _MOST_INNER:
            own = {key: _value(key, "null") for key in inner}
            values |= own
            kinds |= _kinds_of(db, "lines where whole", own)
            found += _with_inner(db, inner, values, kinds)
        else:
            found.append(column)
    return found


_MOST_INNER = 100
"""Objects of more keys hold data in them rather than columns."""


def _keys(db: duckdb.DuckDBPyConnection, objects: str, path: str = "$") -> list[str]:
    """Return the keys of JSON objects, or of those in them at a path, in the order in which they come."""
    keys = f"json_keys(json, {quoted(path)})"
    numbered = f"select {keys} as keys, row_number() over () as row from (select json from {objects})"
    found = db.sql(f"select keys from ({numbered}) group by keys order by min(row)").fetchall()
    return list(dict.fromkeys(key for (keys,) in found for key in keys or []))


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
    return {key: _Kind(kind or 0) for key, kind in zip(values, found, strict=True)}


def _is_there(db: duckdb.DuckDBPyConnection, column: str) -> bool:
    """Whether any line has a column, though with nothing but null."""
    query = f"select bool_or(list_contains(json_keys(json), {quoted(column)})) from lines where whole"
    return bool(db.sql(query).fetchall()[0][0])


_OBJECT, _NESTED, _LIST, _VALUE = "an object", "a list or an object within a list", "a list", "a single value"


class _Shape(NamedTuple):
    """What most values of a column are, and as what in a query they are it; whether some are not."""

    most: str = _VALUE
    sql: str = ""
    misfits: bool = False


def _shape_of(db: duckdb.DuckDBPyConnection, path: Path, column: str, value: str, kinds: _Kind) -> _Shape:
    """Return the shape of a column: rows of another one are refused."""
    if not kinds & (_Kind.ARRAY | _Kind.OBJECT):
        return _Shape()
    nested = f"list_filter(json_extract({value}, '$[*]'), lambda each: json_type(each) in ('ARRAY', 'OBJECT'))"
    sql = f"""case coalesce(json_type({value}), 'NULL') when 'NULL' then null when 'OBJECT' then {quoted(_OBJECT)}
        when 'ARRAY' then case when len({nested}) > 0 then {quoted(_NESTED)} else {quoted(_LIST)} end
        else {quoted(_VALUE)} end"""
    counts = db.sql(f"select {sql}, count(*) from lines where whole group by all order by all").fetchall()
    found = {shape: count for shape, count in counts if shape is not None}
    most = max(found, key=found.__getitem__)
    if most in (_OBJECT, _NESTED):
        allowed = "allowed: numbers, texts, or lists of them"
        if most == _OBJECT:
            allowed += f"; {column}.KEY is what it has in KEY"
        raise Problems([Problem(str(path), f"column {column}", most, allowed)])
    return _Shape(most, sql, len(found) > 1)


def _misfits(db: duckdb.DuckDBPyConnection, odd: dict[str, _Shape]) -> dict[int, str]:
    """Return what is wrong with rows that have another shape in a column than most, by their places among all lines."""
    found: dict[int, str] = {}
    for column, (most, sql, _) in odd.items():
        query = f"select case when whole then nullif({sql}, {quoted(most)}) end as shape from lines"
        shapes = db.sql(query).to_arrow_table().column(0).combine_chunks()
        at = pc.indices_nonzero(shapes.is_valid())
        for row, shape in zip(at.to_pylist(), shapes.take(at).to_pylist(), strict=True):
            found.setdefault(row, f"column {column}: {shape}; allowed: {most}, as in most rows")
    return found


def _column(db: duckdb.DuckDBPyConnection, value: str, kinds: _Kind, shape: _Shape) -> str:
    """Return a column in a query: numbers, or lists of them, where one type holds all its values, else texts."""
    if not kinds:
        return "null"
    if shape.most != _LIST:
        return _as(kinds & ~(_Kind.ARRAY | _Kind.OBJECT), value)
    lists = f"lines where whole and {shape.sql} = {quoted(_LIST)}"
    within = _kinds_of(db, f"(select unnest(json_extract({value}, '$[*]')) as value from {lists})", {"": "value"})[""]
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


def _broken_lines(path: Path, good: npt.NDArray[np.bool_], details: Mapping[int, str]) -> list[Broken]:
    """Return the lines that hold no JSON object, and those with ``details`` of what is wrong, by their places among all lines."""
    found = []
    decoder = msgspec.json.Decoder(dict)
    for at, ((number, line), is_good) in enumerate(zip(_filled_lines(path), good.tolist(), strict=False)):
        if (detail := details.get(at)) is None and not is_good:
            try:
                decoder.decode(line)
                detail = "no JSON that can be read"
            except Exception as error:
                detail = why(error)
        if detail is not None:
            found.append(Broken(number, line.decode("utf-8", "replace").rstrip("\r\n"), detail))
    if len(found) < np.count_nonzero(~good):
        raise changed(str(path))
    return found


def _filled_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file that are not blank, with their numbers."""
    with opened(path) as lines:
        yield from ((number, line) for number, line in enumerate(lines, 1) if line.strip())
