"""Which file holds impressions, which engagements, and which say more of users or items; and what names a request."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from basis.problems import Problem, Problems
from minutely.init.profile import Column, overlap
from minutely.init.slates import Slate, slate_of
from minutely.init.sources import ROWS
from minutely.init.tables import Table, exploded, groups_of
from minutely.init.times import TimeGuess
from minutely.init.words import PAST, PLACES, REQUESTS, identifier, is_id, names, words

_TOGETHER_MS = 60_000
"""How far apart rows of one request may be; `minutely check` allows a minute, too."""
_LIKELY = 0.05
"""The share of rows with a key of another table from which on it is one; of a table that was read in part, any share is."""
_SURE = 0.5
_THE_ITEM = 1.5
"""How much more the key of a side table of items belongs to the item shown than to a column of the key's own name."""


class Side(NamedTuple):
    """A table with a row for each value of one of the impressions' columns."""

    name: str
    table: Table
    key: str
    on: str


class Engagements(NamedTuple):
    """A file of events, and its columns by what they are."""

    table: Table
    time: TimeGuess
    request: list[str]
    impression: list[str]
    action: Column


@dataclass
class Layout:
    """What the files are. ``unsure`` says of a part of the config what may be otherwise; ``unused`` why a file is not used."""

    impressions: Table
    time: TimeGuess
    slate: Slate | None
    user: Column | None
    item: Column | None
    request: list[str] | None = None
    impression: list[str] | None = None
    engagements: Engagements | None = None
    sides: list[Side] = field(default_factory=list)
    unsure: dict[str, str] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)

    def requests(self) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        """The request of each row that was looked at, as numbers from 0 on."""
        if self.request is None:
            return np.arange(self.impressions.height)
        return groups_of([self.impressions.columns[name] for name in self.request])


def layout_of(tables: list[Table], now_ms: int) -> Layout:
    """Return what the tables are to each other; `Problems` where none has a time."""
    timed = [table for table in tables if table.times]
    if not timed:
        files = ", ".join(table.source.file.file for table in tables)
        allowed = "no column is a time; allowed: numbers since 1970, timestamps, texts such as 2024-01-31T12:00:00Z"
        raise Problems([Problem(files, "time", "missing", allowed)])
    slates = {table.source.file.file: slate_of(table) for table in timed}
    best = max(timed, key=lambda table: _likeness(table, tables, slates[table.source.file.file]))
    slate = slates[best.source.file.file]
    table = best if slate is None else exploded(best, slate.explode, now_ms)
    item = table.columns[slate.shown] if slate is not None else table.item
    layout = Layout(table, table.times[0], slate, table.user, item)
    _say_times(layout)
    others = [each for each in tables if each is not best]
    _find_requests(layout, best)
    for other in others:
        _find_place(layout, other)
    if layout.engagements is None:
        layout.impression = None
    return layout


def _likeness(table: Table, tables: list[Table], slate: Slate | None) -> tuple[bool, int, int]:
    """How much a table is like one of impressions."""
    is_events = table.action is not None and any(
        len(_shared(table, other)) > 1 and other.action is None and other.times
        for other in tables
        if other is not table
    )
    user, item = table.user, table.item
    points = 3 * (user is not None and not user.is_unique) + 2 * (item is not None and not item.is_unique)
    points += 2 * bool(table.named(REQUESTS)) - 3 * names(table.times[0].name, PAST) + 5 * (slate is not None)
    return not is_events, points, table.source.size


def _shared(table: Table, other: Table) -> list[str]:
    """The columns of ids that two tables share by name and by values."""
    return [
        name
        for name, column in table.columns.items()
        if name in other.columns and is_id(name) and overlap(column, other.columns[name]) > 0
    ]


def _say_times(layout: Layout) -> None:
    time, others = layout.time, [each for each in layout.impressions.times[1:] if not names(each.name, PAST)]
    said = [time.unsure] if time.unsure else []
    said += ["days only: all of a day counts as at its midnight"] if time.is_of_days else []
    said += [f"another time is {each.name}" for each in others]
    if said:
        layout.unsure["time"] = "; ".join(said)


