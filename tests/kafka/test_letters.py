"""Dead letters of the archiver and the trainer: none is passed that brokers do not have."""

from __future__ import annotations

import logging
import time
from threading import Thread

import msgspec
import pytest

from streaming.kafka.letters import LetterSender
from streaming.kafka.settings import KafkaSettings
from streaming.kafka.topics import ensure_topics
from streaming.log import DEAD_LETTERS, EXAMPLES
from streaming.records.events import DeadLetter, decode_letter
from tests.kafka.traffic import alter, read_topic

LARGE = DeadLetter(topic=EXAMPLES, partition=0, offset=1, reason="unreadable", detail="", payload=b"x" * 2000)


def test_letters_that_brokers_refuse_are_sent_again_until_they_are_taken(
    kafka: KafkaSettings, caplog: pytest.LogCaptureFixture
) -> None:
    ensure_topics(kafka)
    name = kafka.topic(DEAD_LETTERS)
    alter(kafka, name, "max.message.bytes", "1000")
    sender, done = LetterSender(kafka, logging.getLogger("test"), lambda: False), []
    sending = Thread(target=lambda: done.append(sender.send([LARGE, msgspec.structs.replace(LARGE, offset=2)])))
    sending.start()
    end = time.monotonic() + 60
    while "dead letters: MSG_SIZE_TOO_LARGE" not in caplog.text:
        assert sending.is_alive() and time.monotonic() < end
        time.sleep(0.05)
    alter(kafka, name, "max.message.bytes", str(8 << 20))
    sending.join(60)
    assert done == [True] and not sender.is_missing_some
    assert [decode_letter(value).offset for _, value in read_topic(kafka, DEAD_LETTERS)[0]] == [1, 2]


def test_a_service_that_is_to_end_sends_its_last_letters(kafka: KafkaSettings) -> None:
    ensure_topics(kafka)
    sender = LetterSender(kafka, logging.getLogger("test"), lambda: True)
    assert sender.send([LARGE]) and not sender.is_missing_some
    assert len(read_topic(kafka, DEAD_LETTERS)[0]) == 1


def test_what_was_refused_when_a_service_ends_counts_as_missing(kafka: KafkaSettings) -> None:
    ensure_topics(kafka)
    alter(kafka, kafka.topic(DEAD_LETTERS), "max.message.bytes", "1000")
    asked = iter([False] * 3)  # and then it is to stop
    sender = LetterSender(kafka, logging.getLogger("test"), lambda: next(asked, True))
    assert not sender.send([LARGE]) and sender.is_missing_some
