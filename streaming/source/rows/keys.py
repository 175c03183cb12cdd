"""Which rows can be used: those with a time, and with the keys that name their request, impression and action."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from basis.problems import Problem, Problems
from streaming.features.arrow_columns import texts_of
from streaming.features.ids import IDS_ALLOWED, MISSING, NO_ID, as_ids, inexact
from streaming.records.events import MAX_ID_LENGTH
from streaming.source.rows.rows import Rows
from streaming.source.rows.time_bounds import TimeBounds
from streaming.source.rows.walk import Walk
from streaming.source.settings import ActionColumn, EngagementFile, ImpressionFile, OneAction

_MAX_KEY = MAX_ID_LENGTH - 16  # leaves room for a place, or for the id of a run of `minutely produce`


def usable(
    rows: Rows, file: ImpressionFile | EngagementFile, bounds: TimeBounds
) -> tuple[pa.Array, pa.Array | None, pa.Array | None]:
    """Return times, request keys, and those with the impressions' of the rows that have all; the others are rejected."""
    at, good = bounds.usable(rows, file.time)
    keys = named = None
    for column in dict.fromkeys([*(file.request or ()), *(file.impression or ())]):
        if (broken := inexact(rows.column(column))) is not None:
            rows.reject_broken(pc.and_(good, broken), column, rows.column(column), NO_ID, IDS_ALLOWED)
            good = pc.and_not(good, broken)
    if file.request is not None:
        keys = _key(rows, file.request)
        good = _with_key(rows, file.request, keys, good)
    elif isinstance(file, ImpressionFile) and file.explode is not None:
        keys = rows.at.cast(pa.string())  # a row of its file is a request
    if file.impression is not None and file.request is not None:
        good = _with_key(rows, file.impression, _key(rows, file.impression), good)
        columns = [*file.request, *file.impression]
        named = _key(rows, columns)
        good = _with_key(rows, columns, named, good)
    if isinstance(file, EngagementFile):
        good = _with_key(rows, action_columns(file), actions_of(rows, file), good)
    if not pc.all(good).as_py():
        at, keys, named = (None if each is None else each.filter(good) for each in (at, keys, named))
        rows.keep(good)
    return at, keys, named


def _with_key(rows: Rows, columns: Sequence[str], keys: pa.Array, good: pa.Array) -> pa.Array:
    length = pc.utf8_length(keys).fill_null(0)
    usable = pc.and_(pc.greater(length, 0), pc.less_equal(length, _MAX_KEY))
    broken = pc.and_(good, pc.invert(usable))
    rows.reject(broken, columns, keys, "malformed", f"no key of 1 to {_MAX_KEY} characters")
    return pc.and_(good, usable)


def _key(rows: Rows, columns: Sequence[str]) -> pa.Array:
    """Return the values of columns as one text."""
    try:
        parts = [texts_of(rows.column(column)) for column in columns]
    except pa.ArrowException as error:
        allowed = "allowed: integers or texts"
        raise Problems([Problem(rows.name, f"column {'+'.join(columns)}", str(error), allowed)]) from None
    return parts[0] if len(parts) == 1 else _joined(*parts)


def _joined(*parts: pa.Array) -> pa.Array:
    """Join texts by slashes, escaped so that different texts stay different."""
    escaped = [pc.replace_substring(pc.replace_substring(part, "\\", "\\\\"), "/", "\\/") for part in parts]
    return pc.binary_join_element_wise(*escaped, "/")


def actions_of(rows: Rows, file: EngagementFile) -> pa.Array:
    """Return the name of each row's action; values that have names are compared by id, as those of ``equals``."""
    if isinstance(file.action, OneAction):
        return pa.repeat(pa.scalar(file.action.name, pa.string()), rows.table.num_rows)
    found = _key(rows, action_columns(file))
    if isinstance(file.action, str):
        return found
    names = pa.array(list(file.action.names.values()), pa.string())
    ids, _ = as_ids(found)
    wanted, _ = as_ids(pa.array(list(file.action.names), pa.string()))
    at = pc.index_in(pa.array(ids, mask=ids == MISSING), value_set=pa.array(wanted))
    return pc.coalesce(names.take(at), found.cast(pa.string()))


def action_columns(file: EngagementFile) -> list[str]:
    """Return the column that names a file's actions, if there is one."""
    match file.action:
        case OneAction():
            return []
        case ActionColumn():
            return [file.action.column]
    return [file.action]


def none_usable(walk: Walk) -> Problems:
    """Return what is wrong with a source of which no row can be used."""
    allowed = "allowed: at least one row with a time and a request"
    return Problems([Problem(walk.name, "rows", "none is usable", allowed)])
