"""Whether our clock agrees with the brokers': an input that was read to its end counts with ours, its records with theirs."""

from __future__ import annotations

import logging

_LEAST_MS = 100
"""Clocks that are set by others, as they should be, differ by some milliseconds."""
_FAST = (
    "%s/%d: our clock is ahead of the broker's by %.1f s or more (or its record could not be read for so long: a transaction was "
    "open, or a replica slow); allowed: join.max_ahead (at least 0.1 s), %.1f s. Windows close early, and what misses them is a "
    "dead letter. Set the clocks."
)
_SLOW = (
    "%s/%d: our clock is behind the broker's by %.1f s or more; allowed: join.max_ahead (at least 0.1 s), %.1f s. "
    "Windows close that much late. Set the clocks."
)


class ClockCheck:
    """Compares our clock with the stamps of one partition's records, as they come.

    What comes after an end that we saw was appended after we looked, so an earlier stamp means that our clock is fast. It warns
    once, when ours is off by more than ``allowed_ms``, and by more than clocks that are right are.
    """

    def __init__(self, partition: int, allowed_ms: int, log: logging.Logger) -> None:
        self._log = log
        self._partition = partition
        self._allowed_ms = max(allowed_ms, _LEAST_MS)
        self._ends_seen_at: dict[str, int] = {}
        self._has_warned = False
        self.ahead_ms = 0
        """By how much, at least, our clock is ahead of the broker's, by the last record; negative if it is behind."""

    def saw_end(self, topic: str, as_of_ms: int) -> None:
        """Note that an input was read to its end as of a time of our clock."""
        self._ends_seen_at[topic] = as_of_ms

    def forget(self) -> None:
        """Forget the ends: older records may come again."""
        self._ends_seen_at.clear()

    def came(self, topic: str, appended_at: int, now_ms: int) -> None:
        """Take the next record of an input, which came by ``now_ms`` of our clock."""
        seen_at = self._ends_seen_at.get(topic, appended_at)
        self.ahead_ms = max(0, seen_at - appended_at) + min(0, now_ms - appended_at)
        if abs(self.ahead_ms) > self._allowed_ms and not self._has_warned:
            self._has_warned = True
            text = _FAST if self.ahead_ms > 0 else _SLOW
            self._log.warning(text, topic, self._partition, abs(self.ahead_ms) / 1000, self._allowed_ms / 1000)
