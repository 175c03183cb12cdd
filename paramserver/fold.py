"""Folding: many deltas into one, and a base and deltas into the next base. Arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from paramserver.delta import Delta, Ids, TableDelta
from paramserver.table import Rows

_COLUMNS = ("ids", "embeddings", "state", "last_seen_seconds", "counts")


def fold(deltas: Sequence[Delta]) -> dict[str, TableDelta]:
    """One base out of a base and the deltas after it, in order: the last state of each row that has not expired since.

    By ascending id. The default row is the last one's.
    """
    return {name: without_expired(delta) for name, delta in combine(deltas).items()}


def combine(deltas: Sequence[Delta]) -> dict[str, TableDelta]:
    """One delta that does what these do one after the other. An id that came back is among its rows, and not among its expired."""
    names = dict.fromkeys(name for delta in deltas for name in delta)
    return {name: _combine_table([delta[name] for delta in deltas if name in delta]) for name in names}


def without_expired(delta: TableDelta) -> TableDelta:
    """A table's delta as part of a base."""
    return TableDelta(replace(delta.rows, expired=np.empty(0, np.int64)), delta.versions)


def combine_bounded(deltas: Iterable[Delta], at_once_bytes: int) -> dict[str, TableDelta]:
    """As `combine`, reading on only when what was read is folded: holds what it returns and about ``at_once_bytes`` more."""
    held: list[Delta] = []
    size = 0
    for delta in deltas:
        held.append(delta)
        size += size_of(delta)
        if size > at_once_bytes:
            held = [combine(held)]
            size = 0
    return combine(held) if held else {}


def rebase(parts: Iterable[Delta], changes: Delta, part_bytes: int) -> Iterator[dict[str, TableDelta]]:
    """The parts of the next base out of those of the last one and one delta, each of about ``part_bytes``; one at least.

    Holds a part at a time besides ``changes``. Within a part, ids ascend.
    """
    used = {name: np.zeros(len(delta.rows.ids), np.bool_) for name, delta in changes.items()}
    pieces: list[dict[str, TableDelta]] = []
    size = 0
    some = False
    for piece in _pieces(parts, changes, used, part_bytes):
        if pieces and size + size_of(piece) > part_bytes:
            yield _join(pieces)
            some, pieces, size = True, [], 0
        pieces.append(piece)
        size += size_of(piece)
    if pieces or not some:
        yield _join(pieces)


def size_of(delta: Delta) -> int:
    """Bytes of the arrays."""
    size = 0
    for table in delta.values():  # attributes by name: a fold asks this of a thousand deltas
        rows = table.rows
        size += rows.ids.nbytes + rows.embeddings.nbytes + rows.state.nbytes
        size += rows.last_seen_seconds.nbytes + rows.counts.nbytes + rows.expired.nbytes + table.versions.nbytes
    return size


def take(delta: TableDelta, at: npt.NDArray[Any] | slice) -> TableDelta:
    """Some of the rows, without expired ids."""
    rows = {column: getattr(delta.rows, column)[at] for column in _COLUMNS}
    return TableDelta(replace(delta.rows, **rows, expired=np.empty(0, np.int64)), delta.versions[at])


def _combine_table(parts: Sequence[TableDelta]) -> TableDelta:
    if len(parts) == 1:
        rows = parts[0].rows
        expired = np.setdiff1d(rows.expired, rows.ids) if len(rows.expired) else rows.expired
        return TableDelta(replace(rows, expired=expired), parts[0].versions)
    keys = np.concatenate([part for table in parts for part in (table.rows.expired, table.rows.ids)])
    sizes = [size for table in parts for size in (len(table.rows.expired), len(table.rows.ids))]
    alive = np.repeat(np.arange(len(sizes)) % 2 == 1, sizes)
    _, last_from_end = np.unique(keys[::-1], return_index=True)
    last = len(keys) - 1 - last_from_end
    kept = last[alive[last]]
    row = np.cumsum(alive)[kept] - 1  # where the kept ones stand among the rows alone

    def taken(name: str) -> npt.NDArray[Any]:
        values: npt.NDArray[Any] = np.concatenate([getattr(table.rows, name) for table in parts])[row]
        return values

    newest = parts[-1].rows
    rows = Rows(
        **{name: taken(name) for name in _COLUMNS},
        expired=keys[last[~alive[last]]],
        default_embedding=newest.default_embedding,
        default_state=newest.default_state,
    )
    return TableDelta(rows, np.concatenate([table.versions for table in parts])[row])


def _pieces(
    parts: Iterable[Delta], changes: Delta, used: dict[str, npt.NDArray[np.bool_]], piece_bytes: int
) -> Iterator[dict[str, TableDelta]]:
    """What is left of each part, changed rows in their place, then the rows that are in none; a table each time."""
    for part in parts:
        for name, table in part.items():
            if name not in changes:
                continue
            change = changes[name]
            at, is_changed = find(change.rows.ids, table.rows.ids)
            used[name][at[is_changed]] = True
            gone = find(change.rows.expired, table.rows.ids)[1]
            kept = take(table, ~(is_changed | gone))
            yield from _cut(name, _joined([kept, take(change, at[is_changed])], change.rows), piece_bytes)
    for name, change in changes.items():
        rest: npt.NDArray[np.bool_] | slice = ~used[name] if used[name].any() else slice(None)
        yield from _cut(name, take(change, rest), piece_bytes)


def _cut(name: str, table: TableDelta, piece_bytes: int) -> Iterator[dict[str, TableDelta]]:
    """The table's rows in pieces; one, if empty, where there are none, since every base names every table."""
    rows = len(table.rows.ids)
    step = max(1, piece_bytes * max(rows, 1) // max(size_of({name: table}), 1))
    for start in range(0, max(rows, 1), step):
        yield {name: take(table, slice(start, start + step))}


def find(sorted_ids: Ids, ids: Ids) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
    """Where each of ``ids`` is among ``sorted_ids``, and whether it is there."""
    if not len(sorted_ids):
        return np.zeros(len(ids), np.intp), np.zeros(len(ids), np.bool_)
    at = np.searchsorted(sorted_ids, ids)
    at[at == len(sorted_ids)] = 0
    return at, sorted_ids[at] == ids


def _join(pieces: Sequence[dict[str, TableDelta]]) -> dict[str, TableDelta]:
    by_name: dict[str, list[TableDelta]] = {}
    for piece in pieces:
        for name, table in piece.items():
            by_name.setdefault(name, []).append(table)
    return {name: _joined(tables, tables[-1].rows) for name, tables in by_name.items()}


def _joined(tables: Sequence[TableDelta], default: Rows) -> TableDelta:
    """Rows of different ids as one, by ascending id, with the default row of ``default``."""
    filled = [table for table in tables if len(table.rows.ids)] or tables[:1]
    ids = np.concatenate([table.rows.ids for table in filled])
    order = None if (np.diff(ids) > 0).all() else np.argsort(ids)

    def sort(parts: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        values = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return values if order is None else values[order]

    columns = {column: sort([getattr(table.rows, column) for table in filled]) for column in _COLUMNS}
    rows = Rows(
        **columns,
        expired=np.empty(0, np.int64),
        default_embedding=default.default_embedding,
        default_state=default.default_state,
    )
    return TableDelta(rows, sort([table.versions for table in filled]))
