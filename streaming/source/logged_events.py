"""A log as it was read: impressions and engagements in the order of event time, and its own labels, which metrics use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from streaming.features.columns import Columns, Ids
from streaming.live.core import KeysKept
from streaming.records.labels import Label
from streaming.source.rows.rejects import Reject

Bools: TypeAlias = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Engagements:
    """m engagements in the order of ``happened_at`` (int64 ms); ``row`` is the impression's, -1 without an impression."""

    happened_at: Ids
    row: Ids
    action: npt.NDArray[np.int32]
    actions: list[str]
    value: npt.NDArray[np.float64]
    request_id: pa.Array
    impression_id: pa.Array

    def __len__(self) -> int:
        return len(self.happened_at)


@dataclass(frozen=True)
class LoggedEvents:
    """A log of n impressions in r requests, in the order of ``served_at``.

    ``starts`` int64 [r + 1]: the impressions of request i are rows ``starts[i]`` to ``starts[i + 1]``; ``served_at``
    int64 [r] in ms, that of a request's first row, and ``spread`` int64 [r], how much later its last row was;
    ``request_of_row`` int64 [n]. ``matched`` is the share of impressions with a row of each side table, ``missing`` that without
    a value of each feature. ``rejects`` are rows that could not be used, ``more_rejects`` how many more there are, by reason;
    ``empty`` is how many rows of lists have no items, ``mixed`` how many requests have impressions of several sources, and the id
    of one; ``live`` is how many keys each definition of live features has in the end.

    Its arrays may be on disk: ``release`` gives back the memory of what was read of them.
    """

    starts: Ids
    served_at: Ids
    spread: Ids
    request_of_row: Ids
    request_ids: pa.Array
    impression_ids: pa.Array
    features: Columns
    engagements: Engagements
    matched: Mapping[str, float]
    missing: Mapping[str, float]
    rejects: list[Reject]
    more_rejects: Counter[str]
    empty: int
    mixed: tuple[int, str]
    release: Callable[[], None]
    live: Mapping[str, KeysKept] = field(default_factory=dict)

    @property
    def impressions(self) -> int:
        """The number of impressions."""
        return len(self.request_of_row)

    @property
    def requests(self) -> int:
        """The number of requests."""
        return len(self.served_at)

    def delays(self) -> Ids:
        """Return how long after the serving each engagement happened, int64 [m] ms; meaningless without an impression."""
        return self.engagements.happened_at - self.served_at[self.request_of_row[np.maximum(self.engagements.row, 0)]]

    def of_action(self, action: str | None) -> Bools:
        """Return which engagements are an action on an impression, not before it was served; bool [m]."""
        events = self.engagements
        code = events.actions.index(action) if action in events.actions else -1
        found: Bools = (events.row >= 0) & (events.action == code) & (self.delays() >= 0)
        return found

    def positive(self, label: Label) -> Bools:
        """Return which engagements make a label positive, or give its value, at any time; bool [m]."""
        least = -np.inf if label.min_value is None else label.min_value
        return self.of_action(label.action) & (self.engagements.value >= least)

    def truth(self, label: Label) -> npt.NDArray[np.float32]:
        """Return a label by the whole log, regardless of its window and of what decided it: float32 [n]."""
        events, wanted = self.engagements, self.positive(label)
        out = np.zeros(self.impressions, np.float32)
        # Backwards, so that the event that counts is written last: the first one; at equal times, the largest value.
        order = np.lexsort((-events.value[wanted], events.happened_at[wanted]))[::-1]
        values = np.clip(events.value, *label.bounds)
        out[events.row[wanted][order]] = values[wanted][order] if label.is_value else 1.0
        return out
