"""Ends and history of a partition that is written in transactions."""

from __future__ import annotations

import time
import uuid
from contextlib import closing

import pytest
from confluent_kafka import Producer, TopicPartition

from streaming.kafka.client import begins_of, ends_of, reader_of
from streaming.kafka.history import KafkaHistory
from streaming.kafka.settings import KafkaSettings
from streaming.kafka.topics import ensure_topics
from streaming.log import EXAMPLES, BrokerError, LostRange, Record


class Writer:
    """One transactional producer of `examples`."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._topic = kafka.topic(EXAMPLES)
        self._producer = Producer(kafka.client() | {"transactional.id": uuid.uuid4().hex})
        self._producer.init_transactions(20)

    def write(self, *values: bytes, partition: int = 0) -> None:
        self._producer.begin_transaction()
        for value in values:
            self._producer.produce(self._topic, value, partition=partition)
        assert self._producer.flush(20) == 0

    def commit(self) -> None:
        self._producer.commit_transaction(20)

    def abort(self) -> None:
        self._producer.abort_transaction(20)


def read(kafka: KafkaSettings, start: int, stop: int) -> list[tuple[int, bytes]]:
    batches = KafkaHistory(kafka, 0).read(EXAMPLES, start, stop)
    return [(record.offset, record.value) for records in batches for record in whole(records)]


def whole(records: list[Record] | LostRange) -> list[Record]:
    assert not isinstance(records, LostRange)
    return records


def wait_for_end(kafka: KafkaSettings, offset: int) -> None:
    """Marks follow a commit a little later."""
    history, until = KafkaHistory(kafka, 0), time.monotonic() + 20
    while history.end(EXAMPLES) != offset:
        assert time.monotonic() < until, history.end(EXAMPLES)
        time.sleep(0.05)


def test_what_is_open_is_waited_for_and_hides_nothing_behind_it(kafka: KafkaSettings) -> None:
    ensure_topics(kafka)
    writer, other = Writer(kafka), Writer(kafka)
    history = KafkaHistory(kafka, 0)
    assert (history.beginning(EXAMPLES), history.end(EXAMPLES)) == (0, 0)
    assert read(kafka, 0, 0) == []
    writer.write(b"a", b"b")
    assert history.end(EXAMPLES) == 2
    writer.commit()
    wait_for_end(kafka, 3)  # two records and the mark of the transaction
    assert read(kafka, 0, 3) == [(0, b"a"), (1, b"b")], "the end is found, though no record is there"
    writer.write(b"c")
    writer.abort()
    writer.write(b"d", b"e")
    writer.commit()
    other.write(b"f")
    writer.write(b"g")
    writer.commit()
    wait_for_end(kafka, 11)
    with closing(reader_of(kafka)) as consumer:
        ats = [TopicPartition(kafka.topic(EXAMPLES), partition) for partition in range(kafka.partitions)]
        assert list(ends_of(consumer, ats, 20).values()) == [8, 0, 0]
        assert list(begins_of(consumer, ats, 20).values()) == [0, 0, 0]
    assert read(kafka, 0, 8) == [(0, b"a"), (1, b"b"), (5, b"d"), (6, b"e")]
    waiting, found = history.read(EXAMPLES, 5, history.end(EXAMPLES)), list[bytes]()
    while len(found) < 2:
        found += [record.value for record in whole(next(waiting))]
    assert next(waiting) == []
    other.commit()
    found += [record.value for records in waiting for record in whole(records)]
    assert found == [b"d", b"e", b"f", b"g"]
    wait_for_end(kafka, 12)
    assert read(kafka, 1, 6) == [(1, b"b"), (5, b"d")]


def test_history_that_is_not_there_is_an_error(kafka: KafkaSettings) -> None:
    ensure_topics(kafka)
    with pytest.raises(BrokerError, match="AUTO_OFFSET_RESET"):
        read(kafka, 5, 9)
