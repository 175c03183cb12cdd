"""Batches that the client cannot decompress: every reader skips them, says and counts what is lost, and reads on behind them."""

from __future__ import annotations

import json
import logging
import math
import random
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from confluent_kafka import KafkaError, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from minutely.services.dead_letters import dead_letters
from minutely.services.join import make_join_service
from streaming.clock import WallClock
from streaming.join.service import JoinService
from streaming.kafka import client
from streaming.kafka.client import reader_of
from streaming.kafka.history import KafkaHistory
from streaming.kafka.log import KafkaLog
from streaming.kafka.settings import KafkaSettings
from streaming.kafka.topics import ensure_topics
from streaming.kafka.unreadable_batches import first_outside, is_unreadable, lost_in
from streaming.log import DEAD_LETTERS, ENGAGEMENTS, EXAMPLES, IMPRESSIONS, BrokerError, LostRange, Record
from streaming.records.events import DeadLetter, encode
from streaming.records.examples import ExampleFormat
from tests.kafka.joining import MINUTE, Tomorrow, joined_through, now_ms, run_until
from tests.kafka.traffic import check_examples, make_pipeline, make_traffic, producer_of, read_examples, send

RECORD_BYTES = 100_000


@pytest.fixture
def bounded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Decompression bounded by 16 MiB, so that a batch of some 20 MB, which is 10 KB in the topic, is too much."""
    monkeypatch.setattr(client, "_DECOMPRESSED_BYTES", client._AHEAD_BYTES + 512)
    yield


def poison(kafka: KafkaSettings, topic: str, records: int, partition: int = 0) -> None:
    """Send valid requests as one batch of zstd, however slow the machine is: nothing is sent before ``flush``, and the partition
    is known before the first request, or the client would send those that it had placed by then."""
    options = {
        "compression.type": "zstd",
        "linger.ms": 60_000,
        "batch.size": 200_000_000,
        "batch.num.messages": 10_000,
        "message.max.bytes": 200_000_000,
    }
    refused: list[KafkaError] = []

    def delivered(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            refused.append(error)

    with closing(Producer(kafka.client() | options)) as producer:
        producer.list_topics(kafka.topic(topic), timeout=30)
        for number in range(records):
            request = {
                "version": 1,
                "request_id": f"lost{number}",
                "served_at": now_ms(),
                "impression_ids": ["a"],
                "shared": {"user": 7, "pad": "x" * RECORD_BYTES},
                "features": {"key": [1]},
            }
            value = json.dumps(request).encode()
            producer.produce(kafka.topic(topic), value, partition=partition, on_delivery=delivered)
        assert producer.flush(30) == 0
    assert not refused


def write(kafka: KafkaSettings, topic: str, *values: bytes) -> None:
    with producer_of(kafka) as producer:
        for value in values:
            producer.send(kafka.topic(topic), value, partition=0)


def read_back(kafka: KafkaSettings, topic: str, start: int, stop: int) -> list[Record | LostRange]:
    found: list[Record | LostRange] = []
    for records in KafkaHistory(kafka, 0).read(topic, start, stop):
        found += [records] if isinstance(records, LostRange) else records
    return found


def test_the_end_of_a_batch_is_found_with_few_questions() -> None:
    rng = random.Random(1)
    for _ in range(300):
        begin = rng.randrange(1000)
        size = rng.choice([1, 2, 3, 7, 8, 9, 800, rng.randrange(1, 1 << 20)])
        end = begin + size + rng.choice([0, 1, rng.randrange(1 << 40)])
        asked: list[int] = []

        def is_within(offset: int, begin: int = begin, stop: int = begin + size, asked: list[int] = asked) -> bool:
            asked.append(offset)
            return begin <= offset < stop

        assert first_outside(begin, end, is_within) == begin + size
        assert all(begin < offset < end for offset in asked)
        assert len(asked) <= 2 * math.ceil(math.log2(size + 1)) + 1


def test_a_batch_of_80_mb_is_read_whole(kafka: KafkaSettings) -> None:
    """It is 25 KB in the topic, and what makes the client's buffer grow past 100 MB, its default bound."""
    ensure_topics(kafka)
    poison(kafka, IMPRESSIONS, 800)
    found = read_back(kafka, IMPRESSIONS, 0, 800)
    assert [record.offset for record in found if isinstance(record, Record)] == list(range(800))


