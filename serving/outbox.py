"""What was served and what was done, on its way to the log: bounded, and never in the way of an answer."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import NamedTuple


class Outgoing(NamedTuple):
    """A record for ``topic``; ``make`` gives its bytes, later, by whoever sends it."""

    topic: str
    key: str
    make: Callable[[], bytes]


class Outbox:
    """Holds at most ``limit`` records; what comes when it is full is dropped, and counted by topic.

    Any thread may offer while one takes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: deque[Outgoing] = deque()
        self.sent: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._waiting)

    def offer(self, record: Outgoing) -> bool:
        """Whether there was room for a record."""
        if len(self._waiting) >= self._limit:
            self.dropped[record.topic] += 1
            return False
        self._waiting.append(record)
        return True

    def room(self, count: int) -> bool:
        """Whether there is room for so many."""
        return len(self._waiting) + count <= self._limit

    def take(self, limit: int) -> list[Outgoing]:
        """Up to ``limit`` records, oldest first."""
        return [self._waiting.popleft() for _ in range(min(limit, len(self._waiting)))]
