"""The records that one partition's topics still hold, for a joiner that recovers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing

from confluent_kafka import Consumer, Message, TopicPartition

from streaming.kafka.client import (
    BLOCK_SECONDS,
    POLL_SECONDS,
    as_broker_error,
    begins_of,
    broker_error,
    ends_of,
    position_after,
    reader_of,
    record_of,
    timed_out,
)
from streaming.kafka.settings import KafkaSettings
from streaming.kafka.unreadable_batches import is_unreadable, lost_in
from streaming.log import LostRange, Record

_STALL_SECONDS = 60
_RECORDS_AT_ONCE = 2000


class KafkaHistory:
    """`History` on Kafka. Each call opens a consumer of its own and closes it in the end."""

    def __init__(self, settings: KafkaSettings, partition: int) -> None:
        self._settings = settings
        self._partition = partition

    def beginning(self, topic: str) -> int:
        """Return the first offset that is kept."""
        with closing(reader_of(self._settings)) as consumer:
            (offset,) = begins_of(consumer, [self._at(topic)], BLOCK_SECONDS).values()
        return offset

    def end(self, topic: str) -> int:
        """Return the offset after the last record, also of one in a transaction that is open: `read` waits for its end, since
        records of transactions that were committed meanwhile may stand behind it."""
        with closing(reader_of(self._settings, uncommitted=True)) as consumer:
            (offset,) = ends_of(consumer, [self._at(topic)], BLOCK_SECONDS).values()
        return offset

    def read(self, topic: str, start: int, stop: int) -> Iterator[list[Record] | LostRange]:
        """Yield the records from ``start`` to before ``stop``, in bounded lists; an empty list while nothing comes. In place of a
        batch that cannot be decompressed, yield its range.

        Raises:
            BrokerError: records were deleted meanwhile, or nothing came for 60 s.
        """
        if start >= stop:
            return
        at = self._at(topic, start)
        with closing(reader_of(self._settings, name_ends=True)) as consumer:
            as_broker_error(consumer.assign)([at])
            moved, position = time.monotonic(), start
            while position < stop:
                records, read_to, unreadable = _read_on(consumer, position, stop)
                yield records
                if unreadable is not None and read_to < stop:
                    gap = lost_in(self._settings, topic, unreadable)
                    yield gap._replace(start=read_to, stop=min(gap.stop, stop))
                    read_to = gap.stop
                    as_broker_error(consumer.assign)([self._at(topic, read_to)])
                if read_to > position:
                    moved = time.monotonic()
                elif time.monotonic() - moved > _STALL_SECONDS:
                    what = f"{at.topic}/{at.partition}: nothing after offset {position} for {_STALL_SECONDS} s"
                    raise broker_error(timed_out(what))
                position = read_to

    def _at(self, topic: str, offset: int = -1) -> TopicPartition:
        return TopicPartition(self._settings.topic(topic), self._partition, offset)


@as_broker_error
def _read_on(consumer: Consumer, position: int, stop: int) -> tuple[list[Record], int, Message | None]:
    """Return the next records before ``stop``, the offset up to which all is read, and the client's error if the next batch is
    unreadable."""
    records: list[Record] = []
    for message in consumer.consume(_RECORDS_AT_ONCE, POLL_SECONDS):
        if is_unreadable(message):
            return records, max(position, message.offset() or 0), message
        position = position_after(message)
        if not message.error() and position <= stop:
            records.append(record_of(message))
    return records, position, None
