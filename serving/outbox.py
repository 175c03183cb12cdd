"""What was served and what was done, on its way to the log: bounded, and never in the way of an answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from serving.buffer import Buffer

_RECORD_BYTES = 256  # the objects around a record's key and value


class Outgoing(NamedTuple):
    """A record for ``topic``, encoded."""

    topic: str
    key: str
    value: bytes

    @property
    def size_bytes(self) -> int:
        """The memory that it takes."""
        return _RECORD_BYTES + len(self.key) + len(self.value)


class Outbox:
    """Holds at most ``limit_bytes`` of records; what comes when it is full is dropped, and counted by topic.

    Any thread may offer while one takes.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._waiting: Buffer[Outgoing] = Buffer("records for the log (serve.log_buffer_bytes)", limit_bytes)
        self.sent: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def size_bytes(self) -> int:
        """The memory that waiting records take."""
        return self._waiting.size_bytes

    def offer(self, record: Outgoing) -> None:
        """Keep a record, or count it as dropped."""
        if not self._waiting.offer(record):
            self.dropped[record.topic] += 1

    def offer_all(self, records: Sequence[Outgoing]) -> bool:
        """Keep all records or none, where whoever sent them is told and can keep them; whether they were kept."""
        return self._waiting.offer(*records)

    def take(self, size_bytes: int) -> Sequence[Outgoing]:
        """The oldest records, of ``size_bytes`` together at most, but one at least where there is any."""
        return self._waiting.take(size_bytes)
