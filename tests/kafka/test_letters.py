"""Dead letters of the archiver and the trainer: none is passed that brokers do not have."""

from __future__ import annotations

import logging

import msgspec
import pytest

from stack.ports import free_ports
from streaming.kafka.letters import LetterSender
from streaming.kafka.settings import KafkaSettings
from streaming.kafka.topics import ensure_topics
from streaming.log import DEAD_LETTERS, EXAMPLES
from streaming.records.events import DeadLetter, decode_letter
from tests.kafka.traffic import alter, read_topic

LARGE = DeadLetter(topic=EXAMPLES, partition=0, offset=1, reason="unreadable", detail="", payload=b"x" * 2000)


def offsets(kafka: KafkaSettings) -> list[int]:
    return [decode_letter(value).offset for _, value in read_topic(kafka, DEAD_LETTERS)[0]]


def test_letters_that_brokers_will_never_take_are_lost_and_counted_and_the_others_sent(
    kafka: KafkaSettings, caplog: pytest.LogCaptureFixture
) -> None:
    ensure_topics(kafka)
    alter(kafka, kafka.topic(DEAD_LETTERS), "max.message.bytes", "1000")
    sender = LetterSender(kafka, logging.getLogger("test"), lambda: False)
    small = [msgspec.structs.replace(LARGE, offset=number, payload=b"x") for number in (2, 3)]
    assert sender.send([LARGE, *small]) and not sender.is_missing_some
    assert sender.lost == 1 and set(offsets(kafka)) == {2, 3}
    assert (
        "refuse the dead letter of examples/0, offset 1 (unreadable), which is lost: MSG_SIZE_TOO_LARGE" in caplog.text
    )
    assert sender.send([msgspec.structs.replace(LARGE, offset=4, payload=b"x")])
    assert sender.lost == 1 and offsets(kafka)[-1] == 4


def test_letters_that_together_are_too_large_go_one_by_one(kafka: KafkaSettings) -> None:
    ensure_topics(kafka)
    alter(kafka, kafka.topic(DEAD_LETTERS), "max.message.bytes", "3000")
    sender = LetterSender(kafka, logging.getLogger("test"), lambda: False)
    assert sender.send([msgspec.structs.replace(LARGE, offset=number) for number in range(3)])
    assert sender.lost == 0 and set(offsets(kafka)) == {0, 1, 2}


def test_a_service_that_is_to_end_sends_its_last_letters(kafka: KafkaSettings) -> None:
    ensure_topics(kafka)
    sender = LetterSender(kafka, logging.getLogger("test"), lambda: True)
    assert sender.send([LARGE]) and not sender.is_missing_some
    assert len(read_topic(kafka, DEAD_LETTERS)[0]) == 1


def test_what_was_not_taken_when_a_service_ends_counts_as_missing() -> None:
    nobody = KafkaSettings(bootstrap=f"127.0.0.1:{free_ports(1)[0]}")
    sender = LetterSender(nobody, logging.getLogger("test"), lambda: True)
    assert not sender.send([LARGE]) and sender.is_missing_some and sender.lost == 0
