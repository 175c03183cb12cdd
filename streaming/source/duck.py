"""DuckDB, as readers of logged files use it: a connection, and how values, names and files stand in a query."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa

from basis.problems import Problem
from streaming.source.rows import ROWS_AT_ONCE

_SHOWN = 60
_LEAST_MEMORY = 64 << 20
"""With less, DuckDB cannot sort by several threads."""


@contextmanager
def connection(memory: int | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database that loads nothing from elsewhere; times with a zone come in UTC. It is in memory; what exceeds ``memory`` bytes
    goes to a temporary folder. None leaves that to DuckDB."""
    with tempfile.TemporaryDirectory(prefix="minutely-") as folder:
        settings = {"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}
        if memory is not None:
            settings["memory_limit"] = f"{max(memory, _LEAST_MEMORY) // 1024}KiB"
        db = duckdb.connect(config={**settings, "temp_directory": folder})
        try:
            db.execute("set TimeZone = 'UTC'")
            yield db
        finally:
            db.close()


@contextmanager
def database(memory: int) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database in a file that goes when it is closed. It has ``memory`` bytes."""
    with connection(memory) as db, tempfile.TemporaryDirectory(prefix="minutely-") as folder:
        db.execute(f"attach {quoted(str(Path(folder, 'spool')))} as spool")
        db.execute("use spool")
        # Each query says its order.
        db.execute("set preserve_insertion_order = false")
        yield db


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
    The connection can run nothing else meanwhile."""
    reader = db.sql(query).to_arrow_reader(ROWS_AT_ONCE)
    empty = True
    for batch in reader:
        empty = False
        yield _named(pa.Table.from_batches([batch]), names)
    if empty:
        yield _named(reader.schema.empty_table(), names)


def _named(table: pa.Table, names: Sequence[str]) -> pa.Table:
    return table.rename_columns(list(names)) if names else table.select([])


def usable_columns(path: Path, present: Sequence[str], wanted: Sequence[str] | None) -> tuple[list[str], list[Problem]]:
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


def shown(value: object) -> str:
    """Return a value as messages show it."""
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
