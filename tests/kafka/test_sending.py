"""What producers promise: the partition that other clients choose, and an error where a record was not taken."""

from __future__ import annotations

import ast
import logging
import re
import time
from contextlib import closing

import pytest
from confluent_kafka import Producer

from streaming.kafka import sending
from streaming.kafka.sending import RetryingSender
from streaming.kafka.settings import BOOTSTRAP, MAX_OUTPUT_BYTES, KafkaSettings
from streaming.kafka.topics import ensure_topics
from streaming.log import ENGAGEMENTS, IMPRESSIONS, BrokerError
from tests.commands import ROOT
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


def test_the_producer_of_the_page_sends_keys_there_too(kafka: KafkaSettings) -> None:
    """docs/kafka.md has its options; with the client's own default, records of a request part from each other."""
    (options,) = re.findall(r"Producer\((\{.*\})\)", (ROOT / "docs/kafka.md").read_text())
    ensure_topics(kafka)
    wanted = {key: (value & 0x7FFFFFFF) % kafka.partitions for key, value in MURMUR2.items()}
    for topic, given in ((IMPRESSIONS, ast.literal_eval(options)), (ENGAGEMENTS, {})):
        with closing(Producer(given | {"bootstrap.servers": ",".join(kafka.brokers)})) as producer:
            for key in MURMUR2:
                producer.produce(kafka.topic(topic), b"x", key=key)
            assert producer.flush(20) == 0
        found = {message.key(): at for at, messages in read_messages(kafka, topic).items() for message in messages}
        assert found.keys() == wanted.keys()
        assert (found == wanted) == bool(given)


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
