"""Batches that the client can never read: what it cannot decompress stays in the topic, and reading goes on behind it.

Brokers bound a batch as it was sent, compressed; the client bounds what comes out of zstd. Its checksum was right by then, so
another try ends the same way. The client names where such a batch began, but not where it ends: that is searched by reading. Where
records were deleted, the log may begin within it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from streaming.kafka.client import as_broker_error, begins_of, broker_error, ends_of, reader_of, timed_out
from streaming.kafka.settings import KafkaSettings
from streaming.log import BrokerError, LostRange

_ANSWER_SECONDS = 10


def is_unreadable(message: Message) -> bool:
    """Whether this stands for a batch that can never be read. Its offset is where the batch began."""
    error = message.error()
    return error is not None and error.code() == KafkaError._BAD_COMPRESSION


def lost_in(settings: KafkaSettings, topic: str, message: Message) -> LostRange:
    """Return what is kept of the unreadable batch that ``message`` stands for; ``topic`` is the pipeline's name.

    Raises:
        BrokerError: brokers are away, or the batch was deleted meanwhile.
    """
    name, partition, base, error = message.topic(), message.partition(), message.offset(), message.error()
    assert name is not None and partition is not None and base is not None and error is not None
    place = TopicPartition(name, partition)
    # What is in a transaction that is open has an end too.
    with closing(reader_of(settings, name_ends=True, uncommitted=True, probing=True)) as consumer:
        (kept,) = begins_of(consumer, [place], _ANSWER_SECONDS).values()
        (end,) = ends_of(consumer, [place], _ANSWER_SECONDS).values()

        def is_within(offset: int) -> bool:
            return _is_within(consumer, TopicPartition(name, partition, offset), base)

        if kept > base and not is_within(kept):
            raise BrokerError(f"{name}/{partition}: the batch at offset {base} was deleted meanwhile")
        begin = max(base, kept)
        stop = first_outside(begin, end, is_within)
    return LostRange(topic, begin, stop, str(broker_error(error)))


def first_outside(begin: int, end: int, is_within: Callable[[int], bool]) -> int:
    """Return the first offset after ``begin`` that is not within the same batch, ``end`` at the latest; twice as many questions as
    the rest of the batch has bits."""
    within, step = begin, 1
    while (outside := min(begin + step, end)) < end and is_within(outside):
        within, step = outside, 2 * step
    while outside - within > 1:
        middle = (within + outside) // 2
        if is_within(middle):
            within = middle
        else:
            outside = middle
    return outside


@as_broker_error
def _is_within(consumer: Consumer, at: TopicPartition, base: int) -> bool:
    """Whether an offset is in the unreadable batch that the client names by ``base``; another one may come right behind it."""
    consumer.assign([at])
    message = consumer.poll(_ANSWER_SECONDS)
    if message is None:
        raise timed_out(f"{at.topic}/{at.partition}: no answer for offset {at.offset}")
    if is_unreadable(message):
        return message.offset() == base
    error = message.error()
    if error is not None and error.code() != KafkaError._PARTITION_EOF:
        raise KafkaException(error)
    return False
