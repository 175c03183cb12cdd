"""Rows that hold a list of items each become a row per item."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from basis.problems import Problem, Problems
from streaming.features.arrow_columns import as_lists, split_texts
from streaming.features.columns import Ids
from streaming.records.events import MAX_IMPRESSIONS
from streaming.source.rows.rows import Items, Rows
from streaming.source.settings import EachItem, Explode

_BYTES_AT_ONCE = 16 << 20
"""What the rows of items that are in memory at once may take."""
_OF_ITEM = 64
"""What a row has of its item alone, about."""


def explode(rows: Rows, settings: Explode) -> Iterator[Rows]:
    """Give every item of a row's lists a row of its own, in their order, with the row's other values; yield them some at a time,
    at least one piece. Rows whose lists differ in length, or have more items than a request may have, are rejected; rows without
    items become none, and are counted. So are items rejected that have not as many values as each has.

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
    long = pc.and_(usable, pc.greater(lengths, MAX_IMPRESSIONS))
    if pc.any(long).as_py():
        rows.reject(
            long, first, rows.column(first), "malformed", f"more items than a request may have: {MAX_IMPRESSIONS}"
        )
        usable = pc.and_not(usable, long)
    kept = pc.and_(usable, pc.greater(lengths, 0))
    rows.findings.empty += pc.sum(pc.and_not(usable, kept)).as_py() or 0
    rows.keep(kept)
    lists = {column: values.filter(kept) for column, values in lists.items()}
    counts = np.asarray(lengths.filter(kept).to_numpy(zero_copy_only=False), np.int64)
    shared = rows.table.drop_columns(settings.columns)  # what is exploded is not copied for each item
    number = 0
    for begin, end in _pieces(shared, counts, 0, len(counts)):
        items = {column: values.slice(begin, end - begin).flatten() for column, values in lists.items()}
        of_row = np.repeat(np.arange(begin, end), counts[begin:end])
        at_once = _items_at_once(shared, begin) if end - begin == 1 else len(of_row)
        for at in range(0, max(len(of_row), 1), max(at_once, 1)):
            some = {column: values.slice(at, at_once) for column, values in items.items()}
            piece = _with_items(rows, settings, some, of_row[at : at + at_once], number)
            number += at_once
            if settings.each is not None:
                _take_apart(piece, first, settings.each)
            yield piece


def _pieces(shared: pa.Table, counts: Ids, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Halve rows until those of their items fit; of a single row, `_items_at_once` do."""
    number = end - begin
    size = shared.slice(begin, number).nbytes + number * _OF_ITEM
    if number > 1 and size * int(counts[begin:end].max()) > _BYTES_AT_ONCE:
        middle = (begin + end) // 2
        yield from _pieces(shared, counts, begin, middle)
        yield from _pieces(shared, counts, middle, end)
    else:
        yield begin, end


def _items_at_once(shared: pa.Table, row: int) -> int:
    of_row: int = shared.slice(row, 1).nbytes
    return max(_BYTES_AT_ONCE // (of_row + _OF_ITEM), 1)


def _with_items(rows: Rows, settings: Explode, items: Mapping[str, pa.Array], of_row: Ids, number: int) -> Rows:
    """Return a row for each item, with the other values of the rows ``of_row`` int64 [n]; items are numbered from ``number`` on."""
    index = pa.array(of_row)
    columns = {
        name: items[name] if name in items else rows.column(name).take(index) for name in rows.table.column_names
    }
    own = Items(pa.array(np.arange(number, number + len(of_row))), frozenset(settings.made))
    return Rows(rows.name, pa.table(columns), rows.at.take(index), rows.findings, rows.decimal, items=own)


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
    if split is not None and pa.types.is_string(kind):
        return split_texts(values, split)
    try:
        return as_lists(values)
    except TypeError:
        allowed = "allowed: lists, or texts with explode.split"
        raise Problems([Problem(rows.name, f"column {column}", f"type {kind}", allowed)]) from None
