"""A topic of Kafka as a log that is read: committed records only, with their offsets."""

from __future__ import annotations

from collections import deque

from kafka import TopicPartition

from streaming.kafka.partition_io import consumer_of
from streaming.kafka.settings import KafkaSettings
from streaming.log import Record

_BUFFERED_BYTES = 32 << 20
_RECORDS_AT_ONCE = 500
_BLOCK_MS = 20_000


class KafkaLog:
    """`LogReader` of all partitions of one topic. `fill` reads ahead, up to a bound; `read` takes what is there."""

    def __init__(self, settings: KafkaSettings, topic: str) -> None:
        self._topic = topic
        self._ats = [TopicPartition(settings.topic(topic), partition) for partition in range(settings.partitions)]
        self._consumer = consumer_of(settings)
        self._consumer.assign(self._ats)
        self._consumer.pause(*self._ats)
        self._ready: dict[int, deque[Record]] = {at.partition: deque() for at in self._ats}
        self._position: dict[int, int] = {}
        self._bytes = 0

    def begin(self, topic: str, partition: int) -> int:
        """The offset from which on the partition is whole: of its first record, or where it has none of the next."""
        at = self._at(topic, partition)
        return int(self._consumer.beginning_offsets([at], timeout_ms=_BLOCK_MS)[at])

    def ends(self) -> dict[int, int]:
        """The offset after the last committed record of each partition."""
        ends = self._consumer.end_offsets(self._ats, timeout_ms=_BLOCK_MS)
        return {at.partition: int(end) for at, end in ends.items()}

    def fill(self, timeout_ms: int) -> None:
        """Read ahead in the partitions that were asked for; waits for records up to ``timeout_ms`` where none are ready."""
        if self._bytes >= _BUFFERED_BYTES:
            return
        wait_ms = 0 if self._bytes else timeout_ms
        for at, records in self._consumer.poll(timeout_ms=wait_ms, max_records=_RECORDS_AT_ONCE).items():
            self._ready[at.partition].extend(Record(record.offset, record.value or b"") for record in records)
            self._bytes += sum(len(record.value or b"") for record in records)

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

    def close(self) -> None:
        """Close the connections."""
        self._consumer.close()

    def _at(self, topic: str, partition: int) -> TopicPartition:
        assert topic == self._topic, topic
        return self._ats[partition]
