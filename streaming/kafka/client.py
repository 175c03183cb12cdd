"""Kafka's client as the rest of this folder uses it: readers, offsets, leaders, bounded calls, and one kind of error.

Outside of this folder nobody meets an error of the client: what fails is a `BrokerError`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from queue import Empty, SimpleQueue
from threading import Thread
from typing import ParamSpec, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from streaming.kafka.settings import KafkaSettings
from streaming.log import BrokerError, NoLeaderError

P = ParamSpec("P")
T = TypeVar("T")

_GRACE_SECONDS = 2
_FETCH_BYTES = 8 << 20
_AHEAD_BYTES = 16 << 20
_POLL_SECONDS = 0.2
_READERS = "minutely-readers"
_BEGIN, _END = -2, -1


def broker_error(cause: KafkaError | KafkaException) -> BrokerError:
    """What the client says: its name for it and its words. It keeps nothing of the client alive."""
    error = cause.args[0] if isinstance(cause, KafkaException) and cause.args else cause
    return BrokerError(f"{error.name().strip('_')}: {error.str()}" if isinstance(error, KafkaError) else str(error))


def timed_out(what: str) -> KafkaException:
    """Brokers did not do in time what they were asked for."""
    return KafkaException(KafkaError(KafkaError._TIMED_OUT, what))


def telling(call: Callable[P, T]) -> Callable[P, T]:
    """``call``, whose failures are a `BrokerError` in place of the client's own.

    It is raised once the client's error is gone: as a context, even a hidden one, that would live on with the frames it passed,
    and with them a producer, whose thread would go on and fence the next one.
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
            del failed  # this frame, which it passes, would keep it

    return told


@telling
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


@telling
def _offsets(
    consumer: Consumer, ats: Sequence[TopicPartition], which: int, seconds: float
) -> dict[tuple[str, int], int]:
    # One request a broker for all partitions; `get_watermark_offsets` takes two for each. Times below 0 are the protocol's own.
    asked = [TopicPartition(at.topic, at.partition, which) for at in ats]
    until = time.monotonic() + seconds
    while True:
        try:
            found = whole(consumer.offsets_for_times(asked, seconds))
            if any(at.offset < 0 for at in found):  # would be taken for an end that is reached
                raise KafkaException(KafkaError(KafkaError._NO_OFFSET, f"no offsets of {found}"))
            return {(at.topic, at.partition): at.offset for at in found}
        except KafkaException as error:
            failed = error
        try:  # it may have asked by what it knew of leaders, and does not itself look again
            _check_leaders(consumer, ats, max(until - time.monotonic(), _POLL_SECONDS))
        except KafkaException as error:
            failed = error
        if time.monotonic() > until:
            raise failed
        time.sleep(_POLL_SECONDS)


def _check_leaders(consumer: Consumer, ats: Iterable[TopicPartition], seconds: float) -> None:
    found = []
    for name in {at.topic for at in ats}:
        partitions = consumer.list_topics(name, seconds).topics[name].partitions
        gone = {number for number, partition in partitions.items() if partition.leader < 0}
        found += [at for at in ats if at.topic == name and at.partition in gone]
    if found:
        names = ", ".join(f"{at.topic}/{at.partition}" for at in found)
        raise NoLeaderError(f"LEADER_NOT_AVAILABLE: no broker leads {names}", {at.partition for at in found})


@telling
def check_leaders(consumer: Consumer, ats: Sequence[TopicPartition], seconds: float) -> None:
    """`NoLeaderError` where some have none; they are not to be asked, read or written."""
    _check_leaders(consumer, ats, seconds)


def whole(ats: list[TopicPartition]) -> list[TopicPartition]:
    """An answer of which no partition is an error; `KafkaException` of the first that is."""
    for at in ats:
        if at.error:
            raise KafkaException(at.error)
    return ats


def bounded(call: Callable[..., object], seconds: float, *arguments: object) -> None:
    """The client may wait forever for a broker that went away in the middle of a call, whatever time it was given; we do not.

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
        raise timed_out(f"no answer within {seconds:.0f} s") from None
    if error is not None:
        try:
            raise error
        finally:
            del error  # its frames would keep it and so the producer, which would go on and fence the next one


def position_after(message: Message) -> int:
    """The offset after a record, or at which nothing but the marks of transactions came before a partition's end.

    Raises:
        KafkaException: the client gave an error in place of a record.
    """
    error = message.error()
    if error is not None and error.code() != KafkaError._PARTITION_EOF:
        raise KafkaException(error)
    offset = message.offset()
    assert offset is not None
    return offset + 1 if error is None else offset
