"""A topic of Kafka as a log that is read: committed records only, with their offsets."""

from __future__ import annotations

import time
from collections import deque

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import LogTruncationError, OffsetOutOfRangeError

from basis.problems import GapError
from streaming.kafka.settings import RETRY_BACKOFF_MS, KafkaSettings
from streaming.log import Record

_BUFFERED_BYTES = 32 << 20
_RECORDS_AT_ONCE = 500
_BLOCK_MS = 20_000
_LAG_SECONDS = 1.0
_FETCH_BYTES = 8 << 20


def consumer_of(settings: KafkaSettings, group: str | None = None, *, reset: str = "earliest") -> KafkaConsumer:
    """A consumer that takes partitions by hand and commits nothing; with ``reset`` none, `poll` fails where records are gone."""
    return KafkaConsumer(
        **settings.python_client(),
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset=reset,
        isolation_level="read_committed",
        enable_incremental_fetch_sessions=False,  # with them, a partition that was paused is not always fetched again
        fetch_max_bytes=_FETCH_BYTES,
        max_partition_fetch_bytes=_FETCH_BYTES,
        retry_backoff_ms=RETRY_BACKOFF_MS * 4,
    )


class KafkaLog:
    """`LogReader` of all partitions of one topic. `fill` reads ahead, up to a bound; `read` takes what is there.

    An offset that the topic does not have is a `GapError`: going on elsewhere would leave records out, or take them twice.
    """

    def __init__(self, settings: KafkaSettings, topic: str) -> None:
        self._topic = topic
        self._ats = [TopicPartition(settings.topic(topic), partition) for partition in range(settings.partitions)]
        self._consumer = consumer_of(settings, reset="none")
        self._consumer.assign(self._ats)
        self._consumer.pause(*self._ats)
        for at in self._ats:  # a place to be, until `read` names one
            self._consumer.seek(at, 0)
        self._ready: dict[int, deque[Record]] = {at.partition: deque() for at in self._ats}
        self._position: dict[int, int] = {}
        self._bytes = 0
        self._lag_at = 0.0
        self.lag: dict[int, int] = {}
        """Offsets of each partition that were not read yet, the marks of transactions among them, as of a second ago."""

    def begin(self, topic: str, partition: int) -> int:
        """The offset from which on the partition is whole: of its first record, or where it has none of the next."""
        at = self._at(topic, partition)
        return int(self._consumer.beginning_offsets([at], timeout_ms=_BLOCK_MS)[at])

    def fill(self, timeout_ms: int) -> None:
        """Read ahead in the partitions that were asked for; waits for records up to ``timeout_ms`` where none are ready."""
        if self._bytes >= _BUFFERED_BYTES:
            return
        wait_ms = 0 if self._bytes else timeout_ms
        try:
            found = self._consumer.poll(timeout_ms=wait_ms, max_records=_RECORDS_AT_ONCE)
        except (OffsetOutOfRangeError, LogTruncationError) as error:
            raise GapError(self._gap(error)) from None
        for at, records in found.items():
            self._ready[at.partition].extend(Record(record.offset, record.value or b"") for record in records)
            self._bytes += sum(len(record.value or b"") for record in records)
        if time.monotonic() - self._lag_at >= _LAG_SECONDS:
            self._lag_at = time.monotonic()
            self.lag = self._measure_lag()

    def read(self, topic: str, partition: int, offset: int, limit: int) -> list[Record]:
        """Up to ``limit`` records from ``offset`` on, in order; none where `fill` has not read that far."""
        at, ready = self._at(topic, partition), self._ready[partition]
        if self._position.get(partition) != offset:
            self._bytes -= sum(len(record.value) for record in ready)
            ready.clear()
            self._consumer.seek(at, offset)
            self._consumer.resume(at)
        taken = [ready.popleft() for _ in range(min(limit, len(ready)))]
        self._bytes -= sum(len(record.value) for record in taken)
        self._position[partition] = taken[-1].offset + 1 if taken else offset
        return taken

    def _measure_lag(self) -> dict[int, int]:
        """By what the brokers said when they were last read from, so that it costs no call of its own."""
        lag = {}
        for at in self._ats:
            end, ready = self._consumer.highwater(at), self._ready[at.partition]
            position = ready[0].offset if ready else self._consumer.position(at, timeout_ms=0)
            if end is not None and position is not None:
                lag[at.partition] = max(0, end - position)
        return lag

    def _gap(self, error: Exception) -> str:
        begins = self._consumer.beginning_offsets(self._ats, timeout_ms=_BLOCK_MS)
        ends = self._consumer.end_offsets(self._ats, timeout_ms=_BLOCK_MS)
        wrong = [
            f"{at.topic}/{at.partition}: the topic has offsets {begins[at]} to {ends[at]}, it is to be read from {position} on"
            for at in self._ats
            if not begins[at] <= (position := self._position.get(at.partition, begins[at])) <= ends[at]
        ]
        remedy = (
            "start over without what was read before; where records were deleted, let the topic keep them for longer"
        )
        return f"{'; '.join(wrong) or error}; {remedy}"

    def close(self) -> None:
        """Close the connections."""
        self._consumer.close()

    def _at(self, topic: str, partition: int) -> TopicPartition:
        assert topic == self._topic, topic
        return self._ats[partition]
