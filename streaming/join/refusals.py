"""Says in the log what joiners refuse: a dead letter nobody looks for is as good as lost."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from streaming.clock import Clock
from streaming.records.events import DeadLetter

_log = logging.getLogger("minutely.join")
_EVERY_MS = 60_000


class RefusalLog:
    """Of each reason, one line a minute at most: how many dead letters since the last one, and one of them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._said_at: dict[str, int] = {}
        self._unsaid = Counter[str]()

    def add(self, letters: Sequence[DeadLetter]) -> None:
        """Note letters that brokers have."""
        self._unsaid.update(letter.reason for letter in letters)
        now_ms = self._clock.elapsed_ms()
        for letter in letters:
            reason = letter.reason
            if reason in self._said_at and now_ms - self._said_at[reason] < _EVERY_MS:
                continue
            self._said_at[reason] = now_ms
            _log.warning(
                "%d dead letters `%s`, such as %s/%d, offset %d: %s; `minutely dead-letters` lists them",
                self._unsaid.pop(reason), reason, letter.topic, letter.partition, letter.offset, letter.detail,
            )  # fmt: skip
