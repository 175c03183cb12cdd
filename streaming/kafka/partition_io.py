"""What one partition of the joiner reads and writes on Kafka: its transactions, and the records that are still kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from threading import Thread

import msgspec
from kafka import KafkaConsumer, KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka.errors import KafkaTimeoutError

from streaming.join_partition import Committed
from streaming.join_state import Cut, Outgoing
from streaming.kafka.settings import MAX_OUTPUT_BYTES, RETRY_BACKOFF_MS, KafkaSettings
from streaming.log import ENGAGEMENTS, EXAMPLES, IMPRESSIONS, Record

_BLOCK_MS = 20_000
_REQUEST_MS = 15_000
_DELIVERY_MS = 45_000
_TRANSACTION_MS = 60_000
_FETCH_BYTES = 8 << 20
_RECORDS_AT_ONCE = 2000
_POLL_MS = 200
_STALL_SECONDS = 60
_GROUP = "minutely-joined"


class _Metadata(msgspec.Struct, kw_only=True):
    """What a commit says besides its offsets; DESIGN's state id, sequence, watermark and lowest offsets still needed."""

    id: str
    sequence: int
    watermark: int
    due: int
    lowest: list[int]


_decoder = msgspec.json.Decoder(_Metadata)


def consumer_of(settings: KafkaSettings, group: str | None = None, *, reset: str = "earliest") -> KafkaConsumer:
    """A consumer that takes partitions by hand and commits nothing; with ``reset`` none, `poll` fails where records are gone."""
    return KafkaConsumer(
        **settings.client(),
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset=reset,
        isolation_level="read_committed",
        enable_incremental_fetch_sessions=False,  # with them, a partition that was paused is not always fetched again
        fetch_max_bytes=_FETCH_BYTES,
        max_partition_fetch_bytes=_FETCH_BYTES,
        retry_backoff_ms=RETRY_BACKOFF_MS * 4,
    )


class KafkaOutlet:
    """`Outlet` by a transactional producer of the partition's own, with a group that only these transactions write."""

    def __init__(self, settings: KafkaSettings, partition: int) -> None:
        self._settings = settings
        self._partition = partition
        self._group = settings.topic(_GROUP)
        self._inputs = {name: TopicPartition(settings.topic(name), partition) for name in (IMPRESSIONS, ENGAGEMENTS)}
        self._producer: KafkaProducer | None = None

    def open(self) -> Committed | None:
        """Fence and settle a predecessor, then read what it committed."""
        self.close()
        self._producer = KafkaProducer(
            **self._settings.client(),
            transactional_id=f"{self._group}-{self._partition}",
            transaction_timeout_ms=_TRANSACTION_MS,
            acks="all",
            linger_ms=0,
            retry_backoff_ms=RETRY_BACKOFF_MS,
            max_block_ms=_BLOCK_MS,
            request_timeout_ms=_REQUEST_MS,
            delivery_timeout_ms=_DELIVERY_MS,
            max_request_size=MAX_OUTPUT_BYTES,
        )
        self._producer.init_transactions()
        consumer = consumer_of(self._settings, self._group)
        try:
            found = {
                name: consumer.committed(at, metadata=True, timeout_ms=_BLOCK_MS) for name, at in self._inputs.items()
            }
        finally:
            consumer.close()
        if any(item is None for item in found.values()):
            return None
        metadata = _decoder.decode(found[IMPRESSIONS].metadata)
        return Committed(
            metadata.id,
            metadata.sequence,
            metadata.watermark,
            metadata.due,
            {name: item.offset for name, item in found.items()},
            Cut(-1, *metadata.lowest),
        )

    def send(self, outbox: Sequence[Outgoing], commit: Committed) -> int:
        """One transaction with the outbox and the offsets. The offset after its last record in `examples`, or 0."""
        producer = self._producer
        assert producer is not None
        producer.begin_transaction()
        sent = [
            (item.topic, producer.send(self._settings.topic(item.topic), item.value, partition=self._partition))
            for item in outbox
        ]
        for _, future in sent:
            if future.failed():  # for want of metadata: such a record never came into the transaction
                raise future.exception
        metadata = _Metadata(
            id=commit.state_id,
            sequence=commit.sequence,
            watermark=commit.watermark,
            due=commit.due,
            lowest=list(commit.lowest[1:]),
        )
        text = msgspec.json.encode(metadata).decode()
        offsets = {at: OffsetAndMetadata(commit.offsets[name], text, -1) for name, at in self._inputs.items()}
        bounded(producer.send_offsets_to_transaction, offsets, self._group)
        bounded(producer.commit_transaction)
        ends = [future.get(timeout=_DELIVERY_MS / 1000).offset + 1 for topic, future in sent if topic == EXAMPLES]
        return max(ends, default=0)

    def close(self) -> None:
        """Let go of the producer; a transaction that is under way ends with its timeout or its successor."""
        producer, self._producer = self._producer, None
        if producer is not None:
            with suppress(KafkaTimeoutError):  # what it had not sent yet
                producer.close(timeout=0)