def _find_requests(layout: Layout, before: Table) -> None:
    """The columns that name a request: one that says so and whose rows are together in time, else user and time."""
    user, lists = layout.user, set() if layout.slate is None else {layout.slate.clicked, *layout.slate.explode.columns}
    again = []
    for column in before.named(REQUESTS):
        if column.name in lists or (column.is_unique and layout.slate is None):
            continue
        if _are_together(layout, [column.name]):
            layout.request = [column.name]
            return
        again.append(column.name)
        if user is not None and _are_together(layout, [user.name, column.name]):
            layout.request = [user.name, column.name]
            layout.unsure["request"] = f"{column.name} alone comes again at other times"
            return
    if layout.slate is not None:
        return
    if user is not None and not user.missing:
        layout.request = [user.name, layout.time.name]
        layout.unsure["request"] = "what one user was shown at one time; no column names requests"
        if again:
            layout.unsure["request"] += f" ({', '.join(again)} comes again at other times)"
    else:
        why = "no column names requests or users" if user is None else f"{user.name} is missing in {user.missing:.1%}"
        layout.unsure["request"] = f"{why}, so each row is a request of its own"


def _are_together(layout: Layout, request: list[str]) -> bool:
    columns = [layout.impressions.columns[name] for name in request]
    if any(column.missing for column in columns):
        return False
    at = np.asarray(layout.time.at.fill_null(0).to_numpy(zero_copy_only=False), np.int64)
    group = groups_of(columns)
    order = np.lexsort((at, group))
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    spread = np.maximum.reduceat(at[order], starts) - at[order][starts]
    return bool((spread <= _TOGETHER_MS).all())


def _find_place(layout: Layout, table: Table) -> None:
    """Say what another table is: engagements, a side table, or nothing that can be used."""
    file, own = table.source.file.file, layout.impressions
    same = set(table.columns) == set(own.columns)
    events = None if same else _events_of(layout, table)
    side = None if same or isinstance(events, Engagements) else _side_of(layout, table)
    if same:
        layout.unused[file] = f"the same columns as {own.source.file.file}; the larger of the two is used"
    elif isinstance(events, Engagements) and layout.engagements is None:
        layout.engagements = events
        layout.request, layout.impression = events.request, events.impression
    elif side is not None:
        layout.sides.append(side)
    else:
        layout.unused[file] = (
            events
            if isinstance(events, str)
            else "it has no key, a column of the impressions with a value of its own in each row"
        )


def _events_of(layout: Layout, table: Table) -> Engagements | str | None:
    """Engagements in a table; a text that says why they cannot be used; None where it holds none."""
    request = layout.request or []
    if not table.times or not request:
        return None
    own = layout.impressions.columns
    shared = _shared(layout.impressions, table)
    named = [name for name in request if name in shared]
    if named != request:
        return "events without the columns that name a request" if table.action is not None else None
    places = [name for name in own if name in table.columns and names(name, PLACES)]
    item = [layout.item.name] if layout.item is not None and layout.item.name in shared else []
    keys = next((keys for keys in (item, places, item + places) if keys and _is_unique(layout, request + keys)), None)
    if keys is None:
        return (
            "events without a column that names an impression within its request" if table.action is not None else None
        )
    if table.action is None:
        return "events without a column that names their action, such as click" if len(shared) > 1 else None
    return Engagements(table, table.times[0], request, keys, table.action)


def _is_unique(layout: Layout, names_: list[str]) -> bool:
    group = groups_of([layout.impressions.columns[name] for name in names_])
    return len(np.unique(group)) == len(group)


def _side_of(layout: Layout, table: Table) -> Side | None:
    """The key of a side table and the impressions' column that holds it: the same name first, then names that go together."""
    found: list[tuple[float, Side]] = []
    least = 0.0 if table.height >= ROWS else _LIKELY
    for key in table.columns.values():
        if not key.is_unique or not table.can_name(key):
            continue
        for column in layout.impressions.columns.values():
            share = overlap(column, key) if layout.impressions.can_name(column) else 0.0
            kin = 2.0 if key.name == column.name else 1.0 * _go_together(table.source.name, key.name, column.name)
            kin += _THE_ITEM * (kin > 0 and column is layout.item)
            is_sure = kin > 0 or (column.kind == "texts" and share >= _SURE and column.distinct > 1)
            if share > least and is_sure:
                found.append((kin + share, Side(identifier(table.source.name), table, key.name, column.name)))
    return max(found, key=lambda each: each[0])[1] if found else None


def _go_together(table: str, key: str, column: str) -> bool:
    """Whether a key is called as a column is, with its table's name or without: ``id`` of ``items`` and ``item_id``."""
    whole = {*words(key), *(word.removesuffix("s") for word in words(table))} - {"id"}
    own = set(words(column)) - {"id", "shown", "inview"}
    return is_id(column) and bool(own) and own <= whole
