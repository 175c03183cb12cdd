"""The rows of a source, of all its files: some at a time, or as a whole. Broken rows are rejected; broken files are errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from basis.problems import Problem, ProblemList, Problems
from streaming.features.arrow_columns import as_lists, texts_of
from streaming.source.files.contents import Broken, Contents, shown
from streaming.source.files.find import Folder, FoundFile, find
from streaming.source.files.open import open_found
from streaming.source.rows.raw import equal
from streaming.source.rows.rejects import Findings, Reject, as_problems
from streaming.source.rows.rows import Rows
from streaming.source.settings import File

_VALUES = 20
"""How many values of a column are named where none of them is wanted."""


class Walk:
    """The rows of a source that its config wants, with those of ``columns`` that it has, some at a time, in the order of its files.

    ``findings``, which sources may share, and ``missing`` are whole when all were walked. ``memory`` bounds, in bytes, what readers
    keep, and ``most`` how many rows are read.
    """

    def __init__(
        self,
        folder: Folder,
        file: File,
        columns: Sequence[str],
        findings: Findings,
        memory: int | None = None,
        most: int | None = None,
    ) -> None:
        self.name = str(folder / file.file)
        self.findings = findings
        self.missing: list[Problem] = []
        self._folder = folder
        self._file = file
        self._columns = list(dict.fromkeys([*columns, *([file.when.column] if file.when else [])]))
        self._memory = memory
        self._most = most
        self._present: set[str] = set()
        self._is_looked_for = False
        self._failed = False
        self._values: list[str] | None = None
        """Values of the first rows in the column that says which are wanted."""
        self._wanted = 0

    def take(self, use: Callable[[Rows], None]) -> None:
        """Call ``use`` with all rows, some at a time.

        Raises:
            Problems: what it raises, or columns are missing, or a file as a whole cannot be used.
        """
        problems = ProblemList()
        with problems.collect():
            for rows in self.rows():
                with problems.collect():
                    use(rows)
                self._failed = bool(problems.found or self.missing)
        problems.found += [*self.missing, *self.findings.suspected(self.name)]
        problems.raise_any()

    def rows(self) -> Iterator[Rows]:
        """Yield the rows, at least one piece of each file. What is in ``missing`` is not raised.

        Raises:
            Problems: its files as a whole are unusable; all of them were tried.
            Unreadable: the operating system fails to read one.
        """
        problems = ProblemList()
        first = self.findings.rows
        files = _filled(find(self._folder, self._file))
        for number, found in enumerate(files):
            most = None if self._most is None else self._most - (self.findings.rows - first)
            if most == 0:
                break
            with problems.collect():
                for table in self._tables(found, files[number + 1 :], most):
                    at = pa.array(np.arange(self.findings.rows, self.findings.rows + table.num_rows))
                    self.findings.rows += table.num_rows
                    if self._failed:
                        break
                    if not problems.found:
                        rows = Rows(self.name, table, at, self.findings, self._file.decimal, self.missing)
                        self._choose(rows)
                        yield rows
        problems.raise_any()
        if self.findings.rows == first and self._columns and not self.missing:
            told = as_problems(self.findings.rejects)
            raise Problems([Problem(self.name, "rows", "0", "allowed: a file with rows"), *told])
        if self._values is not None and not self._wanted:
            assert self._file.when is not None
            place, value = f"column {self._file.when.column}", f"never {' or '.join(map(repr, self._file.when.equals))}"
            raise Problems([Problem(self.name, place, value, f"allowed: {', '.join(self._values)}")])

    def _choose(self, rows: Rows) -> None:
        """Keep the rows that the config wants."""
        when = self._file.when
        if when is None or when.column not in rows.table.column_names:
            return
        wanted = pa.array(equal(rows, when))
        if self._values is None:
            self._values = rows.column(when.column).unique().drop_null()[:_VALUES].cast(pa.string()).to_pylist()
        rows.keep(wanted)
        self._wanted += rows.table.num_rows

    def _tables(self, found: FoundFile, others: Sequence[FoundFile], most: int | None) -> Iterator[pa.Table]:
        with open_found(found, self._file, self._columns, most, self._memory) as contents:
            self.findings.add_file(found.name, self.findings.rows, contents.lines)
            lacking = self._look_at(contents)
            is_first, self._is_looked_for = not self._is_looked_for, True
            if is_first:
                self._look_for(lacking, others)
            elsewhere = [column for column in self._columns if column in lacking & self._present]
            told = {f"column {column}" for column in (elsewhere if is_first else lacking)}
            self.missing += [each for each in contents.missing if each.place not in told]
            if self._failed:  # of the other files only what they lack is told
                return
            for table in contents.tables:
                yield _without(_with_nulls(table, elsewhere), self._file.missing)
            for each in contents.broken():
                self.findings.add(_refused(found.name, each))

    def _look_for(self, columns: set[str], others: Sequence[FoundFile]) -> None:
        """Find out, once, which columns later files have: what only some have is missing in the rows of the others, what none has
        is missing in the source, which the first file tells."""
        for other in others:
            if columns <= self._present:
                return
            with (
                suppress(Problems),  # told when it is read
                open_found(other, self._file, self._columns, memory=self._memory) as contents,
            ):
                self._look_at(contents)

    def _look_at(self, contents: Contents) -> set[str]:
        """Note which columns a file has, and return those that it does not have."""
        lacking = {each.place.removeprefix("column ") for each in contents.missing if each.value == "missing"}
        self._present |= set(self._columns) - lacking
        return lacking


def _filled(found: list[FoundFile]) -> list[FoundFile]:
    """Return the files that hold anything; all if none does. Writers leave empty parts behind."""
    return [each for each in found if each.size_bytes != 0] or found


def _with_nulls(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    """Return a table with columns that only other files have. Some writers leave out what is null in all rows of a file."""
    for column in columns:
        table = table.append_column(column, pa.nulls(table.num_rows))
    return table


def _without(table: pa.Table, texts: Sequence[str]) -> pa.Table:
    """Return a table without values that are some texts."""
    for at, column in enumerate(table.columns if texts else []):
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            found = pc.is_in(column, pa.array(texts, column.type))
            table = table.set_column(at, table.column_names[at], pc.if_else(found, None, column))
    return table


def _refused(name: str, broken: Broken) -> Reject:
    return Reject(name, f"line {broken.line}", shown(broken.text), "malformed", broken.detail)


def read(folder: Folder, file: File, columns: Sequence[str], most: int | None = None) -> Rows:
    """Return the rows of a source with those of ``columns`` that it has, at most ``most`` rows where given.

    Raises:
        Problems: its files as a whole are unusable.
        Unreadable: the operating system fails to read one.
    """
    walk = Walk(folder, file, columns, Findings(whole=True), most=most)
    parts = list(walk.rows())
    table = _joined(walk.name, [part.table for part in parts], {problem.place for problem in walk.missing})
    at = pa.concat_arrays([part.at for part in parts])
    return Rows(walk.name, table, at, walk.findings, file.decimal, walk.missing)


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
        if len(kinds) > 1:
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
