"""Reads one logged file by DuckDB: Parquet in its own types, CSV as texts, JSON lines as numbers, texts and lists of them.

Readers only read. What a text means is decided where columns become features, by one code for all entrances.
"""

from __future__ import annotations

import csv
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet

from basis.decoding import why
from basis.problems import Problem, Problems, Unreadable
from streaming.source.csv_files import read_csv
from streaming.source.duck import connection, limit, name, source, usable_columns
from streaming.source.files import COMPRESSED, FoundFile, Kind
from streaming.source.json_files import read_json_lines
from streaming.source.rows import Request, Rows, opened
from streaming.source.settings import File


def read_file(found: FoundFile, file: File, columns: Sequence[str] | None, most: int | None = None) -> Rows:
    """Read the columns of one file; where ``columns`` is None all that it has, with those that cannot be used in ``missing``. Of
    its rows the first ``most`` where given; lines of broken ones are then not looked up.

    Raises:
        Problems: the file as a whole is unusable.
        Unreadable: the operating system fails to read it.
    """
    path, kind = found.path, found.kind
    own = None if columns is None else [each for each in columns if each not in found.partitions]
    try:
        path.open("rb").close()  # so that a file without read permission is told like one whose folder has none
        if path.stat().st_size == 0:
            raise Problems([Problem(str(path), "file", "0 bytes", "allowed: a file with rows")])
        with connection() as db, _plain(path) as plain:
            rows = _READERS[kind](db, Request(path, plain, file, own, most))
    except (OSError, duckdb.IOException) as error:
        said = error.strerror if isinstance(error, OSError) else None
        raise Unreadable([Problem(str(path), "file", said or why(error), "allowed: a file that can be read")]) from None
    except (duckdb.Error, pa.ArrowException, UnicodeError, EOFError, csv.Error) as error:
        raise Problems([Problem(str(path), "file", why(error), _WHOLE[kind])]) from None
    table = rows.table.select([each for each in rows.table.column_names if each not in found.partitions])
    for partition, value in found.partitions.items():
        if columns is None or partition in columns:
            table = table.append_column(partition, pa.repeat(pa.scalar(value, pa.string()), table.num_rows))
    return rows._replace(table=table)


_WHOLE: dict[Kind, str] = {
    "parquet": "allowed: a whole Parquet file",
    "csv": "allowed: CSV with a header line, in UTF-8 or with its encoding",
    "jsonl": "allowed: one JSON object a line, in UTF-8",
}


@contextmanager
def _plain(path: Path) -> Iterator[Path]:
    """The file, or an uncompressed copy. DuckDB takes neither a wrong checksum of gzip nor a cut end of zstd for an error."""
    if path.suffix not in COMPRESSED:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="minutely-") as folder:
        copy = Path(folder, path.stem)
        try:
            with opened(path) as reader, copy.open("wb") as out:
                shutil.copyfileobj(reader, out, 1 << 20)
        except OSError as error:
            if error.errno is not None:
                raise
            raise Problems([Problem(str(path), "file", why(error), "allowed: a whole compressed file")]) from None
        yield copy


def _parquet(db: duckdb.DuckDBPyConnection, asked: Request) -> Rows:
    with pa.parquet.ParquetFile(asked.plain) as file:
        present = file.schema_arrow.names
    usable, missing = usable_columns(asked.path, present, asked.columns)
    rows = f"read_parquet({source(asked.plain)}, hive_partitioning = false)"
    inner = [
        described[0] for described in db.sql(f"describe select * from {rows}").fetchall()
    ]  # other names where only case differs
    wanted = ", ".join(name(inner[present.index(each)]) for each in usable) or "0 as nothing"
    table = db.sql(f"select {wanted} from {rows} {limit(asked.most)}").to_arrow_table()
    count = table.num_rows
    table = table.rename_columns(usable) if usable else table.select([])
    return Rows(table, lambda: np.arange(1, count + 1), [], missing)


_READERS: dict[Kind, Callable[[duckdb.DuckDBPyConnection, Request], Rows]] = {
    "parquet": _parquet,
    "csv": read_csv,
    "jsonl": read_json_lines,
}
