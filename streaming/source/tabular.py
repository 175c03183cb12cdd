"""Logged files as tables of rows that know their place. Broken rows are rejected; broken files are errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from basis.problems import Problem, ProblemList, Problems
from streaming.features.arrow_columns import as_lists, as_numbers, texts_of
from streaming.features.columns import Ids
from streaming.source.duck import shown
from streaming.source.fetched import read_found
from streaming.source.files import Folder, find
from streaming.source.rows import Rows
from streaming.source.settings import File

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


class _Part(NamedTuple):
    """One file of several: its name, its first row among all, and the lines of its rows, which may have to be looked up."""

    name: str
    first: int
    rows: Rows


@dataclass
class RowFile:
    """Rows read from one file or several. ``at`` int64 says which of all rows each is.

    ``missing`` has the columns that were asked for and are not there.
    """

    name: str
    table: pa.Table
    at: pa.Array
    parts: list[_Part]
    decimal: str = "."
    rejects: list[Reject] = field(default_factory=list)
    missing: list[Problem] = field(default_factory=list)
    _told: set[Reject] = field(default_factory=set)
    _lines: dict[int, Ids] = field(default_factory=dict)

    def column(self, name: str) -> pa.Array:
        """Return a column; an empty `Problems` if it is missing, which ``missing`` already reports."""
        if name not in self.table.column_names:
            raise Problems([])
        return self.table.column(name).combine_chunks()

    def place(self, row: int) -> tuple[str, str]:
        """Return the file and the line of a row of the table."""
        at = self.at[row].as_py()
        number = int(np.searchsorted([part.first for part in self.parts], at, side="right")) - 1
        part = self.parts[number]
        if number not in self._lines:
            self._lines[number] = part.rows.lines()
        return part.name, f"line {self._lines[number][at - part.first]}"

    def reject(
        self, broken: pa.Array, column: str, values: pa.Array | pa.ChunkedArray, reason: str, detail: str
    ) -> None:
        """Reject the rows where ``broken`` is true, for their value in ``column``."""
        rows = pc.indices_nonzero(broken)
        for row, value in zip(rows.to_pylist(), as_shown(pc.take(values, rows)), strict=True):
            file, line = self.place(row)
            found = Reject(file, f"{line}, column {column}", shown(value), reason, detail)
            if found not in self._told:
                self._told.add(found)
                self.rejects.append(found)

    def reject_broken(self, broken: pa.Array | None, column: str, values: pa.Array, detail: str, allowed: str) -> None:
        """Reject the rows where ``broken`` is true; `Problems` if those are all rows with a value."""
        if broken is None or not pc.any(broken).as_py():
            return
        if pc.sum(broken).as_py() == len(values) - values.null_count:
            text = f"values such as {shown(as_shown(values.drop_null()[:1])[0])}"
            raise Problems([Problem(self.name, f"column {column}", text, allowed)])
        self.reject(broken, column, values, "malformed", detail)

    def keep(self, mask: pa.Array) -> None:
        """Keep only the rows where ``mask`` is true."""
        self.table, self.at = self.table.filter(mask), self.at.filter(mask)

    def take(self, rows: pa.Array) -> None:
        """Keep these rows, in this order."""
        self.table, self.at = self.table.take(rows), self.at.take(rows)


def read(folder: Folder, file: File, columns: Sequence[str], most: int | None = None) -> RowFile:
    """Return the rows of a source with those of ``columns`` that it has, at most ``most`` rows where given.

    Raises:
        Problems: its files as a whole are unusable.
        Unreadable: the operating system fails to read one.
    """
    parts: list[_Part] = []
    rejects: list[Reject] = []
    problems = ProblemList()
    first = 0
    for found in find(folder, file):
        if most is not None and first >= most:
            break
        with problems.collect():
            rows = read_found(found, file, list(dict.fromkeys(columns)), None if most is None else most - first)
            name = found.name
            parts.append(_Part(name, first, rows))
            first += rows.table.num_rows
            rejects += [Reject(name, f"line {at}", shown(text), "malformed", why) for at, text, why in rows.broken]
    problems.raise_any()
    path = str(folder / file.file)
    missing = [problem for part in parts for problem in part.rows.missing]
    if not first and columns and not missing:
        raise Problems([Problem(path, "rows", "0", "allowed: a file with rows"), *as_problems(rejects)])
    table = _joined(path, [part.rows.table for part in parts], {problem.place for problem in missing})
    return RowFile(path, table, pa.array(np.arange(first)), parts, file.decimal, rejects, missing)


def _joined(name: str, tables: Sequence[pa.Table], missing: set[str]) -> pa.Table:
    """Return the rows of all tables, with the columns that all have. Where one column has several types, it has texts: a value's
    meaning is that of its text."""
    if len(tables) == 1:
        return tables[0]
    made = {}
    for column in tables[0].column_names:
        if f"column {column}" in missing:
            continue
        chunks = [chunk for table in tables for chunk in table.column(column).chunks]
        kinds = {chunk.type for chunk in chunks if not pa.types.is_null(chunk.type)}
        if len(kinds) > 1 or any(map(pa.types.is_decimal, kinds)):
            try:
                chunks = [_as_texts(chunk, any(map(pa.types.is_nested, kinds))) for chunk in chunks]
            except (pa.ArrowException, TypeError):
                told = " and ".join(sorted(map(str, kinds)))
                raise Problems([Problem(name, f"column {column}", told, "allowed: one type in all files")]) from None
            kinds = {chunk.type for chunk in chunks}
        kind = kinds.pop() if kinds else pa.null()
        made[column] = pa.chunked_array([chunk.cast(kind) for chunk in chunks], kind)
    return pa.table(made)


def _as_texts(values: pa.Array, in_lists: bool) -> pa.Array:
    if not in_lists:
        return texts_of(values)
    if pa.types.is_null(values.type):
        return values.cast(pa.list_(pa.string()))
    lists = as_lists(values)
    lengths = pc.list_value_length(lists)
    ends = np.cumsum(lengths.fill_null(0).to_numpy(zero_copy_only=False), dtype=np.int32)
    offsets = pa.array(np.concatenate((np.zeros(1, np.int32), ends)), mask=np.append(lengths.is_null(), False))
    return pa.ListArray.from_arrays(offsets, texts_of(lists.flatten()))


def numbers(rows: RowFile, column: str) -> pa.Array:
    """Return a column as float64, null where missing. Rows with anything but a number are rejected; `Problems` if all are."""
    values = rows.column(column)
    read = values
    if rows.decimal != "." and (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        # A point in such a number parts thousands, which no number may have.
        read = pc.replace_substring(pc.replace_substring(values, ".", "?"), rows.decimal, ".")
    try:
        found, broken = as_numbers(read)
    except TypeError as error:
        raise Problems([Problem(rows.name, f"column {column}", str(error), "allowed: numbers")]) from None
    rows.reject_broken(broken, column, values, "not a number", "allowed: numbers")
    return found


def as_shown(values: pa.Array | pa.ChunkedArray) -> list[Any]:
    """Return values to show in messages; times as texts, since Python's types cannot hold all of Arrow's times."""
    found: list[Any] = (values.cast(pa.string()) if pa.types.is_temporal(values.type) else values).to_pylist()
    return found
