"""Reads a Parquet file by DuckDB, its columns in their own types."""

from __future__ import annotations

from collections.abc import Iterator

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet

from streaming.source.files.contents import Contents, ToRead, usable_columns
from streaming.source.files.duck import limit, name, source, streamed


def read_parquet(db: duckdb.DuckDBPyConnection, asked: ToRead) -> Contents:
    """Read a Parquet file; the line of a row is its number."""
    with pa.parquet.ParquetFile(asked.plain) as file:
        present = file.schema_arrow.names
    usable, missing = usable_columns(asked.path, present, asked.columns)
    rows = f"read_parquet({source(asked.plain)}, hive_partitioning = false)"
    inner = [
        described[0] for described in db.sql(f"describe select * from {rows}").fetchall()
    ]  # other names where only case differs
    wanted = ", ".join(name(inner[present.index(each)]) for each in usable) or "0 as nothing"
    count = 0

    def tables() -> Iterator[pa.Table]:
        nonlocal count
        for table in streamed(db, f"select {wanted} from {rows} {limit(asked.most)}", usable):
            count += table.num_rows
            yield table

    return Contents(tables(), lambda: np.arange(1, count + 1), list, missing)
