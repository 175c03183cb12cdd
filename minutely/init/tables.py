"""A source with what its columns are, and the columns that name a user, an item, a request or an action."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from minutely.init.profile import Column, Numbers
from minutely.init.sources import ROWS, Source
from minutely.init.times import TimeGuess, of_serving, time_of
from minutely.init.words import ACTION_COLUMNS, ACTIONS, ITEMS, KINDS, REQUESTS, SHOWN, USERS, is_id, names, words
from streaming.features.columns import Ids
from streaming.source.rows.explode import explode
from streaming.source.rows.raw import equal
from streaming.source.rows.rejects import Findings
from streaming.source.rows.rows import Rows
from streaming.source.settings import Explode, WhenEquals

_MOST_ACTIONS = 50
EVIDENCE = 100
"""Rows, or requests of several rows, from which on what is the same among them is so by nature, and not by chance."""
_FEW_USERS = 10
"""Users of fewer different ids may be something else, such as kinds of devices."""
_SEVERAL = 2
"""Rows a value from which on, at the mean, values that have one time each are those of requests."""


class Table(NamedTuple):
    """A source's columns by name, its times, that of the serving first, and ids that have several rows each, all at one time."""

    source: Source
    columns: dict[str, Column]
    times: list[TimeGuess]
    at_once: list[str]

    @property
    def height(self) -> int:
        """How many rows were looked at."""
        return max((len(column.values) for column in self.columns.values()), default=0)

    def named(self, known: frozenset[str]) -> list[Column]:
        """The columns of ids whose name has one of some words, and none for kinds of things; those that are called ids first."""
        named = [each for each in self.columns.values() if names(each.name, known) and not names(each.name, KINDS)]
        found = [each for each in named if self.can_name(each)]
        return sorted(found, key=lambda each: (not is_id(each.name), len(words(each.name))))

    def can_name(self, column: Column) -> bool:
        """Whether a column's values may be keys: integers or texts that differ, and no times."""
        has_ids = column.ids is not None and column.kind in ("integers", "texts")
        return has_ids and column.distinct > 1 and not self._is_time(column)

    def _is_time(self, column: Column) -> bool:
        return any(column.name == time.name for time in self.times)

    @property
    def user(self) -> Column | None:
        """The column that names the user; one of few different ids only if there is no other."""
        found = [each for each in self.named(USERS) if is_id(each.name)]
        return min(found, key=self.is_of_few, default=None)

    def is_of_few(self, column: Column) -> bool:
        """Whether a column has few different ids for one of users."""
        return self.height >= EVIDENCE and column.distinct < _FEW_USERS

    @property
    def item(self) -> Column | None:
        """The column that names the item: by its name, else the ids of which most differ, also within a request."""
        found = [each for each in self.named(ITEMS) if is_id(each.name)]
        taken = {each.name for each in (self.user, *self.named(REQUESTS)) if each is not None} | {*self.at_once}
        if not found:
            others = [each for each in self.columns.values() if self.can_name(each) and is_id(each.name)]
            found = [each for each in others if each.name not in taken and not each.is_unique]
            if self.at_once:
                requests = groups_of([self.columns[self.at_once[0]]])
                found = [each for each in found if not is_same_within(requests, each)]
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


def apart(table: Table, now_ms: int) -> tuple[Table, Table] | None:
    """Return the rows of a table that say that something was shown, and those of what was done; None if it has not both."""
    column = table.action
    if column is None:
        return None
    values = [str(value) for value in column.present.unique().to_pylist()]
    shown = [value for value in values if words(value) and set(words(value)) <= SHOWN]
    done = [value for value in values if value and value not in shown]
    return (_those(table, column, shown, now_ms), _those(table, column, done, now_ms)) if shown and done else None


def _those(table: Table, column: Column, values: list[str], now_ms: int) -> Table:
    """The rows of a table that have one of some values, as a source of their own."""
    when = WhenEquals(column=column.name, equals=values)
    own = table.source.rows
    rows = _rows(table, own.table.filter(pa.array(equal(own, when))))
    source = table.source._replace(rows=rows, file=table.source.file.model_copy(update={"when": when}))
    return _table(source, rows, now_ms)


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
    found = Table(source, columns, of_serving(times), [])
    return found._replace(at_once=_at_once(found)) if times else found


def _at_once(table: Table) -> list[str]:
    """The ids, neither of users nor of items by their names, that have several rows each, all at one time; the fewest first."""
    time = Column(table.times[0].name, table.times[0].at)
    found = []
    for column in table.columns.values():
        if not is_id(column.name) or names(column.name, USERS | ITEMS | KINDS) or not table.can_name(column):
            continue
        is_several = column.distinct >= _MOST_ACTIONS and column.distinct * _SEVERAL <= len(column.values)
        if is_several and not column.missing and is_same_within(groups_of([column]), time):
            found.append(column)
    return [column.name for column in sorted(found, key=lambda each: each.distinct)]


def is_same_within(groups: Ids, column: Column) -> bool:
    """Whether a column has one value in all rows of each group."""
    values = column.ids if column.ids is not None else column.row_numbers
    if column.kind == "lists" or (column.ids is None and not len(column.numbers)):
        return False
    _, codes = np.unique(values, return_inverse=True)
    least: Ids = np.full(int(groups.max(initial=0)) + 1, np.iinfo(np.int64).max)
    most: Ids = np.full(len(least), -1)
    np.minimum.at(least, groups, codes)
    np.maximum.at(most, groups, codes)
    return bool((least >= most).all())


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
