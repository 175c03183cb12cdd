"""Rows that hold a list of items, and what was clicked of them: another list, one item, or a 0 or 1 for each."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from minutely.init.profile import Column
from minutely.init.tables import Table
from minutely.init.words import ACTIONS, ITEMS, SLATES, names
from streaming.features.arrow_columns import lists_of
from streaming.features.columns import Ids, Ragged
from streaming.source.settings import Explode

_NEARLY_ALL = 0.99


class Slate(NamedTuple):
    """The lists that become a row an item, and the column that says which were clicked: a list beside them, or one of them."""

    explode: Explode
    clicked: str
    split: str | None

    @property
    def shown(self) -> str:
        """The column of the items."""
        return self.explode.columns[0]

    @property
    def is_flag(self) -> bool:
        """Whether each item has a 0 or 1 of its own."""
        return self.clicked in self.explode.columns


def slate_of(table: Table) -> Slate | None:
    """Return the slate of a table, None where a row is one impression."""
    separators = {name: column.separator for name, column in table.columns.items()}
    lists = {
        name: found
        for name, column in table.columns.items()
        if column.kind == "lists" or separators[name] is not None
        if (found := _ids(column, separators[name])) is not None
    }
    for shown in sorted(lists, key=lambda name: (not names(name, SLATES), not names(name, ITEMS))):
        if names(shown, SLATES | ITEMS) and np.diff(lists[shown].offsets).max(initial=0) > 1:
            slate = _with_clicks(table, shown, lists, separators)
            if slate is not None:
                return slate
    return None


def _with_clicks(table: Table, shown: str, lists: dict[str, Ragged], separators: dict[str, str | None]) -> Slate | None:
    offsets = lists[shown].offsets
    beside = [
        name
        for name, found in lists.items()
        if name != shown and np.array_equal(found.offsets, offsets) and separators[name] in (None, separators[shown])
    ]
    beside += [name for name in table.columns if name not in lists and _has_as_many(table.columns[name], offsets)]
    explode = Explode(columns=[shown, *beside], split=separators[shown])
    for name, column in table.columns.items():
        if name == shown or not names(name, ACTIONS):
            continue
        if name in beside:
            if name in lists and set(np.unique(lists[name].values).tolist()) == {0, 1}:
                return Slate(explode, name, None)
            continue
        is_list = name in lists
        clicked = lists[name] if is_list else _single(column)
        if clicked is not None and _are_among(clicked, lists[shown]):
            split = separators[name] if is_list else separators[shown] or ","
            return Slate(explode, name, split)
    return None


def _ids(column: Column, separator: str | None) -> Ragged | None:
    """A column's lists; None where they hold no ids, as numbers with fractions are."""
    try:
        found, broken = lists_of(column.as_lists(separator).values)
    except (TypeError, ValueError):
        return None
    return found if broken is None else None


def _has_as_many(column: Column, offsets: Ids) -> bool:
    """Whether a column of lists that are no ids, such as prices, has an item for each one shown."""
    if column.kind != "lists":
        return False
    return bool(np.array_equal(np.asarray(column.values.offsets), offsets))


def _single(column: Column) -> Ragged | None:
    """A column of one id a row as lists, which are empty where it is missing."""
    if column.ids is None or column.kind not in ("integers", "texts"):
        return None
    there = np.asarray(column.values.is_valid().to_numpy(zero_copy_only=False))
    return Ragged(np.concatenate((np.zeros(1, np.int64), np.cumsum(there))), column.ids[there])


def _are_among(some: Ragged, shown: Ragged) -> bool:
    """Whether nearly all items of lists are in another list of the same row, which has more."""
    if not len(some.values) or len(some.values) >= len(shown.values):
        return False
    _, codes = np.unique(np.concatenate((some.values, shown.values)), return_inverse=True)
    size = int(codes.max()) + 1
    own, other = (np.repeat(np.arange(len(each.offsets) - 1), np.diff(each.offsets)) * size for each in (some, shown))
    found = np.isin(own + codes[: len(some.values)], other + codes[len(some.values) :])
    return bool(found.mean() >= _NEARLY_ALL)
