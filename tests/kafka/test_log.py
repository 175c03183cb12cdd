"""Reading a topic: in order, with what is left to read; and an error where its offsets are not those that were read before."""

from __future__ import annotations

import time
from contextlib import closing

import pytest

from basis.problems import GapError
from streaming.kafka.log import KafkaLog
from streaming.kafka.settings import KafkaSettings
from streaming.kafka.topics import ensure_topics
from streaming.log import EXAMPLES, Record
from tests.kafka.traffic import delete_before, producer_of


def write(kafka: KafkaSettings, values: list[bytes]) -> None:
    with producer_of(kafka) as producer:
        for value in values:
            producer.send(kafka.topic(EXAMPLES), value, partition=1)


def read(log: KafkaLog, offset: int, count: int) -> list[tuple[int, bytes]]:
    found: list[Record] = []
    until = time.monotonic() + 30
    while len(found) < count:
        assert time.monotonic() < until, found
        found += log.read(EXAMPLES, 1, found[-1].offset + 1 if found else offset, 1)
        log.fill(100)
    return [(record.offset, record.value) for record in found]


def test_records_in_order_and_how_many_are_left(kafka: KafkaSettings) -> None:
    ensure_topics(kafka)
    write(kafka, [b"a", b"b", b"c", b"d", b"e"])
    with closing(KafkaLog(kafka, EXAMPLES)) as log:
        assert log.begin(EXAMPLES, 1) == 0
        assert log.lag == {}, "nothing was read yet"
        assert read(log, 1, 3) == [(1, b"b"), (2, b"c"), (3, b"d")]
        time.sleep(1.1)
        log.fill(100)
        assert log.lag[1] == 1
        assert read(log, 4, 1) == [(4, b"e")]
        assert read(log, 0, 1) == [(0, b"a")], "it goes back where it is asked to"


def test_records_that_are_gone_are_not_passed_over(kafka: KafkaSettings) -> None:
    ensure_topics(kafka)
    write(kafka, [b"a", b"b", b"c"])
    delete_before(kafka, EXAMPLES, 1, 2)
    with closing(KafkaLog(kafka, EXAMPLES)) as log:
        assert log.begin(EXAMPLES, 1) == 2
        with pytest.raises(GapError, match=r"examples/1: the topic has offsets 2 to 3, records from 1 on are needed"):
            read(log, 1, 1)


def test_a_topic_that_was_made_anew_is_not_read_from_its_beginning(kafka: KafkaSettings) -> None:
    ensure_topics(kafka)
    write(kafka, [b"a"])
    with (
        closing(KafkaLog(kafka, EXAMPLES)) as log,
        pytest.raises(GapError, match=r"examples/1: the topic has offsets 0 to 1, records from 7 on are needed"),
    ):
        read(log, 7, 1)
