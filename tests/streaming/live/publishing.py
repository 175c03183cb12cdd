"""Who keeps live features, in this process: events go in as joiners write them, and out comes what `features` says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from streaming.features.columns import Ids
from streaming.features.ids import MISSING
from streaming.features.kinds import Feature
from streaming.live.columns import are_keys, kept_ids, keys_of
from streaming.live.core import FIRST_ACTION, SERVED, Happened, LiveCore
from streaming.live.interactions import Interactions, interactions_records
from streaming.live.published import published_keys, published_place
from streaming.live.spec import LiveSpec, fields_of
from tests.streaming.live.brute_force import Event

Records = list[tuple[int, bytes, bytes]]
"""Records, each with its partition and its key."""


class Publishing:
    """A core for each partition. `take` returns the records of what events changed."""

    def __init__(self, spec: LiveSpec, features: Mapping[str, Feature], partitions: int = 3) -> None:
        self.actions = list(spec.windows)
        self.cores = [LiveCore(spec.settings, self.actions) for _ in range(partitions)]
        self._parts = {name: (each.key, fields_of(each)) for name, each in spec.settings.definitions()}
        self._identities = spec.identities(features)
        self._names = {identity: name for name, identity in self._identities.items()}
        self._taken = 0

    def take(self, events: Sequence[Event]) -> Records:
        what = np.array(
            [SERVED if e.action is None else FIRST_ACTION + self.actions.index(e.action) for e in events], np.int32
        )
        at, counted_at = (np.array([getattr(each, name) for each in events], np.int64) for name in ("at", "counted_at"))
        happened = {}
        for name, (parts, fields) in self._parts.items():
            ids = [_ids(events, part) for part in parts]
            known = are_keys(ids)
            kept = kept_ids([_ids(events, part) for part in fields], len(events))
            columns = (keys_of(ids), what, at, counted_at, kept)
            happened[self._identities[name]] = Happened(*(column[known] for column in columns))
        totals = np.bincount(what - SERVED, minlength=1 + len(self.actions)).astype(np.int64)
        self._taken += 1
        found: Records = []
        to = self._taken % len(self.cores)
        for partition, record in interactions_records(self.actions, happened, totals, to, len(self.cores)):
            found += [(partition, *each) for each in self._note(self.cores[partition], Interactions(record))]
        return found

    def _note(self, core: LiveCore, said: Interactions) -> list[tuple[bytes, bytes]]:
        found = []
        for identity, happened in said.happened:
            name = self._names[identity]
            core.note(name, happened)
            keys = np.unique(happened.keys)
            found += list(published_keys(identity, keys, core.packed(name, keys)))
        core.totals = core.totals + np.array([said.totals.get(each, 0) for each in (None, *self.actions)])
        return [*found, published_place(3, self.actions, core.totals)]


def _ids(events: Sequence[Event], part: str) -> Ids:
    found = [event.shown.ids[part] for event in events]
    return np.array([MISSING if each is None else each for each in found], np.int64)
