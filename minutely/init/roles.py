"""Which file holds impressions, which engagements, and which say more of users or items; and what names a request."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from basis.problems import Problem, Problems
from minutely.init.profile import Column, overlap
from minutely.init.slates import Slate, slate_of
from minutely.init.sources import ALIKE, ROWS
from minutely.init.tables import EVIDENCE, Table, apart, exploded, groups_of, joined
from minutely.init.times import TimeGuess
from minutely.init.words import AMOUNTS, ITEMS, PAST, PLACES, RATINGS, REQUESTS, identifier, is_id, names, words
from minutely.logs.log_mistakes import LEAST_SPREAD_MS

_LIKELY = 0.05
"""The share of rows with a key of another table from which on it is one; of a table that was read in part, any share is."""
_FEW_AGAIN = 0.1
"""The share of rows that may name an impression of their request again: more are no mistakes."""
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
    """A file of events, and its columns by what they are; ``action`` is the column that names it, or what every row is."""

    table: Table
    time: TimeGuess
    request: list[str]
    impression: list[str]
    action: Column | str

    @property
    def actions(self) -> np.ndarray[tuple[int, ...], np.dtype[np.object_]]:
        """The action of each row that was looked at, None where it is missing."""
        if isinstance(self.action, str):
            return np.full(self.table.height, self.action, object)
        return np.asarray(self.action.values.cast("string").to_numpy(zero_copy_only=False), object)

    @property
    def amount(self) -> Column | None:
        """The column of values, such as what was paid."""
        for column in self.table.columns.values():
            if column.kind in ("integers", "numbers") and names(column.name, AMOUNTS | RATINGS | {"price"}):
                return column
        return None


@dataclass
class Layout:
    """What the files are: those of impressions are ``parts``, their rows together ``impressions``. ``unsure`` says of a part of the
    config what may be otherwise; ``unused`` why a file is not used."""

    parts: list[Table]
    impressions: Table
    time: TimeGuess
    slate: Slate | None
    user: Column | None
    item: Column | None
    request: list[str] | None = None
    impression: list[str] | None = None
    engagements: list[Engagements] = field(default_factory=list)
    sides: list[Side] = field(default_factory=list)
    unsure: dict[str, str] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)

    def requests(self) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        """The request of each row that was looked at, as numbers from 0 on."""
        if self.request is None:
            return np.arange(self.impressions.height)
        return groups_of([self.impressions.columns[name] for name in self.request])

    @staticmethod
    def is_evident(requests: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> bool:
        """Whether so many requests have several rows that what is the same within each is so by nature."""
        return int((np.bincount(requests) > 1).sum()) >= EVIDENCE


def layout_of(tables: list[Table], now_ms: int) -> Layout:
    """Return what the tables are to each other; `Problems` where none has a time."""
    timed = [table for table in tables if table.times]
    if not timed:
        files = ", ".join(table.source.file.file for table in tables)
        allowed = "no column is a time; allowed: numbers since 1970, timestamps, texts such as 2024-01-31T12:00:00Z"
        raise Problems([Problem(files, "time", "missing", allowed)])
    slates = {table.source.file.file: slate_of(table) for table in timed}
    best = max(timed, key=lambda table: _likeness(table, tables, slates[table.source.file.file]))
    if (mixed := apart(best, now_ms)) is None:
        return _layout_of(tables, best, slates, now_ms)
    shown, done = mixed
    layout = _layout_of([shown, *(table for table in tables if table is not best)], shown, slates, now_ms)
    events = _events_of(layout, done)
    if isinstance(events, Engagements) and _are_of(layout, events):
        _take_events(layout, events)
        return layout
    layout = _layout_of(tables, best, slates, now_ms)
    assert best.action is not None and shown.source.file.when is not None
    layout.unsure["impressions"] = (
        f"{best.action.name} is not {' or '.join(shown.source.file.when.equals)} in {done.height:,} of {best.height:,} rows; "
        "where these are no impressions, `when` chooses those that are"
    )
    return layout


def _layout_of(tables: list[Table], best: Table, slates: dict[str, Slate | None], now_ms: int) -> Layout:
    """Return what the tables are, of which one is known to hold impressions."""
    timed = [table for table in tables if table.times]
    slate = slates[best.source.file.file]
    layout = _of_parts([best], slate, now_ms)
    refused: dict[str, str] = {}
    for other in timed:
        if other is not best and slates[other.source.file.file] == slate and _are_alike(best, other):
            joint = _of_parts([*layout.parts, other], slate, now_ms)
            if (why := _why_apart(joint, now_ms)) is None:
                layout = joint
            else:
                refused[other.source.file.file] = why
    layout.unused |= refused
    own = {part.source.file.file for part in layout.parts}
    layout.parts = [table for table in timed if table.source.file.file in own]
    for other in tables:
        if other.source.file.file not in own | refused.keys():
            _find_place(layout, other)
    if not layout.engagements:
        layout.impression = None
    return layout


def _of_parts(parts: list[Table], slate: Slate | None, now_ms: int) -> Layout:
    """Return a layout of the files of impressions alone."""
    whole = parts[0] if len(parts) == 1 else joined(parts, now_ms)
    table = whole if slate is None else exploded(whole, slate.explode, now_ms)
    item = table.columns[slate.shown] if slate is not None else table.item
    layout = Layout(parts, table, table.times[0], slate, table.user, item)
    _say_times(layout)
    _say_doubts(layout)
    _find_requests(layout, whole)
    return layout


def _are_alike(table: Table, other: Table) -> bool:
    """Whether a file holds impressions as another does: most of its columns, with the same time, user and item."""
    mine, its = (
        [each.times[0].setting, *(column and column.name for column in (each.user, each.item, each.action))]
        for each in (table, other)
    )
    common = [name for name in table.columns if name in other.columns]
    types = [[each.source.rows.table.schema.field(name).type for name in common] for each in (table, other)]
    is_like = len(common) >= ALIKE * len(table.columns | other.columns) and other.one_action is None
    return is_like and mine == its and types[0] == types[1] and table.source.file.decimal == other.source.file.decimal


def _why_apart(layout: Layout, now_ms: int) -> str | None:
    """Why the last of several files of impressions cannot be used beside the others, None where it can."""
    if layout.request is None:
        return "impressions of several files need columns that name their request"
    whole = joined(layout.parts, now_ms)
    requests = groups_of([whole.columns[name] for name in layout.request])
    before = sum(part.height for part in layout.parts[:-1])
    if np.isin(requests[before:], requests[:before]).any():
        return f"it has requests of {', '.join(part.source.file.file for part in layout.parts[:-1])}"
    return None


def _likeness(table: Table, tables: list[Table], slate: Slate | None) -> tuple[bool, int, int]:
    """How much a table is like one of impressions."""
    is_events = (table.action or table.one_action) is not None and any(
        len(_shared(table, other)) > 1 and (other.action or other.one_action) is None and other.times
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


def _say_doubts(layout: Layout) -> None:
    """Say what was taken for users or items because there is no better column."""
    user, item = layout.user, layout.item
    if user is not None and layout.impressions.is_of_few(user):
        layout.unsure["user"] = f"{user.distinct} different values are few for users"
    if item is not None and layout.slate is None and not names(item.name, ITEMS):
        layout.unsure["item"] = "taken for the item, since its ids differ most"


def _find_requests(layout: Layout, before: Table) -> None:
    """The columns that name a request: one that says so and whose rows are together in time, one whose rows come several at one
    time, else user and time."""
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
    if before.at_once:
        layout.request = before.at_once[:1]
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
    return bool((spread <= LEAST_SPREAD_MS).all())


def _find_place(layout: Layout, table: Table) -> None:
    """Say what another table is: engagements, a side table, or nothing that can be used."""
    file, own = table.source.file.file, layout.impressions
    same = set(table.columns) == set(own.columns)
    events = None if same else _events_of(layout, table)
    side = None if same or isinstance(events, Engagements) else _side_of(layout, table)
    if same:
        layout.unused[file] = f"the same columns as {own.source.file.file}; the larger of the two is used"
    elif isinstance(events, Engagements):
        _take_events(layout, events)
    elif side is not None:
        layout.sides.append(side)
    else:
        layout.unused[file] = (
            events
            if isinstance(events, str)
            else "it has no key, a column of the impressions with a value of its own in each row"
        )


def _take_events(layout: Layout, events: Engagements) -> None:
    if events.request != layout.request:
        layout.unsure.pop("request", None)
    layout.engagements.append(events)
    layout.request, layout.impression = events.request, events.impression


def _are_of(layout: Layout, events: Engagements) -> bool:
    """Whether most engagements have an impression."""
    keys = [*events.request, *events.impression]
    group = groups_of(
        [Column(name, _both(layout.impressions.columns[name], events.table.columns[name])) for name in keys]
    )
    count = layout.impressions.height
    return bool(np.isin(group[count:], group[:count]).mean() >= _SURE)


def _both(one: Column, other: Column) -> pa.Array:
    """The values of two columns, one after the other."""
    kind = one.values.type
    return pa.concat_arrays([one.values, other.values.cast(kind)])


def _events_of(layout: Layout, table: Table) -> Engagements | str | None:
    """Engagements in a table; a text that says why they cannot be used; None where it holds none."""
    if not table.times or not layout.request:
        return None
    own = layout.impressions.columns
    shared = _shared(layout.impressions, table)
    request = _shared_request(layout, shared)
    action = table.action or table.one_action
    if request is None:
        told = f"; {', '.join(shared)} are in both" if shared else ""
        said = f"events without the columns that name a request, {', '.join(layout.request)}{told}"
        return said if action is not None else None
    places = [name for name in own if name in table.columns and names(name, PLACES)]
    item = [layout.item.name] if layout.item is not None and layout.item.name in shared else []
    alone = [name for name in request if own[name].is_unique]
    keys, again = _names_impressions(layout, request, [item, places, item + places, alone])
    if keys is None:
        said = f"; {', '.join(again)} come again in many requests" if again else ""
        return (
            f"events without a column that names an impression within its request{said}" if action is not None else None
        )
    if action is None:
        return "events without a column that names their action, such as click" if len(shared) > 1 else None
    if layout.engagements and keys != layout.impression:
        return f"its impressions are named by {', '.join(keys)}; those of other events by {', '.join(layout.impression or [])}"
    return Engagements(table, table.times[0], request, keys, action)


def _shared_request(layout: Layout, shared: list[str]) -> list[str] | None:
    """The columns that name a request, among those that events have, too: those that are known, else one whose rows are together
    in time, the first with the fewest ids."""
    request = layout.request or []
    if all(name in shared for name in request):
        return request
    if layout.engagements or layout.slate is not None or len(layout.parts) > 1:
        return None  # others depend on what names requests
    known = {column.name for column in (layout.user, layout.item) if column is not None}
    own = layout.impressions.columns
    others = sorted((name for name in shared if name not in known), key=lambda name: own[name].distinct)
    return next(([name] for name in others if _are_together(layout, [name])), None)


def _names_impressions(
    layout: Layout, request: list[str], candidates: list[list[str]]
) -> tuple[list[str] | None, list[str]]:
    """Return the columns that name an impression within its request, the first that do in all rows, else in nearly all; None if
    there are none, and then those that come again."""
    given = [keys for keys in candidates if keys]
    again = [_again(layout, request + keys) for keys in given]
    best = min(range(len(given)), key=again.__getitem__, default=None)
    if best is None:
        return None, []
    rows = layout.impressions.height
    if again[best] > _FEW_AGAIN * rows:
        return None, given[best]
    if again[best]:
        layout.unsure["impression"] = (
            f"given twice within a request in {again[best]:,} of {rows:,} rows, which a replay refuses"
        )
    return given[best], []


def _again(layout: Layout, names_: list[str]) -> int:
    """How many rows have what a row before them has in these columns."""
    group = groups_of([layout.impressions.columns[name] for name in names_])
    return len(group) - len(np.unique(group))


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
