"""Reads a Parquet file by DuckDB, its columns in their own types."""

from __future__ import annotations

from collections.abc import Iterator

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet

from streaming.source.files.contents import Contents, ToRead, usable_columns
from streaming.source.files.duck import limit, name, quoted, source, streamed


def _within(column: str, kind: pa.DataType, value: str) -> Iterator[tuple[str, str]]:
    """Yield what a column of objects holds, as ``item.id``, each with its value in a query."""
    for field in kind if pa.types.is_struct(kind) else ():
        inner = f"{column}.{field.name}", field.type, f"struct_extract({value}, {quoted(field.name)})"
        yield inner[0], inner[2]
        yield from _within(*inner)


def read_parquet(db: duckdb.DuckDBPyConnection, asked: ToRead) -> Contents:
    """Read a Parquet file; the line of a row is its number."""
    with pa.parquet.ParquetFile(asked.plain) as file:
        schema = file.schema_arrow
    rows = f"read_parquet({source(asked.plain)}, hive_partitioning = false)"
    inner = [
        described[0] for described in db.sql(f"describe select * from {rows}").fetchall()
    ]  # other names where only case differs
    own = [(field.name, field.type, name(each)) for field, each in zip(schema, inner, strict=True)]
    within = {each: value for column in own for each, value in _within(*column) if each not in schema.names}
    plain = [each for each, kind, _ in own if not (asked.columns is None and pa.types.is_struct(kind))]
    usable, missing = usable_columns(asked.path, [*plain, *within], asked.columns)
    values = {each: value for each, _, value in own} | within
    wanted = ", ".join(values[each] for each in usable) or "0 as nothing"
    count = 0

    def tables() -> Iterator[pa.Table]:
        nonlocal count
        for table in streamed(db, f"select {wanted} from {rows} {limit(asked.most)}", usable):
            count += table.num_rows
            yield table

    return Contents(tables(), lambda: np.arange(1, count + 1), list, missing)
