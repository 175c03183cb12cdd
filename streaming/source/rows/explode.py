"""Rows that hold a list of items each become a row per item."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from basis.problems import Problem, Problems
from streaming.features.arrow_columns import split_texts
from streaming.source.rows.rows import Rows
from streaming.source.settings import EachItem, Explode


def explode(rows: Rows, settings: Explode) -> None:
    """Give every item of a row's lists a row of its own, in their order, with the row's other values. Rows whose lists differ in
    length are rejected; rows without items become none. So are items without as many values as each has.

    Raises:
        Problems: a column holds no lists, or no item holds several values.
    """
    if rows.missing:
        raise Problems([])  # they are reported already
    lists = {column: _lists(rows, column, settings.split) for column in settings.columns}
    first, *others = settings.columns
    lengths = pc.list_value_length(lists[first]).fill_null(0)
    usable = pa.repeat(True, len(lengths))
    for column in others:
        differs = pc.and_(usable, pc.not_equal(pc.list_value_length(lists[column]).fill_null(0), lengths))
        if pc.any(differs).as_py():
            rows.reject(differs, column, rows.column(column), "malformed", f"not as many items as in {first}")
            usable = pc.and_not(usable, differs)
    lengths = pc.if_else(usable, lengths, 0)
    counts = np.asarray(lengths.to_numpy(zero_copy_only=False), np.int64)
    kept = pa.array(counts > 0)
    items = {column: values.filter(kept).flatten() for column, values in lists.items()}
    rows.take(pa.array(np.repeat(np.arange(len(counts)), counts)))
    for column, values in items.items():
        _set(rows, column, values)
    if settings.each is not None:
        _take_apart(rows, first, settings.each)


def _take_apart(rows: Rows, column: str, each: EachItem) -> None:
    """Give the values of a column's items columns of their own."""
    items = rows.column(column)
    try:
        values = pc.split_pattern(items.cast(pa.string()), each.split)
    except pa.ArrowException as error:
        raise Problems([Problem(rows.name, f"column {column}", str(error), "allowed: items that are texts")]) from None
    detail = f"not {len(each.columns)} values with {each.split!r} between them"
    broken = pc.not_equal(pc.list_value_length(values), len(each.columns)).fill_null(False)
    rows.reject_broken(broken, column, items, detail, f"{detail}; allowed: {each.split.join(each.columns)}")
    rows.keep(pc.invert(broken))
    values = values.filter(pc.invert(broken))
    for number, name in enumerate(each.columns):
        part = pc.list_element(values, number)
        _set(rows, name, pc.if_else(pc.equal(part, ""), None, part))


def _set(rows: Rows, column: str, values: pa.Array) -> None:
    names = rows.table.column_names
    at = names.index(column) if column in names else len(names)
    rows.table = (rows.table.set_column if column in names else rows.table.add_column)(at, column, values)


def _lists(rows: Rows, column: str, split: str | None) -> pa.Array:
    values = rows.column(column)
    kind = values.type
    if split is not None and (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return split_texts(values, split)
    if pa.types.is_null(kind):
        return values.cast(pa.list_(pa.int64()))
    if pa.types.is_fixed_size_list(kind):
        return values.cast(pa.list_(kind.value_type))
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        allowed = "allowed: lists, or texts with explode.split"
        raise Problems([Problem(rows.name, f"column {column}", f"type {kind}", allowed)])
    return values