def test_history_goes_on_behind_each_batch(kafka: KafkaSettings, bounded: None) -> None:
    ensure_topics(kafka)
    write(kafka, IMPRESSIONS, b"a", b"b")
    poison(kafka, IMPRESSIONS, 210)
    poison(kafka, IMPRESSIONS, 199)
    write(kafka, IMPRESSIONS, b"c")
    poison(kafka, IMPRESSIONS, 200)
    end = KafkaHistory(kafka, 0).end(IMPRESSIONS)
    assert end == 2 + 210 + 199 + 1 + 200
    found = read_back(kafka, IMPRESSIONS, 0, end)
    assert len(found) == 6, [each[:3] if isinstance(each, LostRange) else each.offset for each in found]
    before, also, first, second, kept, third = found
    assert [each[:3] for each in (first, second, third)] == [
        (IMPRESSIONS, 2, 212),
        (IMPRESSIONS, 212, 411),
        (IMPRESSIONS, 412, 612),
    ]
    assert isinstance(first, LostRange) and "BAD_COMPRESSION" in first.unreadable
    assert [before[:2], also[:2], kept[:2]] == [(0, b"a"), (1, b"b"), (411, b"c")]
    assert [each[:3] for each in read_back(kafka, IMPRESSIONS, 100, 150)] == [(IMPRESSIONS, 100, 150)]
    assert [each[:2] for each in read_back(kafka, IMPRESSIONS, 0, 2)] == [(0, b"a"), (1, b"b")]


def cut(kafka: KafkaSettings, topic: str, offset: int) -> None:
    """Delete the records before an offset; brokers keep the batch that it is in."""
    admin = AdminClient(kafka.client())
    (deleted,) = admin.delete_records([TopicPartition(kafka.topic(topic), 0, offset)]).values()
    assert deleted.result(30).low_watermark == offset


