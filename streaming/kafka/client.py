"""Kafka's client as this folder uses it: readers, offsets, leaders, bounded calls, and one kind of error.

Outside this folder, every failure of the client is a `BrokerError`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from confluent_kafka import (
    TIMESTAMP_LOG_APPEND_TIME,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)

from streaming.clock import WallClock
from streaming.kafka.settings import KafkaSettings
from streaming.log import BrokerError, NoLeaderError, Record

if TYPE_CHECKING:
    from confluent_kafka.cimpl import DeliveryCallback

P = ParamSpec("P")
T = TypeVar("T")

BLOCK_SECONDS = 20
"""How long a call may wait for brokers."""
POLL_SECONDS = 0.2
"""How long to wait before asking again."""
_CLOCK = WallClock()
_GRACE_SECONDS = 2
_FETCH_BYTES = 8 << 20
_AHEAD_BYTES = 16 << 20
_DECOMPRESSED_BYTES = 300_000_000
"""The largest buffer for decompressing a batch of zstd. The client tries sizes that grow threefold, so a batch of a third of it can
always be read."""
_PROBED_BYTES = 100_000_000
"""The same where only a batch's offset matters, which the client also names when it gives up; compressed, all are smaller."""
_READERS = "minutely-readers"
_BEGIN, _END = -2, -1
_NOT_THERE = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.LEADER_NOT_AVAILABLE)
"""What brokers say of a topic that is missing, or was just made: none of its partitions has a leader."""


def broker_error(cause: KafkaError | KafkaException) -> BrokerError:
    """Convert an error of the client to its name and text. The result keeps no object of the client alive."""
    error = cause.args[0] if isinstance(cause, KafkaException) and cause.args else cause
    if isinstance(error, KafkaError):
        return BrokerError(error.str(), error.name().strip("_"))
    return BrokerError(str(error))


def timed_out(what: str) -> KafkaException:
    """Return the client's error for brokers that did not do in time what they were asked for."""
    return KafkaException(KafkaError(KafkaError._TIMED_OUT, what))


