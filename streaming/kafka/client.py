"""What one partition of the joiner reads and writes on Kafka: its transactions, and the records that are still kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING

import msgspec
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from basis.decoding import UNDECODABLE, why
from streaming.join.partition import Committed, ForgottenError
from streaming.join.state import Cut, Outgoing
from streaming.kafka.settings import MAX_OUTPUT_BYTES, RETRY_BACKOFF_MS, KafkaSettings
from streaming.log import ENGAGEMENTS, EXAMPLES, IMPRESSIONS, Record

if TYPE_CHECKING:
    from confluent_kafka.cimpl import DeliveryCallback

_BLOCK_SECONDS = 20
_GRACE_SECONDS = 2
_REQUEST_MS = 15_000
_TRANSACTION_MS = 60_000
_SEND_BYTES = 64 << 20
_FETCH_BYTES = 8 << 20
_AHEAD_BYTES = 16 << 20
_RECORDS_AT_ONCE = 2000
_POLL_SECONDS = 0.2
_STALL_SECONDS = 60
_GROUP = "minutely-joined"
_READERS = "minutely-readers"
_BEGIN, _END = -2, -1
_COORDINATOR_BEGINS = (
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
)


class _Metadata(msgspec.Struct, kw_only=True):
    """What a commit says besides its offsets; DESIGN's state id, sequence, watermark and lowest offsets still needed."""

    id: str
    sequence: int
    watermark: int
    due: int
    lowest: list[int]
    newest: int = 0


_decoder = msgspec.json.Decoder(_Metadata)


def reader_of(settings: KafkaSettings, group: str | None = None, *, name_ends: bool = False) -> Consumer:
    """A consumer that takes partitions by hand and commits nothing; where records are gone, it gives an error in their place.

    With ``name_ends``, it also gives one where it reached a partition's end.
    """
    return Consumer(
        settings.client()
        | {
            "group.id": group
            or settings.topic(_READERS),  # the client wants one; without a subscription it is nobody's
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "isolation.level": "read_committed",
            "enable.partition.eof": name_ends,
            "check.crcs": True,
            "fetch.message.max.bytes": _FETCH_BYTES,
            "fetch.max.bytes": _AHEAD_BYTES,
            "queued.max.messages.kbytes": _AHEAD_BYTES >> 10,
            "fetch.queue.backoff.ms": 10,  # of 1000, a reader that empties its queue waits most of the time
            "fetch.error.backoff.ms": 100,
        }
    )


def begins_of(consumer: Consumer, ats: Sequence[TopicPartition], seconds: float) -> dict[tuple[str, int], int]:
    """The first offsets that are kept, by topic and partition."""
    return _offsets(consumer, ats, _BEGIN, seconds)


def ends_of(consumer: Consumer, ats: Sequence[TopicPartition], seconds: float) -> dict[tuple[str, int], int]:
    """The offsets after the last committed records, by topic and partition, as their brokers name them now."""
    return _offsets(consumer, ats, _END, seconds)


def _offsets(
    consumer: Consumer, ats: Sequence[TopicPartition], which: int, seconds: float
) -> dict[tuple[str, int], int]:
    # One request a broker for all partitions; `get_watermark_offsets` takes two for each. Times below 0 are the protocol's own.
    asked = [TopicPartition(at.topic, at.partition, which) for at in ats]
    until = time.monotonic() + seconds
    while True:
        try:
            found = _whole(consumer.offsets_for_times(asked, seconds))
            if any(at.offset < 0 for at in found):  # would be taken for an end that is reached
                raise KafkaException(KafkaError(KafkaError._NO_OFFSET, f"no offsets of {found}"))
            return {(at.topic, at.partition): at.offset for at in found}
        except KafkaException as error:
            failed = error
        try:  # it may have asked by what it knew of leaders, and does not itself look again
            check_leaders(consumer, ats, max(until - time.monotonic(), _POLL_SECONDS))
        except NoLeaderError:
            raise
        except KafkaException as error:
            failed = error
        if time.monotonic() > until:
            raise failed
        time.sleep(_POLL_SECONDS)


def check_leaders(consumer: Consumer, ats: Sequence[TopicPartition], seconds: float) -> None:
    """`NoLeaderError` where some have none; they are not to be asked, read or written."""
    found = []
    for name in {at.topic for at in ats}:
        partitions = consumer.list_topics(name, seconds).topics[name].partitions
        gone = {number for number, partition in partitions.items() if partition.leader < 0}
        found += [at for at in ats if at.topic == name and at.partition in gone]
    if found:
        raise NoLeaderError(found)


