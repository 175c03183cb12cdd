"""When the examples of an epoch happened, were decided, read and trained on, until its publication makes delays of them."""

from __future__ import annotations

import numpy as np

from paramserver.learned import Delays, Learned, Times

_TOGETHER = 1 << 16


class EpochTimes:
    """Collects times in ms; memory is bounded by how many different ones an epoch has, not by its examples."""

    def __init__(self) -> None:
        self.newest_at = 0
        self._clear()

    def _clear(self) -> None:
        self._examples = 0
        self._happened, self._decided = _Counted(), _Counted()
        self._join, self._train, self._trained = _Counted(), _Counted(), _Counted()

    def add(self, happened: Times, decided: Times, read_at: int, begun_at: int, trained_at: int) -> None:
        """Examples that were read at ``read_at``, a time of day as their own event times (int64 [n]) are, and trained on from
        ``begun_at`` to ``trained_at``, which are elapsed times."""
        count = len(decided)
        if not count:
            return
        self.newest_at = max(self.newest_at, int(happened.max()))
        self._examples += count
        self._happened.add(happened)
        self._decided.add(decided)
        self._join.add(read_at - decided)
        self._train.add(np.array([trained_at - begun_at]), count)
        self._trained.add(np.array([trained_at]), count)

    def take(self, now_ms: int, elapsed_ms: int) -> Learned:
        """What came together since the last call, as published now, by the time of day and by elapsed time."""
        learned = Learned(
            newest_at=self.newest_at,
            examples=self._examples,
            event=self._happened.until(now_ms),
            decided=self._decided.until(now_ms),
            join=Delays.of(*self._join.counted()),
            train=Delays.of(*self._train.counted()),
            publish=self._trained.until(elapsed_ms),
        )
        self._clear()
        return learned


class _Counted:
    """Numbers and how often each occurred."""

    def __init__(self) -> None:
        self._values: list[Times] = []
        self._counts: list[Times] = []
        self._held = 0

    def add(self, values: Times, each: int = 1) -> None:
        """Count each of ``values`` (int64 [n]) ``each`` times."""
        self._values.append(values)
        self._counts.append(np.full(len(values), each, np.int64))
        self._held += len(values)
        if self._held > _TOGETHER:
            values, counts = self.counted()
            self._values, self._counts, self._held = [values], [counts], 0

    def counted(self) -> tuple[Times, Times]:
        """Different values ascending, and their counts."""
        if not self._values:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        values, place = np.unique(np.concatenate(self._values), return_inverse=True)
        return values, np.bincount(place, np.concatenate(self._counts)).astype(np.int64)

    def until(self, now_ms: int) -> Delays:
        """The delays from each to now."""
        values, counts = self.counted()
        return Delays.of(now_ms - values, counts)
