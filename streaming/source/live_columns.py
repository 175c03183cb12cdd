"""The live features of a log, computed ahead: what happened and what is read, in the order of event time, through the core that
keeps them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from streaming.features.columns import Column, Ids
from streaming.features.kinds import Feature
from streaming.live.columns import are_keys, kept_ids, keys_of, live_features
from streaming.live.core import FIRST_ACTION, READ, SERVED, LiveCore, Operations
from streaming.live.settings import Sequence
from streaming.live.spec import LiveSpec, fields_of
from streaming.source.logged_events import LoggedEvents
from streaming.source.order.on_disk import FeatureColumn, Mapped

_AT_ONCE = 1 << 18
"""Impressions; or ids of lists, where there are sequences."""


def with_live(events: LoggedEvents, features: Mapping[str, Feature], spec: LiveSpec, mapped: Mapped) -> LoggedEvents:
    """Return the log with its live features among the others, in the order of ``features``.

    An impression's are as of its request's ``served_at``, of what happened before ``served_at - visible_after``.
    """
    wanted = live_features(spec, features)
    if not wanted:
        return events
    written = {name: FeatureColumn(mapped) for name in wanted}
    core = LiveCore(spec.settings, list(spec.windows))
    for operations in _Walk(events, spec).pieces():
        found = core.take(operations)
        for name, each in wanted.items():
            written[name].append(each.column(found))
        events.release()
    columns: dict[str, Column] = {**events.features, **{name: each.finish() for name, each in written.items()}}
    return replace(events, features={name: columns[name] for name in features}, live=core.kept())


class _Walk:
    """Walks a log in the order in which things count, some at a time: what is read before what happens at the same time."""

    def __init__(self, events: LoggedEvents, spec: LiveSpec) -> None:
        self._events = events
        self._after = spec.settings.visible_after
        done = events.engagements
        names = list(spec.windows)
        known = {name: code for code, name in enumerate(names)}
        self._codes = np.array([known.get(name, -1) for name in done.actions] + [-1], np.int32)
        self._windows = np.array([*spec.windows.values(), -1], np.int64)
        self._counted = np.zeros((events.impressions, len(names)), np.bool_)
        definitions = dict(spec.settings.definitions())
        self._keys = {name: [_ids(events, part) for part in each.key] for name, each in definitions.items()}
        self._ids = {name: [_ids(events, part) for part in fields_of(each)] for name, each in definitions.items()}
        longest = max((each.last for each in definitions.values() if isinstance(each, Sequence)), default=1)
        self._at_once = max(_AT_ONCE // longest, 1)

    def pieces(self) -> Iterator[Operations]:
        """Yield all reads, and what happened up to the last of them."""
        events, happened_at = self._events, self._events.engagements.happened_at
        read = served = done = 0
        while read < events.requests:
            # Whichever of the three goes furthest in so many rows ends the piece, so that none of them has many more.
            until = min(
                int(events.served_at[self._end(read) - 1]) - self._after,
                *([int(events.served_at[self._end(served) - 1])] if served < events.requests else []),
                *(
                    [int(happened_at[min(done + self._at_once, len(happened_at)) - 1])]
                    if done < len(happened_at)
                    else []
                ),
            )
            last_read = int(np.searchsorted(events.served_at, until + self._after, side="right"))
            last_served = int(np.searchsorted(events.served_at, until, side="right"))
            last_done = int(np.searchsorted(happened_at, until, side="right"))
            yield self._piece(
                slice(int(events.starts[read]), int(events.starts[last_read])),
                slice(int(events.starts[served]), int(events.starts[last_served])),
                slice(done, last_done),
            )
            read, served, done = last_read, last_served, last_done

    def _end(self, request: int) -> int:
        """Return the end of the requests from ``request`` on with about as many impressions as go at once, and at least one."""
        starts = self._events.starts
        end = int(np.searchsorted(starts, int(starts[request]) + self._at_once, side="right")) - 1
        return max(end, request + 1)

    def _piece(self, read: slice, served: slice, done: slice) -> Operations:
        accepted = self._accepted(done)
        events = self._events
        rows = np.concatenate((np.arange(read.start, read.stop), np.arange(served.start, served.stop), accepted.row))
        served_at = events.served_at[events.request_of_row[rows]]
        reads, servings = read.stop - read.start, served.stop - served.start
        what = np.full(len(rows), SERVED, np.int32)
        what[:reads] = READ
        what[reads + servings :] = FIRST_ACTION + accepted.code
        at = served_at.copy()
        at[reads + servings :] = accepted.at
        counts_from = at.copy()
        counts_from[:reads] -= self._after
        order = np.argsort(counts_from, kind="stable")
        rows, what = rows[order], what[order]
        keys, has_key, ids = {}, {}, {}
        for name, parts in self._keys.items():
            found = [part[rows] for part in parts]
            keys[name], has_key[name] = keys_of(found), are_keys(found)
            ids[name] = kept_ids([field[rows] for field in self._ids[name]], len(rows))
        return Operations(what, at[order], served_at[order], keys, has_key, ids)

    def _accepted(self, done: slice) -> _Accepted:
        """Return the engagements that a joiner accepts: the first of each action on an impression, within its window."""
        events = self._events
        engagements = events.engagements
        row, at, code = engagements.row[done], engagements.happened_at[done], self._codes[engagements.action[done]]
        delay = at - events.served_at[events.request_of_row[np.maximum(row, 0)]]
        usable = np.flatnonzero((row >= 0) & (code >= 0) & (delay >= 0) & (delay <= self._windows[code]))
        usable = usable[~self._counted[row[usable], code[usable]]]
        _, first = np.unique(row[usable] * len(self._windows) + code[usable], return_index=True)
        chosen = usable[np.sort(first)]
        self._counted[row[chosen], code[chosen]] = True
        return _Accepted(row[chosen], at[chosen], code[chosen])


class _Accepted(NamedTuple):
    """Engagements that count: the impression of each, when it happened (ms), and the code of its action."""

    row: Ids
    at: Ids
    code: npt.NDArray[np.int32]


def _ids(events: LoggedEvents, name: str) -> Ids:
    column = events.features[name]
    assert isinstance(column, np.ndarray) and column.dtype == np.int64, name
    ids: Ids = column.view(np.int64)
    return ids
