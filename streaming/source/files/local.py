"""Reads one logged file by DuckDB: Parquet in its own types, CSV as texts, JSON lines as numbers, texts and lists of them.

Readers only read. What a text means is decided where columns become features, by one code for all entrances.
"""

from __future__ import annotations

import csv
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import duckdb
import pyarrow as pa
import pyarrow.parquet
import xxhash

from basis.decoding import why
from basis.problems import Problem, Problems, Unreadable
from streaming.source.files.contents import Contents, ToRead, changed, opened
from streaming.source.files.csv_files import read_csv
from streaming.source.files.duck import connection
from streaming.source.files.find import COMPRESSED, FoundFile, Kind
from streaming.source.files.json_files import read_json_lines
from streaming.source.files.parquet_files import read_parquet
from streaming.source.settings import File

Found = TypeVar("Found")
_END_BYTES = 4096


@contextmanager
def open_local(
    found: FoundFile,
    file: File,
    columns: Sequence[str] | None,
    most: int | None = None,
    memory: int | None = None,
) -> Iterator[Contents]:
    """Open one file to read its columns, at least one table of them; where ``columns`` is None all that it has, with those that
    cannot be used in ``missing``. Of its rows the first ``most`` where given; lines of broken ones are then not looked up.
    ``memory`` bounds, in bytes, what the reader itself keeps.

    Raises, also while the rows are read:
        Problems: the file as a whole is unusable.
        Unreadable: the operating system fails to read it.
    """
    path, kind = found.path, found.kind
    with ExitStack() as open_:
        with _explained(path, kind):
            before = path.stat()
            ends = _ends(path, before.st_size)  # a file without read permission is told like one whose folder has none
            if before.st_size == 0:
                raise Problems([Problem(str(path), "file", "0 bytes", "allowed: a file with rows")])
            db = open_.enter_context(connection(memory))
            scratch = Path(open_.enter_context(tempfile.TemporaryDirectory(prefix="minutely-")))
            plain = _unpacked(path, scratch) if path.suffix in COMPRESSED else path
            rows = _READERS[kind](
                db, ToRead(path, plain, scratch, file, None if columns is None else list(columns), most)
            )

        def tables() -> Iterator[pa.Table]:
            with _explained(path, kind):
                for table in rows.tables:
                    yield _with_partitions(table, found, columns)

        def again(look: Callable[[], Found]) -> Found:
            with _explained(path, kind):
                try:
                    now = path.stat()
                except FileNotFoundError:
                    raise changed(str(path)) from None
                if now.st_ino != before.st_ino or now.st_size < before.st_size or _ends(path, before.st_size) != ends:
                    raise changed(str(path))
                return look()

        in_names = {f"column {each}" for each in found.partitions}
        missing = [each for each in rows.missing if each.place not in in_names]
        yield rows._replace(
            tables=tables(), lines=lambda: again(rows.lines), broken=lambda: again(rows.broken), missing=missing
        )


def _ends(path: Path, size: int) -> str:
    """Return a hash of how a file of this size begins and ends: one that was emptied and written again begins with other rows."""
    with path.open("rb") as file:
        begin = file.read(min(_END_BYTES, size))
        file.seek(max(size - _END_BYTES, 0))
        return xxhash.xxh3_64_hexdigest(begin + file.read(min(_END_BYTES, size)))


@contextmanager
def _explained(path: Path, kind: Kind) -> Iterator[None]:
    """Turn what libraries raise about a file into problems."""
    try:
        yield
    except duckdb.OutOfMemoryException as error:
        raise Unreadable(
            [Problem(str(path), "--memory", why(error), "allowed: more, for rows that are so large")]
        ) from None
    except (OSError, duckdb.IOException) as error:
        said = error.strerror if isinstance(error, OSError) else None
        raise Unreadable([Problem(str(path), "file", said or why(error), "allowed: a file that can be read")]) from None
    except (duckdb.Error, pa.ArrowException, UnicodeError, EOFError, csv.Error) as error:
        raise Problems([Problem(str(path), "file", why(error), _WHOLE[kind])]) from None


def _with_partitions(table: pa.Table, found: FoundFile, columns: Sequence[str] | None) -> pa.Table:
    """Return rows with the columns that the names of their folders are, but for those that the file has itself: such a time is
    exact where that of the folder is its day."""
    for partition, value in found.partitions.items():
        if partition not in table.column_names and (columns is None or partition in columns):
            table = table.append_column(partition, pa.repeat(pa.scalar(value, pa.string()), table.num_rows))
    return table


_WHOLE: dict[Kind, str] = {
    "parquet": "allowed: a whole Parquet file",
    "csv": "allowed: CSV with a header line, in UTF-8 or with its encoding",
    "jsonl": "allowed: one JSON object a line, in UTF-8",
}


def _unpacked(path: Path, scratch: Path) -> Path:
    """Return an uncompressed copy. DuckDB takes neither a wrong checksum of gzip nor a cut end of zstd for an error."""
    copy = scratch / path.stem
    try:
        with opened(path) as reader, copy.open("wb") as out:
            shutil.copyfileobj(reader, out, 1 << 20)
    except OSError as error:
        if error.errno is not None:
            raise
        raise Problems([Problem(str(path), "file", why(error), "allowed: a whole compressed file")]) from None
    return copy


_READERS: dict[Kind, Callable[[duckdb.DuckDBPyConnection, ToRead], Contents]] = {
    "parquet": read_parquet,
    "csv": read_csv,
    "jsonl": read_json_lines,
}
