"""What producers promise: the partition that other clients choose, and an error where a record was not taken."""

from __future__ import annotations

import logging
import time

import pytest

from streaming.kafka import sending
from streaming.kafka.sending import RetryingSender
from streaming.kafka.settings import BOOTSTRAP, MAX_OUTPUT_BYTES, KafkaSettings
from streaming.kafka.topics import ensure_topics
from streaming.log import IMPRESSIONS, BrokerError
from tests.kafka.traffic import alter, producer_of, read_messages, read_topic

MURMUR2 = {b"21": -973932308, b"foobar": -790332482, b"a-little-bit-long-string": -985981536, b"abc": 479470107}
"""Of the keys' bytes, as Kafka's own clients compute it."""


def test_keys_go_where_other_clients_send_them(kafka: KafkaSettings) -> None:
    ensure_topics(kafka)
    with producer_of(kafka) as sender:
        for key in MURMUR2:
            sender.send(kafka.topic(IMPRESSIONS), b"x", key=key)
    found = {message.key(): at for at, messages in read_messages(kafka, IMPRESSIONS).items() for message in messages}
    assert found == {key: (value & 0x7FFFFFFF) % kafka.partitions for key, value in MURMUR2.items()}
    assert len(set(found.values())) > 1


def test_a_record_that_brokers_refuse_is_an_error(kafka: KafkaSettings) -> None:
    ensure_topics(kafka)
    name = kafka.topic(IMPRESSIONS)
    alter(kafka, name, "max.message.bytes", "1000")
    with pytest.raises(BrokerError, match="MSG_SIZE_TOO_LARGE"), producer_of(kafka) as sender:
        sender.send(name, b"x" * 2000, partition=0)
    with pytest.raises(BrokerError, match="MSG_SIZE_TOO_LARGE"), producer_of(kafka) as sender:
        sender.send(name, b"x" * (MAX_OUTPUT_BYTES + 1), partition=0)
    assert not read_topic(kafka, IMPRESSIONS)[0]


def test_more_than_the_client_keeps_at_once_is_waited_for(
    kafka: KafkaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "_SEND_BYTES", 1 << 20)
    ensure_topics(kafka)
    values = [bytes([number]) * 300_000 for number in range(20)]
    with producer_of(kafka) as sender:
        for value in values:
            sender.send(kafka.topic(IMPRESSIONS), value, partition=1)
    assert [value for _, value in read_topic(kafka, IMPRESSIONS)[1]] == values


def test_brokers_that_are_away_are_waited_for_until_asked_to_stop(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where no more fits into memory; that is said once."""
    monkeypatch.delenv(BOOTSTRAP, raising=False)
    monkeypatch.setattr(sending, "_SEND_BYTES", 1 << 20)
    until = time.monotonic() + 5
    sender = RetryingSender(
        KafkaSettings(bootstrap="127.0.0.1:1"), logging.getLogger("test"), lambda: time.monotonic() > until
    )
    handed = 0
    while sender.send("any", b"x" * 300_000, partition=0):
        handed += 1
    assert time.monotonic() > until
    assert handed == 3
    assert caplog.text.count("brokers: TIMED_OUT") == 1
    assert sender.wait() == handed
    assert sender.taken.total() == 0
