"""Times of logged files, as their config says they are written."""

from __future__ import annotations

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from streaming.features.arrow_columns import as_times
from streaming.source.files.duck import connection, quoted
from streaming.source.settings import TimeColumn


def read_times(values: pa.Array, column: TimeColumn) -> tuple[pa.Array, pa.Array | None]:
    """Return times as int64 ms since 1970, and which values are not times (None: all are); ``TypeError`` for other types.

    With a format, in the codes of ``strptime``, texts without a zone are UTC, and days that no month has are no times.
    """
    if column.format is None:
        return as_times(values, column.unit)
    texts = pa.table({"text": values.cast(pa.string())})
    with connection() as db:
        db.register("texts", texts)
        query = f"select try_strptime(text, {quoted(column.format)}) as at from texts"
        try:
            found, _ = as_times(db.sql(query).to_arrow_table().column(0).combine_chunks(), column.unit)
        except duckdb.Error as error:
            raise TypeError(f"format {column.format}: {error}") from None
    return found, pc.and_(values.is_valid(), found.is_null())