def bounded(call: Callable[..., object], *arguments: object) -> None:
    """The client waits for ever for a transaction whose coordinator went away; we wait until a broker would abort it.

    `KafkaTimeoutError` then: how the transaction ended is found out by recovering.
    """
    ended: Future[object] = Future()

    def run() -> None:
        try:
            ended.set_result(call(*arguments))
        except BaseException as error:
            ended.set_exception(error)

    Thread(target=run, daemon=True).start()
    try:
        ended.result(_TRANSACTION_MS / 1000)
    except TimeoutError:
        raise KafkaTimeoutError(f"a transaction did not end within {_TRANSACTION_MS} ms") from None


class KafkaHistory:
    """`History` by a consumer of its own, closed when it was read."""

    def __init__(self, settings: KafkaSettings, partition: int) -> None:
        self._settings = settings
        self._partition = partition

    def beginning(self, topic: str) -> int:
        """The first offset that is kept."""
        at = self._at(topic)
        consumer = consumer_of(self._settings)
        try:
            return int(consumer.beginning_offsets([at], timeout_ms=_BLOCK_MS)[at])
        finally:
            consumer.close()

    def end(self, topic: str) -> int:
        """The offset after the last committed record."""
        at = self._at(topic)
        consumer = consumer_of(self._settings)
        try:
            return int(consumer.end_offsets([at], timeout_ms=_BLOCK_MS)[at])
        finally:
            consumer.close()

    def read(self, topic: str, start: int, stop: int) -> Iterator[list[Record]]:
        """The records from ``start`` to before ``stop``, in bounded lists; an empty list where there is nothing yet.

        Raises:
            KafkaTimeoutError: nothing came for a minute.
            OffsetOutOfRangeError: records were deleted meanwhile.
        """
        if start >= stop:
            return
        at = self._at(topic)
        consumer = consumer_of(self._settings, reset="none")
        try:
            consumer.assign([at])
            consumer.seek(at, start)
            moved, position = time.monotonic(), start
            while position < stop:  # the position also passes the marks that transactions leave
                found = consumer.poll(timeout_ms=_POLL_MS, max_records=_RECORDS_AT_ONCE).get(at, [])
                yield [Record(record.offset, record.value or b"") for record in found if record.offset < stop]
                before, position = position, consumer.position(at, timeout_ms=_BLOCK_MS)
                if position > before:
                    moved = time.monotonic()
                elif time.monotonic() - moved > _STALL_SECONDS:
                    raise KafkaTimeoutError(f"{at}: nothing after offset {position} for {_STALL_SECONDS} s")
        finally:
            consumer.close()

    def _at(self, topic: str) -> TopicPartition:
        return TopicPartition(self._settings.topic(topic), self._partition)