def _whole(ats: list[TopicPartition]) -> list[TopicPartition]:
    """An answer of which no partition is an error."""
    for at in ats:
        if at.error:
            raise KafkaException(at.error)
    return ats


class NoLeaderError(KafkaException):
    """No broker leads these now; ``partitions`` has their numbers."""

    def __init__(self, ats: Sequence[TopicPartition]) -> None:
        names = ", ".join(f"{at.topic}/{at.partition}" for at in ats)
        super().__init__(KafkaError(KafkaError.LEADER_NOT_AVAILABLE, f"no broker leads {names}"))
        self.partitions = {at.partition for at in ats}


class KafkaOutlet:
    """`Outlet` by a transactional producer of the partition's own, with a group that only these transactions write."""

    def __init__(self, settings: KafkaSettings, partition: int) -> None:
        self._settings = settings
        self._partition = partition
        self._group = settings.topic(_GROUP)
        self._inputs = {name: TopicPartition(settings.topic(name), partition) for name in (IMPRESSIONS, ENGAGEMENTS)}
        self._producer: Producer | None = None
        self._membership: object = None

    def open(self) -> Committed | None:
        """Fence and settle a predecessor, then read what it committed."""
        self.close()
        self._producer = Producer(
            self._settings.client()
            | {
                "transactional.id": f"{self._group}-{self._partition}",
                "transaction.timeout.ms": _TRANSACTION_MS,
                "socket.timeout.ms": _REQUEST_MS,  # the calls' own timeouts do not end a request that was sent
                "linger.ms": 0,
                "retry.backoff.ms": RETRY_BACKOFF_MS,
                "message.max.bytes": MAX_OUTPUT_BYTES,
                "queue.buffering.max.kbytes": _SEND_BYTES >> 10,
            }
        )
        bounded(self._producer.init_transactions, _BLOCK_SECONDS, _BLOCK_SECONDS)
        with closing(reader_of(self._settings, self._group)) as consumer:
            self._membership = consumer.consumer_group_metadata()
            found = dict(zip(self._inputs, _committed(consumer, list(self._inputs.values())), strict=True))
        if any(at.offset < 0 for at in found.values()):
            return None
        try:
            metadata = _decoder.decode(found[IMPRESSIONS].metadata or "")
        except UNDECODABLE as error:
            raise ForgottenError(
                f"group {self._group}: what is committed with the offsets of {self._inputs[IMPRESSIONS]} is no joiner's: "
                f"{why(error)}; allowed: offsets that only joiners commit, or another kafka.prefix"
            ) from None
        return Committed(
            metadata.id,
            metadata.sequence,
            metadata.watermark,
            metadata.due,
            {name: at.offset for name, at in found.items()},
            Cut(-1, *metadata.lowest),
            metadata.newest,
        )

    def send(self, outbox: Sequence[Outgoing], commit: Committed) -> int:
        """One transaction with the outbox and the offsets. The offset after its last record in `examples`, or 0.

        Raises:
            KafkaException: it was aborted, or it is not known how it ended, which `open` finds out.
        """
        producer = self._producer
        assert producer is not None
        end = 0

        def delivered(error: KafkaError | None, message: Message) -> None:
            nonlocal end
            if error is None:
                end = max(end, (message.offset() or 0) + 1)

        producer.begin_transaction()
        until = time.monotonic() + _TRANSACTION_MS / 1000
        for item in outbox:
            told = delivered if item.topic == EXAMPLES else None
            while not self._fits(producer, item, told):
                if time.monotonic() > until:
                    raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "brokers take no more of a transaction"))
        metadata = _Metadata(
            id=commit.state_id,
            sequence=commit.sequence,
            watermark=commit.watermark,
            due=commit.due,
            lowest=list(commit.lowest[1:]),
            newest=commit.newest,
        )
        text = msgspec.json.encode(metadata).decode()
        offsets = [
            TopicPartition(at.topic, at.partition, commit.offsets[name], text) for name, at in self._inputs.items()
        ]
        bounded(producer.send_offsets_to_transaction, _BLOCK_SECONDS, offsets, self._membership, _BLOCK_SECONDS)
        bounded(producer.commit_transaction, _TRANSACTION_MS / 1000, _TRANSACTION_MS / 1000)
        return end

    def _fits(self, producer: Producer, item: Outgoing, told: DeliveryCallback | None) -> bool:
        """Hand a record over; False where what is on its way fills the client's memory, after waiting a little."""
        try:
            producer.produce(self._settings.topic(item.topic), item.value, partition=self._partition, on_delivery=told)
        except BufferError:
            producer.poll(_POLL_SECONDS)
            return False
        return True

    def close(self) -> None:
        """Let go of the producer at once; a transaction that is under way ends with its timeout or its successor."""
        self._producer = None  # its own `close` would wait for brokers, to abort


