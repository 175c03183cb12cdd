"""A Kafka topic as a log to read: committed records only, with their offsets."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque

from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from basis.problems import GapError
from streaming.kafka.client import (
    BLOCK_SECONDS,
    as_broker_error,
    begins_of,
    ends_of,
    position_after,
    reader_of,
    record_of,
)
from streaming.kafka.settings import KafkaSettings
from streaming.kafka.unreadable_batches import is_unreadable, lost_in
from streaming.log import Record

_log = logging.getLogger("minutely.kafka")
_BUFFERED_BYTES = 32 << 20
_RECORDS_AT_ONCE = 500
_LAG_SECONDS = 1.0
_SILENT_SECONDS = 5.0
_NOT_THERE = (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE, KafkaError._LOG_TRUNCATION)


class KafkaLog:
    """`LogReader` of all partitions of one topic. `fill` reads ahead, up to 32 MiB; `read` takes what is there.

    An offset that the topic does not have is a `GapError`: reading on elsewhere would skip records or take them twice. A batch that
    cannot be decompressed is skipped, logged and counted, since it stays as it is.
    """

    def __init__(self, settings: KafkaSettings, topic: str) -> None:
        self._settings = settings
        self._topic = topic
        self._name = settings.topic(topic)
        self._consumer = reader_of(settings, name_ends=True)
        self._ready: dict[int, deque[Record]] = {partition: deque() for partition in range(settings.partitions)}
        self._position: dict[int, int] = {}
        """The next offset to take, of each partition that was asked for."""
        self.read_to: dict[int, int] = {}
        """The next offset to fetch, by partition; it also passes transaction markers."""
        self._placed = True
        """Whether the client is positioned there."""
        self._bytes = 0
        self._lag_at = 0.0
        self._heard_at = time.monotonic()
        self.lag: dict[int, int] = {}
        """Offsets that were not read yet, by partition, including transaction markers; at most about a second old."""
        self.lost = Counter[int](dict.fromkeys(range(settings.partitions), 0))
        """Records that were skipped, by partition."""

    def begin(self, topic: str, partition: int) -> int:
        """Return the first offset that is kept; of a partition without records, the offset of the next one."""
        assert topic == self._topic, topic
        at = TopicPartition(self._name, partition)
        return begins_of(self._consumer, [at], BLOCK_SECONDS)[self._name, partition]

    def there(self) -> dict[int, range]:
        """Ask brokers for the offsets that can be read now, by partition."""
        ats = [TopicPartition(self._name, partition) for partition in self._ready]
        begins, ends = (of(self._consumer, ats, _SILENT_SECONDS) for of in (begins_of, ends_of))
        return {place[1]: range(begin, ends[place]) for place, begin in begins.items()}

    @as_broker_error
    def fill(self, timeout_ms: int) -> None:
        """Read ahead in the partitions that were asked for; wait up to ``timeout_ms`` if no record is ready."""
        if self._bytes >= _BUFFERED_BYTES:
            return
        if not self._placed:
            self._consumer.assign(self._ats(self.read_to))
            self._placed = True
        messages = self._consumer.consume(_RECORDS_AT_ONCE, 0)
        if not messages and not self._bytes:
            first = self._consumer.poll(timeout_ms / 1000)
            messages = [] if first is None else [first, *self._consumer.consume(_RECORDS_AT_ONCE, 0)]
        if messages:
            self._heard_at = time.monotonic()
        elif self.read_to and time.monotonic() - self._heard_at > _SILENT_SECONDS:
            ends_of(
                self._consumer, self._ats(self.read_to), _SILENT_SECONDS
            )  # raises if brokers are down, which reading does not report
            self._heard_at = time.monotonic()
        try:
            for message in messages:
                if is_unreadable(message):
                    self._skip(message)
                    break
                reached = position_after(message)
                partition = message.partition()
                assert partition is not None
                self.read_to[partition] = max(reached, self.read_to[partition])
                if message.error() is None:
                    record = record_of(message)
                    self._ready[partition].append(record)
                    self._bytes += len(record.value)
        except KafkaException as error:
            self._placed = False  # the rest of this batch was not taken
            if error.args[0].code() in _NOT_THERE:
                raise GapError(self._gap(error)) from None
            raise
        if time.monotonic() - self._lag_at >= _LAG_SECONDS:
            self._lag_at = time.monotonic()
            self.lag = self._measure_lag()

    def _skip(self, message: Message) -> None:
        self._placed = False  # the rest of what was read was not taken
        gap, partition = lost_in(self._settings, self._topic, message), message.partition()
        assert partition is not None
        gap = gap._replace(start=max(gap.start, self.read_to[partition]))
        self.read_to[partition] = gap.stop
        self.lost[partition] += gap.size
        _log.error("%s", gap.told(partition))

    def read(self, topic: str, partition: int, offset: int, limit: int) -> list[Record]:
        """Return up to ``limit`` records from ``offset`` on, in order; none if `fill` has not read that far."""
        assert topic == self._topic, topic
        ready = self._ready[partition]
        if self._position.get(partition) != offset:
            self._bytes -= sum(len(record.value) for record in ready)
            ready.clear()
            self.read_to[partition] = offset
            self._placed = False
        taken = [ready.popleft() for _ in range(min(limit, len(ready)))]
        self._bytes -= sum(len(record.value) for record in taken)
        self._position[partition] = taken[-1].offset + 1 if taken else offset
        return taken

    def _measure_lag(self) -> dict[int, int]:
        """Use the ends that brokers sent with the last fetch, which costs no call."""
        lag = {}
        for at in self._ats(self.read_to):
            _, end = self._consumer.get_watermark_offsets(at, cached=True)
            ready = self._ready[at.partition]
            if end >= 0:
                lag[at.partition] = max(0, end - (ready[0].offset if ready else at.offset))
        return lag

    def _gap(self, error: Exception) -> str:
        ats = self._ats(self._position)
        begins, ends = begins_of(self._consumer, ats, BLOCK_SECONDS), ends_of(self._consumer, ats, BLOCK_SECONDS)
        wrong = [
            f"{at.topic}/{at.partition}: the topic has offsets {begins[place]} to {ends[place]}, "
            f"records from {at.offset} on are needed"
            for at in ats
            if not begins[place := (at.topic, at.partition)] <= at.offset <= ends[place]
        ]
        remedy = "start over with an empty output; if records were deleted, set a longer retention"
        return f"{'; '.join(wrong) or error}; {remedy}"

    def close(self) -> None:
        """Close the connections."""
        self._consumer.close()

    def _ats(self, offsets: dict[int, int]) -> list[TopicPartition]:
        return [TopicPartition(self._name, partition, offset) for partition, offset in sorted(offsets.items())]
