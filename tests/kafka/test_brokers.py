"""Kafka as the joiners' service sees it: places by the pipeline's names of topics, what was reached, and what failed alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewPartitions

from streaming.kafka.brokers import KafkaBrokers
from streaming.kafka.settings import BOOTSTRAP, KafkaSettings
from streaming.kafka.topics import ensure_topics
from streaming.log import ENGAGEMENTS, EXAMPLES, IMPRESSIONS, BrokerError, NoLeaderError
from streaming.loop.brokers import Fetched
from tests.kafka.joining import MINUTE, now_ms
from tests.kafka.traffic import alter, delete_before, producer_of

WITHIN_SECONDS = 30


def read_until(brokers: KafkaBrokers, done: Callable[[Fetched], bool]) -> Fetched:
    """What came in all, once it holds."""
    found = Fetched({}, {}, {})
    until = time.monotonic() + WITHIN_SECONDS
    while not done(found):
        assert time.monotonic() < until, found
        fetched = brokers.read()
        records = {place: [*found.records.get(place, []), *more] for place, more in fetched.records.items()}
        found = Fetched(
            {**found.records, **records}, {**found.read_to, **fetched.read_to}, {**found.failed, **fetched.failed}
        )
    return found


def test_the_end_is_not_reached_before_an_open_transaction_is(kafka: KafkaSettings) -> None:
    """Else the watermark would pass what stands behind it, though that came in time."""
    ensure_topics(kafka)
    place = (ENGAGEMENTS, 0)
    brokers = KafkaBrokers(kafka)
    with closing(Producer(kafka.client() | {"transactional.id": kafka.prefix})) as writer:
        writer.init_transactions(20)
        writer.begin_transaction()
        writer.produce(kafka.topic(ENGAGEMENTS), b"held", partition=0)
        writer.flush(20)
        with producer_of(kafka) as producer:
            producer.send(kafka.topic(ENGAGEMENTS), b"behind", partition=0)
        try:
            brokers.read_on({place: 0})
            held = read_until(brokers, lambda found: place in found.read_to)
            assert (held.records, held.read_to) == ({}, {place: 0})
            assert brokers.ends([0])[place] == 2
            writer.commit_transaction(20)
            read = read_until(brokers, lambda found: found.read_to.get(place) == brokers.ends([0])[place])
            assert [record.value for record in read.records[place]] == [b"held", b"behind"]
        finally:
            brokers.leave()


def test_inputs_are_read_from_where_they_are_asked_for(kafka: KafkaSettings) -> None:
    """Past the marks of transactions, and past a place whose next record is gone."""
    kafka = kafka.model_copy(update={"partitions": 2})
    ensure_topics(kafka)
    with producer_of(kafka) as producer:
        for number in range(10):
            producer.send(kafka.topic(IMPRESSIONS), bytes([number]), partition=0)
            producer.send(kafka.topic(IMPRESSIONS), bytes([number]), partition=1)
    with closing(Producer(kafka.client() | {"transactional.id": kafka.prefix})) as writer:
        writer.init_transactions(20)
        writer.begin_transaction()
        writer.produce(kafka.topic(ENGAGEMENTS), b"click", partition=0)
        writer.flush(20)
        writer.commit_transaction(20)
    delete_before(kafka, IMPRESSIONS, 1, 5)
    brokers = KafkaBrokers(kafka)
    try:
        brokers.check_leaders([0, 1])
        inputs = [(topic, partition) for topic in (IMPRESSIONS, ENGAGEMENTS) for partition in (0, 1)]
        assert dict(brokers.begins([0, 1])) == dict(zip(inputs, (0, 5, 0, 0), strict=True))
        until = time.monotonic() + WITHIN_SECONDS
        while dict(brokers.ends([0, 1])) != dict(zip(inputs, (10, 10, 2, 0), strict=True)):
            time.sleep(0.01)
        assert time.monotonic() < until, "marks follow a commit a little later"
        brokers.read_on({(IMPRESSIONS, 0): 7, (ENGAGEMENTS, 0): 0, (IMPRESSIONS, 1): 2, (ENGAGEMENTS, 1): 0})
        found = read_until(
            brokers, lambda found: bool(found.failed) and len(found.read_to) == 3 and len(found.records) == 2
        )
        values = {place: [record.value for record in records] for place, records in found.records.items()}
        assert values == {(IMPRESSIONS, 0): [b"\7", b"\10", b"\11"], (ENGAGEMENTS, 0): [b"click"]}
        assert [record.offset for record in found.records[IMPRESSIONS, 0]] == [7, 8, 9]
        assert found.read_to == {(IMPRESSIONS, 0): 10, (ENGAGEMENTS, 0): 2, (ENGAGEMENTS, 1): 0}
        assert found.failed.keys() == {(IMPRESSIONS, 1)}
        brokers.read_on({(IMPRESSIONS, 1): 8})
        found = read_until(brokers, lambda found: bool(found.read_to))
        assert [record.offset for record in found.records[IMPRESSIONS, 1]] == [8, 9]
        assert not found.failed
    finally:
        brokers.leave()


def test_a_time_that_its_producer_gave_a_record_is_not_when_it_was_appended(kafka: KafkaSettings) -> None:
    """It would move the watermark as far as a fast clock claims; a topic may still hold such records once its setting is right."""
    ensure_topics(kafka)
    topic, place = kafka.topic(IMPRESSIONS), (IMPRESSIONS, 0)
    alter(kafka, topic, "message.timestamp.type", "CreateTime")
    producer = Producer(kafka.client())
    producer.produce(topic, b"fast", partition=0, timestamp=now_ms() + 30 * MINUTE)
    producer.produce(topic, b"slow", partition=0, timestamp=now_ms() - 30 * MINUTE)
    assert producer.flush(20) == 0
    alter(kafka, topic, "message.timestamp.type", "LogAppendTime")
    with producer_of(kafka) as stamped:
        stamped.send(topic, b"stamped", partition=0)
    brokers, sent_at = KafkaBrokers(kafka), now_ms()
    try:
        time.sleep(0.1)
        brokers.read_on({place: 0})
        found = read_until(brokers, lambda found: len(found.records.get(place, [])) == 3).records[place]
    finally:
        brokers.leave()
    *claimed, by_broker = found
    assert all(sent_at < record.appended_at <= now_ms() for record in claimed)
    assert by_broker.appended_at <= sent_at


def test_what_is_not_there_has_no_leader(kafka: KafkaSettings) -> None:
    """A partition, or a whole topic: said at once, with its name."""
    brokers = KafkaBrokers(kafka)
    try:
        with pytest.raises(NoLeaderError, match=kafka.topic(f"{EXAMPLES}/1")) as nothing:
            brokers.check_leaders([0, 1])
        assert nothing.value.partitions == {0, 1}
        ensure_topics(kafka)
        brokers.check_leaders(range(kafka.partitions))
        began = time.monotonic()
        for ask in (brokers.check_leaders, brokers.begins, brokers.ends):
            with pytest.raises(NoLeaderError, match=kafka.topic(f"{IMPRESSIONS}/7")) as missing:
                ask([0, 7])
            assert missing.value.partitions == {7}
        assert time.monotonic() - began < 5
    finally:
        brokers.leave()


def test_partitions_are_shared_and_given_up_at_once(kafka: KafkaSettings) -> None:
    ensure_topics(kafka)
    first, second = KafkaBrokers(kafka), KafkaBrokers(kafka)
    everything = frozenset(range(kafka.partitions))
    until = time.monotonic() + WITHIN_SECONDS
    first.join()
    while first.assigned() != everything:
        assert time.monotonic() < until, first.assigned()
        time.sleep(0.01)
    second.join()
    ours, others = everything, frozenset[int]()
    while not others or ours | others != everything or ours & others:
        assert time.monotonic() < until, (ours, others)
        time.sleep(0.01)
        ours, others = first.assigned(), second.assigned()
    left_at = time.monotonic()
    first.leave()
    while second.assigned() != everything:
        assert time.monotonic() < until, second.assigned()
        time.sleep(0.01)
    assert time.monotonic() - left_at < 9, "well before its session would have ended"
    second.leave()


def test_brokers_that_are_away_are_an_error_of_one_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(BOOTSTRAP, raising=False)
    monkeypatch.setattr("streaming.kafka.brokers._ANSWER_SECONDS", 0.5)
    brokers = KafkaBrokers(KafkaSettings(bootstrap="127.0.0.1:1", partitions=1))
    try:
        for ask in (brokers.begins, brokers.ends, brokers.check_leaders):
            with pytest.raises(BrokerError, match=r"TRANSPORT|TIMED_OUT"):
                ask([0])
        brokers.read_on({(IMPRESSIONS, 0): 0})
        assert brokers.read() == Fetched({}, {}, {})
    finally:
        brokers.leave()


def test_partitions_that_the_config_does_not_know_are_left_alone(
    kafka: KafkaSettings, caplog: pytest.LogCaptureFixture
) -> None:
    """A topic that grew beneath joiners: nobody reads what they would write of its new partitions."""
    ensure_topics(kafka)
    admin = AdminClient(kafka.client())
    admin.create_partitions([NewPartitions(kafka.topic(IMPRESSIONS), kafka.partitions + 1)])[
        kafka.topic(IMPRESSIONS)
    ].result(WITHIN_SECONDS)
    brokers = KafkaBrokers(kafka)
    try:
        brokers.join()
        until = time.monotonic() + WITHIN_SECONDS
        while f"{kafka.partitions} not joined" not in caplog.text:
            assert time.monotonic() < until
            ours = brokers.assigned()
            time.sleep(0.05)
        assert ours == frozenset(range(kafka.partitions))
        for _ in range(3):
            brokers.assigned()
        assert caplog.text.count("has more partitions than kafka.partitions") == 1
    finally:
        brokers.leave()