def bounded(call: Callable[..., object], seconds: float, *arguments: object) -> None:
    """The client may wait for ever for a broker that went away in the middle of a call, whatever time it was given; we do not.

    Raises:
        KafkaException: it took longer than ``seconds`` and a little; how a transaction ended is found out by recovering.
    """
    ended: SimpleQueue[BaseException | None] = SimpleQueue()

    def run() -> None:
        try:
            call(*arguments)
        except BaseException as error:
            ended.put(error)
        else:
            ended.put(None)

    Thread(target=run, daemon=True).start()
    try:
        error = ended.get(timeout=seconds + _GRACE_SECONDS)
    except Empty:
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT, f"no answer within {seconds:.0f} s")) from None
    if error is not None:
        try:
            raise error
        finally:
            del error  # its frames would keep it and so the producer, which would go on and fence the next one


def _committed(consumer: Consumer, ats: list[TopicPartition]) -> list[TopicPartition]:
    """The group's offsets and metadata. The client does not itself wait for a coordinator that has only begun."""
    until = time.monotonic() + _BLOCK_SECONDS
    while True:
        try:
            return _whole(consumer.committed(ats, _BLOCK_SECONDS))
        except KafkaException as error:
            if error.args[0].code() not in _COORDINATOR_BEGINS or time.monotonic() > until:
                raise
            time.sleep(_POLL_SECONDS)


class KafkaHistory:
    """`History` by a consumer of its own, closed when it was read."""

    def __init__(self, settings: KafkaSettings, partition: int) -> None:
        self._settings = settings
        self._partition = partition

    def beginning(self, topic: str) -> int:
        """The first offset that is kept."""
        with closing(reader_of(self._settings)) as consumer:
            (offset,) = begins_of(consumer, [self._at(topic)], _BLOCK_SECONDS).values()
        return offset

    def end(self, topic: str) -> int:
        """The offset after the last committed record."""
        with closing(reader_of(self._settings)) as consumer:
            (offset,) = ends_of(consumer, [self._at(topic)], _BLOCK_SECONDS).values()
        return offset

    def read(self, topic: str, start: int, stop: int) -> Iterator[list[Record]]:
        """The records from ``start`` to before ``stop``, in bounded lists; an empty list where there is nothing yet.

        Raises:
            KafkaException: records were deleted meanwhile, or nothing came for a minute.
        """
        if start >= stop:
            return
        at = self._at(topic)
        at.offset = start
        with closing(reader_of(self._settings, name_ends=True)) as consumer:
            consumer.assign([at])
            moved, position = time.monotonic(), start
            while position < stop:
                records: list[Record] = []
                before = position
                for message in consumer.consume(_RECORDS_AT_ONCE, _POLL_SECONDS):
                    position = position_after(message)
                    if not message.error() and position <= stop:
                        records.append(Record(position - 1, message.value() or b""))
                yield records
                if position > before:
                    moved = time.monotonic()
                elif time.monotonic() - moved > _STALL_SECONDS:
                    what = f"{at.topic}/{at.partition}: nothing after offset {position} for {_STALL_SECONDS} s"
                    raise KafkaException(KafkaError(KafkaError._TIMED_OUT, what))

    def _at(self, topic: str) -> TopicPartition:
        return TopicPartition(self._settings.topic(topic), self._partition)


def position_after(message: Message) -> int:
    """The offset after a record, or at which nothing but the marks of transactions came before a partition's end."""
    error = message.error()
    if error is not None and error.code() != KafkaError._PARTITION_EOF:
        raise KafkaException(error)
    offset = message.offset()
    assert offset is not None
    return offset + 1 if error is None else offset