def test_a_log_that_begins_within_a_batch_goes_on_behind_it(
    kafka: KafkaSettings, bounded: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The client names an offset that is deleted; every reader counts what is kept of the batch."""
    kafka = kafka.model_copy(update={"partitions": 1})
    pipeline = make_pipeline(kafka)
    ensure_topics(kafka)
    poison(kafka, IMPRESSIONS, 210)
    cut(kafka, IMPRESSIONS, 50)
    traffic = make_traffic(1, 5, 2, now_ms() - 20 * MINUTE, 50)
    with producer_of(kafka) as producer:
        send(producer, kafka, traffic.events)
    gap, *records = read_back(kafka, IMPRESSIONS, 50, KafkaHistory(kafka, 0).end(IMPRESSIONS))
    assert gap[:3] == (IMPRESSIONS, 50, 210) and [each[0] for each in records] == list(range(210, 215))
    with closing(KafkaLog(kafka, IMPRESSIONS)) as log:
        until, found = time.monotonic() + 30, list[Record]()
        while not found:
            assert time.monotonic() < until, log.lost
            found = log.read(IMPRESSIONS, 0, log.begin(IMPRESSIONS, 0), 1)
            log.fill(100)
        assert found[0].offset == 210 and log.lost == {0: 160}
    with caplog.at_level(logging.WARNING):
        service = make_join_service(pipeline, tmp_path / "state", Tomorrow())
        run_until(service, joined_through(now_ms(), 1))
    assert "impressions/0: records from offset 50 to 210 cannot be decompressed" in caplog.text
    assert "retrying" not in caplog.text
    check_examples(read_examples(kafka, ExampleFormat(pipeline.features, pipeline.labels)), traffic.labels)


def test_a_batch_that_was_deleted_meanwhile_takes_nothing_with_it(kafka: KafkaSettings, bounded: None) -> None:
    ensure_topics(kafka)
    poison(kafka, IMPRESSIONS, 210)
    write(kafka, IMPRESSIONS, b"a")
    with closing(reader_of(kafka)) as consumer:
        consumer.assign([TopicPartition(kafka.topic(IMPRESSIONS), 0, 0)])
        message = consumer.poll(30)
    assert message is not None and is_unreadable(message)
    cut(kafka, IMPRESSIONS, 210)
    with pytest.raises(BrokerError, match="deleted meanwhile"):
        lost_in(kafka, IMPRESSIONS, message)


def test_the_joiner_goes_on_behind_a_batch(
    kafka: KafkaSettings, bounded: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What came before and after it becomes examples, also when the state is made again; other partitions do not notice."""
    kafka = kafka.model_copy(update={"partitions": 2})
    pipeline = make_pipeline(kafka, join={"lateness": "1h"})  # nothing is due before the end
    ensure_topics(kafka)
    before = make_traffic(1, 30, 2, now_ms() - 20 * MINUTE, 50)
    after = make_traffic(2, 30, 2, now_ms() - 20 * MINUTE + 1500, 50, first=30)
    for events in (before.events, after.events):
        with producer_of(kafka) as producer:
            send(producer, kafka, events)
        if events is before.events:
            poison(kafka, IMPRESSIONS, 210)
            poison(kafka, ENGAGEMENTS, 210, partition=1)
    records = len(before.events) + len(after.events) + 2 * 210
    lost: dict[tuple[int, str], int] = {}

    def taken(service: JoinService) -> bool:
        members = service.members.values()
        return sum(sum(each.work.offsets.values()) for each in members) == records and not any(
            each.work.uncommitted for each in members
        )

    def done(service: JoinService) -> bool:
        lost.update({(at, topic): n for at, each in service.members.items() for topic, n in each.lost.items() if n})
        return joined_through(now_ms(), 2)(service)

    with caplog.at_level(logging.WARNING):
        run_until(make_join_service(pipeline, tmp_path / "a", WallClock()), taken)
        said = [each.message for each in caplog.records if "cannot be decompressed" in each.message]
        assert len(said) == 2 and all("up to 210 lost" in each and "offset" in each for each in said), caplog.text
        assert "retrying" not in caplog.text
        run_until(make_join_service(pipeline, tmp_path / "b", Tomorrow()), done)
    assert lost == {(0, IMPRESSIONS): 210, (1, ENGAGEMENTS): 210}, "what a rebuild needs is counted again"
    labels = before.labels | after.labels
    check_examples(read_examples(kafka, ExampleFormat(pipeline.features, pipeline.labels)), labels)


def test_a_log_goes_on_behind_a_batch(
    kafka: KafkaSettings, bounded: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As trainers and archivers read `examples`; brokers that are away just then cost nothing else."""
    answers = [BrokerError("away")]

    def lost_later(settings: KafkaSettings, topic: str, message: Message) -> LostRange:
        if answers:
            raise answers.pop()
        return lost_in(settings, topic, message)

    monkeypatch.setattr("streaming.kafka.log.lost_in", lost_later)
    ensure_topics(kafka)
    write(kafka, EXAMPLES, b"a")
    poison(kafka, EXAMPLES, 210)
    write(kafka, EXAMPLES, b"b")
    found: list[Record] = []
    until = time.monotonic() + 30
    with closing(KafkaLog(kafka, EXAMPLES)) as log, caplog.at_level(logging.ERROR):
        while len(found) < 2:
            assert time.monotonic() < until, found
            found += log.read(EXAMPLES, 0, found[-1].offset + 1 if found else 0, 10)
            with suppress(BrokerError):
                log.fill(100)
        assert log.lost == {0: 210, 1: 0, 2: 0}
    assert [record[:2] for record in found] == [(0, b"a"), (211, b"b")]
    assert "examples/0: records from offset 1 to 211 cannot be decompressed" in caplog.text


def test_dead_letters_behind_a_batch_are_listed(
    kafka: KafkaSettings, bounded: None, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = make_pipeline(kafka)
    ensure_topics(kafka)
    letter = DeadLetter(topic=IMPRESSIONS, partition=0, offset=3, reason="malformed", detail="", payload=b"x")
    poison(kafka, DEAD_LETTERS, 210)
    write(kafka, DEAD_LETTERS, encode(letter))
    with caplog.at_level(logging.ERROR):
        assert list(dead_letters(pipeline, lambda: False)) == [letter]
    assert "dead-letters/0: records from offset 0 to 210 cannot be decompressed" in caplog.text