def as_broker_error(call: Callable[P, T]) -> Callable[P, T]:
    """Wrap ``call`` so that it raises `BrokerError` instead of the client's errors.

    The client's error must be gone by then. As a context, even a suppressed one, it would keep the frames that it passed alive, and
    with them a producer, whose thread would go on and fence the next one.
    """

    @wraps(call)
    def told(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return call(*args, **kwargs)
        except KafkaException as error:
            failed = broker_error(error)
        try:
            raise failed
        finally:
            del failed  # else this frame and the error keep each other alive

    return told


@as_broker_error
def reader_of(
    settings: KafkaSettings,
    group: str | None = None,
    *,
    name_ends: bool = False,
    uncommitted: bool = False,
    probing: bool = False,
) -> Consumer:
    """Return a consumer that is assigned by hand and commits nothing. In place of deleted records, it returns an error.

    With ``name_ends``, it also returns one at each partition's end. ``uncommitted``: what is in transactions that are open counts
    as there. ``probing``: a fetch brings one batch, and gives up sooner on one that is large when decompressed.
    """
    return Consumer(
        settings.client()
        | {
            "group.id": group
            or settings.topic(_READERS),  # the client requires one; without a subscription it has no effect
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "isolation.level": "read_uncommitted" if uncommitted else "read_committed",
            "enable.partition.eof": name_ends,
            "check.crcs": True,
            "receive.message.max.bytes": min(_PROBED_BYTES, _DECOMPRESSED_BYTES) if probing else _DECOMPRESSED_BYTES,
            "fetch.message.max.bytes": 1 if probing else _FETCH_BYTES,
            "fetch.max.bytes": _AHEAD_BYTES,
            "queued.max.messages.kbytes": _AHEAD_BYTES >> 10,
            "fetch.queue.backoff.ms": 10,  # with 1000, the default, a reader that empties its queue mostly waits
            "fetch.error.backoff.ms": 100,
        }
    )


def begins_of(consumer: Consumer, ats: Sequence[TopicPartition], seconds: float) -> dict[tuple[str, int], int]:
    """Return the first offsets that are kept, by topic and partition."""
    return _offsets(consumer, ats, _BEGIN, seconds)


def ends_of(consumer: Consumer, ats: Sequence[TopicPartition], seconds: float) -> dict[tuple[str, int], int]:
    """Ask brokers for the current offsets after the last records that ``consumer`` may read, by topic and partition."""
    return _offsets(consumer, ats, _END, seconds)


@as_broker_error
def _offsets(
    consumer: Consumer, ats: Sequence[TopicPartition], which: int, seconds: float
) -> dict[tuple[str, int], int]:
    # One request per broker; `get_watermark_offsets` takes two per partition. Negative times are constants of the protocol.
    asked = [TopicPartition(at.topic, at.partition, which) for at in ats]
    until = time.monotonic() + seconds
    while True:
        try:
            found = whole(consumer.offsets_for_times(asked, seconds))
            if any(at.offset < 0 for at in found):  # would pass for an end that was reached
                raise KafkaException(KafkaError(KafkaError._NO_OFFSET, f"no offsets of {found}"))
            return {(at.topic, at.partition): at.offset for at in found}
        except KafkaException as error:
            failed = error
        try:  # the client may have asked a former leader, and does not look for the new one by itself
            _check_leaders(consumer, ats, max(until - time.monotonic(), POLL_SECONDS))
        except KafkaException as error:
            failed = error
        if time.monotonic() > until:
            raise failed
        time.sleep(POLL_SECONDS)


def _check_leaders(consumer: Consumer, ats: Iterable[TopicPartition], seconds: float) -> None:
    found = []
    for name in sorted({at.topic for at in ats}):
        topic = consumer.list_topics(name, seconds).topics[name]
        if topic.error is not None and topic.error.code() not in _NOT_THERE:
            raise KafkaException(KafkaError(topic.error.code(), f"{name}: {topic.error.str()}"))
        led = {number for number, partition in topic.partitions.items() if partition.leader >= 0}
        found += [at for at in ats if at.topic == name and at.partition not in led]
    if found:
        names = ", ".join(f"{at.topic}/{at.partition}" for at in found)
        raise NoLeaderError(f"no broker leads {names}", {at.partition for at in found})


@as_broker_error
def check_leaders(consumer: Consumer, ats: Sequence[TopicPartition], seconds: float) -> None:
    """Raise `NoLeaderError` if some have no leader, or are not there at all; do not ask, read or write those."""
    _check_leaders(consumer, ats, seconds)


def whole(ats: list[TopicPartition]) -> list[TopicPartition]:
    """Return an answer; `KafkaException` if one of its partitions has an error, of the first that has."""
    for at in ats:
        if at.error:
            raise KafkaException(at.error)
    return ats


def bounded(call: Callable[..., object], seconds: float, *arguments: object) -> None:
    """Run a call. The client can ignore its own timeout when a broker disappears mid-call; this function does not wait longer.

    Raises:
        KafkaException: it took more than ``seconds`` + 2 s. Recovery then finds out how a transaction ended.
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
        raise timed_out(f"no answer within {seconds:.0f} s") from None
    if error is not None:
        try:
            raise error
        finally:
            del error  # else its frames keep it and the producer alive, which would fence the next one


def offer(
    producer: Producer, topic: str, value: bytes, key: bytes | None, partition: int, on_delivery: DeliveryCallback
) -> bool:
    """Queue a record; False, after a short wait, if the client's queue is full."""
    try:
        producer.produce(topic, value, key, partition, on_delivery=on_delivery)
    except BufferError:
        producer.poll(POLL_SECONDS)
        return False
    return True


def record_of(message: Message) -> Record:
    """Return the record that a message without an error brings.

    A time that its producer gave it (`CreateTime`) proves nothing: all that is known is that its broker has it by now.
    """
    offset, (kind, stamp_ms) = message.offset(), message.timestamp()
    assert offset is not None
    return Record(offset, message.value() or b"", stamp_ms if kind == TIMESTAMP_LOG_APPEND_TIME else _CLOCK.now_ms())


def position_after(message: Message) -> int:
    """Return the offset after a record, or that of a partition's end, which is after its transaction markers.

    Raises:
        KafkaException: the client returned an error in place of a record.
    """
    error = message.error()
    if error is not None and error.code() != KafkaError._PARTITION_EOF:
        raise KafkaException(error)
    offset = message.offset()
    assert offset is not None
    return offset + 1 if error is None else offset
