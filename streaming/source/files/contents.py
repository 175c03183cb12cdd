"""What every reader of a file is asked, and what it returns: rows, those it cannot take apart, columns that are missing."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from basis.problems import Problem, Unreadable
from streaming.features.columns import Ids
from streaming.source.settings import File

_SHOWN = 60
ROWS_AT_ONCE = 1 << 16
"""Contents of a file that are in memory at once, where it need not be there as a whole."""


class Broken(NamedTuple):
    """A row that its reader cannot take apart: the line it begins at, its text and what is wrong with it."""

    line: int
    text: str
    detail: str


class Contents(NamedTuple):
    """What a file holds: the rows that can be read, with those of the columns asked for that it has, a table after another.

    ``lines`` returns the line that each row begins at, int64 [n], counted from 1 (Parquet: the row). It reads the file again.
    Ask it, and ``broken``, once all tables were read.
    """

    tables: Iterator[pa.Table]
    lines: Callable[[], Ids]
    broken: Callable[[], list[Broken]]
    missing: list[Problem]


class ToRead(NamedTuple):
    """What to read: a file, ``plain`` as it is without compression, by the settings of its source. Columns None: all that it has;
    ``most`` None: all rows. ``scratch`` is a folder that goes when the file is read."""

    path: Path
    plain: Path
    scratch: Path
    file: File
    columns: list[str] | None
    most: int | None


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedReader]:
    """Open a file, compressed or not."""
    with pa.input_stream(str(path), compression="detect") as raw:
        yield io.BufferedReader(raw, 1 << 20)


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


def changed(path: str) -> Unreadable:
    """Return what is wrong with a file whose rows are not those any more that were read."""
    return Unreadable([Problem(path, "file", "changed while it was read", "allowed: one that only grows meanwhile")])


def shown(value: object) -> str:
    """Return a value as messages show it."""
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
