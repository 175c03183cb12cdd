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
    """Holds at most ``limit_bytes`` of records, of which those count that were taken until it is known what became of them; what
    comes when it is full is dropped. ``sent`` and ``dropped`` count by topic.

    Any thread may offer, while one thread takes and reports what became of it.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._waiting: Buffer[Outgoing] = Buffer("records for the log (serve.log_buffer_bytes)", limit_bytes)
        self.sent: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self._on_their_way = 0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def open(self) -> int:
        """How many records are neither sent nor dropped yet, taken or not."""
        return len(self._waiting) + self._on_their_way

    @property
    def size_bytes(self) -> int:
        """The memory that these records take."""
        return self._waiting.size_bytes

    def offer(self, record: Outgoing) -> None:
        """Keep a record, or count it as dropped."""
        if not self._waiting.offer(record):
            self.dropped[record.topic] += 1

    def offer_all(self, records: Sequence[Outgoing]) -> bool:
        """Take all records or none, for a sender that is told and can retry; whether they were taken."""
        return self._waiting.offer(*records)

    def take(self, size_bytes: int) -> Sequence[Outgoing]:
        """The oldest records, of ``size_bytes`` together at most, but one at least where there is any."""
        taken = self._waiting.take(size_bytes)
        self._on_their_way += len(taken)
        return taken

    def was_sent(self, topic: str, size_bytes: int) -> None:
        """The log has a record that was taken."""
        self.sent[topic] += 1
        self._settled(size_bytes)

    def was_dropped(self, topic: str, size_bytes: int) -> None:
        """The log will never have a record that was taken."""
        self.dropped[topic] += 1
        self._settled(size_bytes)

    def _settled(self, size_bytes: int) -> None:
        self._on_their_way -= 1
        self._waiting.done(size_bytes)
