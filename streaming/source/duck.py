"""DuckDB, as readers of logged files use it: a connection, and how values, names and files stand in a query."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import duckdb

from basis.problems import Problem

_SHOWN = 60


@contextmanager
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    """A database in memory that loads nothing from elsewhere; times with a zone come in UTC."""
    with tempfile.TemporaryDirectory(prefix="minutely-") as folder:
        settings = {"autoinstall_known_extensions": "false", "autoload_known_extensions": "false"}
        db = duckdb.connect(config={**settings, "temp_directory": folder})
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
