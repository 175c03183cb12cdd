"""What a reader returns of one logged file, and how files are opened."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from basis.problems import Problem
from streaming.features.columns import Ids
from streaming.source.settings import File

ROWS_AT_ONCE = 1 << 16
"""Rows of a file that are in memory at once, where it need not be there as a whole."""


class Broken(NamedTuple):
    """A row that its reader cannot take apart: the line it begins at, its text and what is wrong with it."""

    line: int
    text: str
    detail: str


class Rows(NamedTuple):
    """What a file holds: the rows that can be read, with those of the columns asked for that it has, a table after another.

    ``lines`` returns the line that each row begins at, int64 [n], counted from 1 (Parquet: the row). It reads the file again.
    Ask it, and ``broken``, once all tables were read.
    """

    tables: Iterator[pa.Table]
    lines: Callable[[], Ids]
    broken: Callable[[], list[Broken]]
    missing: list[Problem]


class WholeRows(NamedTuple):
    """`Rows` of a file that was read as a whole."""

    table: pa.Table
    lines: Callable[[], Ids]
    broken: list[Broken]
    missing: list[Problem]


def whole(rows: Rows) -> WholeRows:
    """Return all rows of a file at once."""
    tables = list(rows.tables)
    return WholeRows(pa.concat_tables(tables), rows.lines, rows.broken(), rows.missing)


class Request(NamedTuple):
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
