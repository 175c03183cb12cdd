"""What a joiner hands to those who keep live features: servings and first actions, by the keys of each definition."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from streaming.features.columns import Ids
from streaming.features.kinds import Feature
from streaming.join.decided import gather
from streaming.join.spec import LiveOutput
from streaming.live.columns import are_keys, kept_ids, keys_of
from streaming.live.core import FIRST_ACTION, SERVED, Happened
from streaming.live.interactions import interactions_records
from streaming.live.spec import actions_of, counts_servings, fields_of
from streaming.records.events import Request

_THING_BYTES = 25


class LiveEvents:
    """Collects what happened until `drain`; requests are in the form of the config."""

    def __init__(self, live: LiveOutput, features: Mapping[str, Feature], partition: int) -> None:
        self._spec, self._partitions = live
        self._partition = partition
        self._identities = self._spec.identities(features)
        self._codes = {action: FIRST_ACTION + at for at, action in enumerate(self._spec.windows)}
        definitions = dict(self._spec.settings.definitions())
        self._parts = {name: (each.key, fields_of(each)) for name, each in definitions.items()}
        self._features = {part: features[part] for key, fields in self._parts.values() for part in (*key, *fields)}
        self._uses = {
            name: np.array([SERVED] * counts_servings(each) + [self._codes[action] for action in actions_of(each)])
            for name, each in definitions.items()
        }
        self._bytes_each = sum(_THING_BYTES + 8 * len(fields) for _, fields in self._parts.values())
        self._begin()

    def _begin(self) -> None:
        self._requests: dict[int, Request] = {}
        self._starts: dict[int, int] = {}
        self._rows: list[range] = []
        self._what: list[int] = []
        self._at: list[int] = []
        self._next = 0

    def served(self, request: Request) -> int:
        """Note that a request was served. Return the bytes that this takes."""
        start, count = self._start_of(request), len(request.impression_ids)
        return self._add(range(start, start + count), SERVED, request.served_at)

    def acted(self, request: Request, index: int, action: str, at: int) -> int:
        """Note the first ``action`` on an impression of a request, if it counts. Return the bytes that this takes."""
        if (code := self._codes.get(action)) is None:
            return 0
        row = self._start_of(request) + index
        return self._add(range(row, row + 1), code, at)

    def _start_of(self, request: Request) -> int:
        name = id(request)  # kept until then, so no other has it
        if name not in self._requests:
            self._requests[name], self._starts[name] = request, self._next
            self._next += len(request.impression_ids)
        return self._starts[name]

    def _add(self, rows: range, what: int, at: int) -> int:
        self._rows.append(rows)
        self._what.append(what)
        self._at.append(at)
        return len(rows) * self._bytes_each

    def drain(self) -> list[tuple[int, bytes]]:
        """Return the records of what was noted, each with its partition, and forget it."""
        if not self._rows:
            return []
        requests = list(self._requests.values())
        counts = [len(rows) for rows in self._rows]
        rows: Ids = np.concatenate([np.arange(each.start, each.stop) for each in self._rows])
        what = np.repeat(np.array(self._what, np.int32), counts)
        at: Ids = np.repeat(np.array(self._at, np.int64), counts)
        served_at = np.repeat(
            np.array([each.served_at for each in requests], np.int64), [len(each.impression_ids) for each in requests]
        )[rows]
        columns = gather(self._features, requests, rows)
        happened = {}
        for name, (key, fields) in self._parts.items():
            parts: list[Ids] = [np.asarray(columns[part], np.int64) for part in key]
            chosen = are_keys(parts) & np.isin(what, self._uses[name])
            keys = keys_of([ids[chosen] for ids in parts])
            ids = kept_ids([np.asarray(columns[part], np.int64)[chosen] for part in fields], len(keys))
            happened[self._identities[name]] = Happened(keys, what[chosen], at[chosen], served_at[chosen], ids)
        totals = np.bincount(what - SERVED, minlength=1 + len(self._codes)).astype(np.int64)
        self._begin()
        return list(interactions_records(list(self._codes), happened, totals, self._partition, self._partitions))
