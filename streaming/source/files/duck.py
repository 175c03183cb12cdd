"""DuckDB, as readers of logged files use it: a connection, and how values, names and files stand in a query."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa

from streaming.source.files.contents import ROWS_AT_ONCE

_LEAST_MEMORY = 256 << 20
_THREAD_BYTES = 128 << 20
"""What a thread needs to read, or to sort."""
_BATCH = 2048
_BYTES_AT_ONCE = 64 << 20
"""What a table of rows may take, but for the last rows that are added to it."""


@contextmanager
def connection(memory: int | None = None, file: Path | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database that loads nothing from elsewhere; times with a zone come in UTC. It is in memory, or in a new ``file``; what
    exceeds ``memory`` bytes goes to a temporary folder, beside the file if there is one. None leaves that to DuckDB."""
    with tempfile.TemporaryDirectory(prefix="minutely-", dir=None if file is None else file.parent) as folder:
        settings = {"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}
        if memory is not None:
            memory = max(memory, _LEAST_MEMORY)
            settings["memory_limit"] = f"{memory // 1024}KiB"
            settings["threads"] = str(min(len(os.sched_getaffinity(0)), memory // _THREAD_BYTES))
        db = duckdb.connect(":memory:" if file is None else file, config={**settings, "temp_directory": folder})
        try:
            db.execute("set TimeZone = 'UTC'")
            yield db
        finally:
            db.close()


def quoted(value: str) -> str:
    """A text in a query."""
    return "'" + value.replace("'", "''") + "'"


def name(value: str) -> str:
    """A name in a query."""
    return '"' + value.replace('"', '""') + '"'


def source(path: Path) -> str:
    """A file in a query, whose name is no pattern."""
    return quoted("".join(f"[{each}]" if each in "*?[" else each for each in str(path)))


def limit(most: int | None) -> str:
    """The end of a query that returns at most so many rows; None for all."""
    return "" if most is None else f"limit {most}"


def streamed(db: duckdb.DuckDBPyConnection, query: str, names: Sequence[str]) -> Iterator[pa.Table]:
    """Yield a query's rows as tables of bounded size, at least one, with these column names; none of them: rows without columns.
    The connection can run nothing else meanwhile.

    Whatever a file has them as, texts come as Arrow's ``string`` and lists as its ``list``, without dictionaries and large ones.
    """
    with _duckdb_errors():
        reader = db.sql(query).to_arrow_reader(min(ROWS_AT_ONCE, _BATCH))
        rest: list[pa.RecordBatch] = []
        count = size = 0
        empty = True
        for batch in reader:
            rest.append(batch)
            count, size = count + batch.num_rows, size + batch.nbytes
            if count >= ROWS_AT_ONCE or size >= _BYTES_AT_ONCE:
                yield _named(pa.Table.from_batches(rest), names)
                rest, count, size = [], 0, 0
                empty = False
        if rest or empty:
            yield _named(pa.Table.from_batches(rest, reader.schema), names)


@contextmanager
def _duckdb_errors() -> Iterator[None]:
    """Raise what DuckDB says while its rows are read as DuckDB's errors: Arrow makes other ones of them."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        kinds = {
            "Invalid Input": duckdb.InvalidInputException,
            "IO": duckdb.IOException,
            "Out of Memory": duckdb.OutOfMemoryException,
        }
        kind = next((kind for begin, kind in kinds.items() if f"{begin} Error" in str(error)), duckdb.Error)
        raise kind(str(error)) from None


def _named(table: pa.Table, names: Sequence[str]) -> pa.Table:
    return table.rename_columns(list(names)) if names else table.select([])
