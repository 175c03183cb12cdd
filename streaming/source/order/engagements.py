"""Engagements that have files of their own, on their way to the spool."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from streaming.source.order.spool import Spool
from streaming.source.rows.actions import plain_numbers, usable_values
from streaming.source.rows.keys import action_columns, actions_of, none_usable, usable
from streaming.source.rows.raw import numbers
from streaming.source.rows.rows import Rows
from streaming.source.rows.time_bounds import TimeBounds
from streaming.source.rows.walk import Walk
from streaming.source.settings import EngagementFile


def read_engagements(walk: Walk, file: EngagementFile, bounds: TimeBounds, spool: Spool) -> None:
    """Read the rows of a file of engagements into the spool.

    Raises:
        Problems: columns that do not fit, or no row that can be used.
    """
    count = spool.logged
    walk.take(lambda rows: spool.add("logged", _engagements(rows, file, bounds, spool.logged)))
    if spool.logged == count:
        raise none_usable(walk)


def _engagements(rows: Rows, file: EngagementFile, bounds: TimeBounds, first: int) -> pa.Table:
    values = pa.array(np.ones(rows.table.num_rows))
    if file.value:
        raw, values = rows.column(file.value), numbers(rows, file.value)
        given = pc.or_(values.is_valid(), raw.is_null(nan_is_null=True))  # other values are rejected already
        values = values.fill_null(1.0)
        mask = usable_values(rows, file.value, plain_numbers(values), np.asarray(given.to_numpy(zero_copy_only=False)))
        values = values.filter(pa.array(mask))
        rows.keep(pa.array(mask))
    rows.table = rows.table.append_column("minutely.value", values)
    at, requests, named = usable(rows, file, bounds)
    return pa.table(
        {
            "place": pa.array(np.arange(first, first + len(at))),
            "at_ms": at,
            "request": requests,
            "named": named,
            "action": actions_of(rows, file),
            "value": rows.column("minutely.value"),
        }
    )


def engagement_columns(file: EngagementFile) -> list[str]:
    """Return all columns that a file of engagements needs."""
    columns = [file.time.column, *file.request, *file.impression, *action_columns(file)]
    return columns + ([file.value] if file.value else [])
