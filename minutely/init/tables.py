"""A source with what its columns are, and the columns that name a user, an item, a request or an action."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from minutely.init.profile import Column, Numbers
from minutely.init.sources import ROWS, Source
from minutely.init.times import TimeGuess, of_serving, time_of
from minutely.init.words import ACTION_COLUMNS, ACTIONS, ITEMS, REQUESTS, SHOWN, USERS, is_id, names, words
from streaming.features.columns import Ids
from streaming.source.rows.explode import explode
from streaming.source.rows.rejects import Findings
from streaming.source.rows.rows import Rows
from streaming.source.settings import Explode

_MOST_ACTIONS = 50


class Table(NamedTuple):
    """A source's columns by name, and its times, that of the serving first."""

    source: Source
    columns: dict[str, Column]
    times: list[TimeGuess]

    @property
    def height(self) -> int:
        """How many rows were looked at."""
        return max((len(column.values) for column in self.columns.values()), default=0)

    def named(self, known: frozenset[str]) -> list[Column]:
        """The columns of ids whose name has one of some words; those that are called ids first."""
        found = [each for each in self.columns.values() if names(each.name, known) and self.can_name(each)]
        return sorted(found, key=lambda each: (not is_id(each.name), len(words(each.name))))

    def can_name(self, column: Column) -> bool:
        """Whether a column's values may be keys: integers or texts that differ, and no times."""
        has_ids = column.ids is not None and column.kind in ("integers", "texts")
        return has_ids and column.distinct > 1 and not self._is_time(column)

    def _is_time(self, column: Column) -> bool:
        return any(column.name == time.name for time in self.times)

    @property
    def user(self) -> Column | None:
        """The column that names the user."""
        return next((each for each in self.named(USERS) if is_id(each.name)), None)

    @property
    def item(self) -> Column | None:
        """The column that names the item: by its name, else the ids of which most differ."""
        found = [each for each in self.named(ITEMS) if is_id(each.name)]
        taken = {each.name for each in (self.user, *self.named(REQUESTS)) if each is not None}
        if not found:
            others = [each for each in self.columns.values() if self.can_name(each) and is_id(each.name)]
            found = [each for each in others if each.name not in taken and not each.is_unique]
        found = [each for each in found if each.name not in taken]
        return max(found, key=lambda each: each.distinct, default=None)

    @property
    def action(self) -> Column | None:
        """The column that names actions, as click and buy."""
        for column in self.columns.values():
            few = column.kind == "texts" and not self._is_time(column) and column.distinct <= _MOST_ACTIONS
            if few and (names(column.name, ACTION_COLUMNS) or self._are_actions(column)) and not is_id(column.name):
                return column
        return None

    @property
    def one_action(self) -> str | None:
        """The action that every row is, by the name of the file, as in ``clicks.csv``."""
        return next((word for word in words(self.source.name) if word in ACTIONS - SHOWN), None)

    @staticmethod
    def _are_actions(column: Column) -> bool:
        return all(names(str(value), ACTIONS) for value in column.present.unique().to_pylist())


def table_of(source: Source, now_ms: int) -> Table:
    """Return a source with its columns."""
    return _table(source, source.rows, now_ms)


def exploded(table: Table, settings: Explode, now_ms: int) -> Table:
    """Return a table with a row for each item of its lists, and about as many rows as others."""
    first = settings.columns[0]
    lists = table.columns[first].as_lists(settings.split).values
    lengths = np.diff(lists.offsets.to_numpy()) if len(lists) else np.zeros(0, np.int64)
    kept = max(1, int(np.searchsorted(np.cumsum(lengths), ROWS, side="right")))
    rows = _rows(table, table.source.rows.table.slice(0, kept))
    rows = _rows(table, pa.concat_tables(piece.table for piece in explode(rows, settings)))
    return _table(table.source._replace(rows=rows), rows, now_ms)


def joined(tables: Sequence[Table], now_ms: int) -> Table:
    """Return the rows of tables as those of the first, with the columns that all have; an Arrow exception if their types differ."""
    first, *others = tables
    common = [name for name in first.columns if all(name in other.columns for other in others)]
    parts = [table.source.rows.table.select(common) for table in tables]
    rows = _rows(first, pa.concat_tables(parts, promote_options="permissive"))
    return _table(first.source._replace(rows=rows), rows, now_ms)


def _rows(table: Table, whole: pa.Table) -> Rows:
    """Other rows than those that were looked at first."""
    own = table.source.rows
    return Rows(own.name, whole, pa.array(np.arange(len(whole))), Findings(whole=True), own.decimal)


def _table(source: Source, rows: Rows, now_ms: int) -> Table:
    columns = {name: Column(name, rows.column(name), rows.decimal) for name in rows.table.column_names}
    times = [guess for column in columns.values() if (guess := time_of(column, now_ms)) is not None]
    return Table(source, columns, of_serving(times))


def groups_of(columns: list[Column]) -> Ids:
    """Return which rows have the same values in columns together, as numbers from 0 on, int64 [n]."""
    found: Ids = np.zeros(len(columns[0].values), np.int64)
    for column in columns:
        found = grouped(found, column.ids if column.ids is not None else column.row_numbers)
    return found


def grouped(groups: Ids, values: Ids | Numbers) -> Ids:
    """Return the groups in which rows of other groups have the same values, as numbers from 0 on, int64 [n]."""
    _, codes = np.unique(values, return_inverse=True)
    found: Ids = np.unique(groups * (int(codes.max(initial=0)) + 1) + codes, return_inverse=True)[1]
    return found
