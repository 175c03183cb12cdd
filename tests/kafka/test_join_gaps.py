"""Records that retention deleted before they were joined: said, counted, and passed over, never silently."""

from __future__ import annotations

import logging
from contextlib import closing
from pathlib import Path

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from minutely.services.join import make_join_service
from streaming.clock import WallClock
from streaming.join.service import JoinService
from streaming.kafka.outlet import KafkaOutlet
from streaming.kafka.settings import KafkaSettings
from streaming.kafka.topics import ensure_topics
from streaming.log import ENGAGEMENTS, IMPRESSIONS
from streaming.records.events import MAX_TIME_MS, decode_engagement, decode_request
from streaming.records.examples import ExampleFormat
from streaming.records.identity import example_id
from tests.kafka.joining import MINUTE, Tomorrow, joined_through, now_ms, run_until
from tests.kafka.traffic import (
    check_examples,
    delete_before,
    make_pipeline,
    make_traffic,
    producer_of,
    read_examples,
    read_topic,
    send,
)
from tests.streaming.join.commits import a_commit


def lost(service: JoinService) -> dict[str, int]:
    return {topic: count for member in service.members.values() for topic, count in member.lost.items()}


@pytest.mark.parametrize("state_too", [False, True])
def test_what_was_deleted_before_it_was_joined_is_said_and_counted(
    state_too: bool, kafka: KafkaSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kafka = kafka.model_copy(update={"partitions": 1})
    pipeline = make_pipeline(kafka, join={"lateness": "1h"})  # nothing is due before the end
    ensure_topics(kafka)
    start = now_ms() - 20 * MINUTE
    first = make_traffic(1, 300, 2, start, 50)
    with producer_of(kafka) as producer:
        send(producer, kafka, first.events)
    run_until(
        make_join_service(pipeline, tmp_path / "a", WallClock()),
        lambda service: any(
            sum(member.work.offsets.values()) == len(first.events) and not member.work.uncommitted
            for member in service.members.values()
        ),
    )
    joined = len(read_topic(kafka, IMPRESSIONS)[0])
    second = make_traffic(2, 300, 2, start + 15_000, 50, first=300)
    with producer_of(kafka) as producer:
        send(producer, kafka, second.events)
    delete_before(kafka, IMPRESSIONS, 0, joined + 100)
    kept = [decode_request(value, MAX_TIME_MS) for _, value in read_topic(kafka, IMPRESSIONS)[0]]
    seen: dict[str, int] = {}

    def done(service: JoinService) -> bool:
        seen.update(lost(service))
        return joined_through(now_ms(), 1)(service)

    with caplog.at_level(logging.ERROR):
        run_until(make_join_service(pipeline, tmp_path / ("b" if state_too else "a"), Tomorrow()), done)
    said = [record.message for record in caplog.records if "were deleted" in record.message]
    assert f"impressions/0: records from offset {joined} to {joined + 100} were deleted" in said[-1]
    # A rebuild also needs records that were joined before; these are gone as well, and counted besides.
    assert len(said) == 1 + state_too
    assert seen[IMPRESSIONS] >= 100 if state_too else seen == {IMPRESSIONS: 100}
    emitted = read_examples(kafka, ExampleFormat(pipeline.features, pipeline.labels))
    assert set(emitted.times.values()) == {1}
    assert emitted.times.keys() >= {
        example_id(request.request_id, name) for request in kept for name in request.impression_ids
    }
    done = [decode_engagement(value, MAX_TIME_MS) for _, value in read_topic(kafka, ENGAGEMENTS)[0]]
    clicked = {example_id(each.request_id, each.impression_id) for each in done}
    assert {name for name, label in emitted.labels.items() if label} == clicked & emitted.times.keys()


def test_offsets_that_brokers_forgot_are_waited_for(
    kafka: KafkaSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They go when joiners were away for longer than `offsets.retention.minutes`; going on would emit everything again."""
    kafka = kafka.model_copy(update={"partitions": 1})
    pipeline = make_pipeline(kafka)
    ensure_topics(kafka)
    traffic = make_traffic(1, 100, 2, now_ms() - 20 * MINUTE, 50)
    with producer_of(kafka) as producer:
        send(producer, kafka, traffic.events)
    run_until(make_join_service(pipeline, tmp_path / "a", WallClock()), joined_through(now_ms() - 10 * MINUTE, 1))
    group = kafka.topic("minutely-joined")
    with AdminClient(kafka.client()) as admin:
        admin.delete_consumer_groups([group])[group].result()
    with caplog.at_level(logging.WARNING):
        run_until(
            make_join_service(pipeline, tmp_path / "a", WallClock()),
            lambda _: any(
                "no offsets are committed, but examples holds" in record.message for record in caplog.records
            ),
        )
    check_examples(read_examples(kafka, ExampleFormat(pipeline.features, pipeline.labels)), traffic.labels)
    # As the message advises, with the same folder.
    kafka = kafka.model_copy(update={"prefix": f"{kafka.prefix}new."})
    pipeline = make_pipeline(kafka)
    ensure_topics(kafka)
    run_until(make_join_service(pipeline, tmp_path / "a", WallClock()), joined_through(now_ms() - 10 * MINUTE, 1))
    assert f"its folder holds a state of topics with kafka.prefix {kafka.prefix[:-4]!r}" in caplog.text


@pytest.mark.parametrize(
    ("place", "said"),
    [(0.0, "is damaged, rebuilding it"), (0.6, "the state is rebuilt"), (0.85, "the state is rebuilt")],
)
def test_a_damaged_state_is_made_anew(
    place: float, said: str, kafka: KafkaSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In the block that is read at the start, among the records, or among the timers, which a cursor reads."""
    kafka = kafka.model_copy(update={"partitions": 1})
    pipeline = make_pipeline(kafka, join={"lateness": "1h"})  # nothing is due before the end
    ensure_topics(kafka)
    traffic = make_traffic(1, 1000, 2, now_ms() - 20 * MINUTE, 50)
    with producer_of(kafka) as producer:
        send(producer, kafka, traffic.events)
    run_until(
        make_join_service(pipeline, tmp_path / "a", WallClock()),
        lambda service: (
            any(member.work.state.head for member in service.members.values())
            and all(
                member.work.offsets.items() <= member.work.state.head.offsets.items()
                for member in service.members.values()
            )
        ),
    )
    (path,) = (tmp_path / "a" / "0").glob("*.sst")
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        run_until(make_join_service(pipeline, tmp_path / "a", Tomorrow()), joined_through(now_ms(), 1), 60)
    assert said in caplog.text
    check_examples(read_examples(kafka, ExampleFormat(pipeline.features, pipeline.labels)), traffic.labels)


def test_marks_of_transactions_hold_no_window_open(kafka: KafkaSettings, tmp_path: Path) -> None:
    """Inputs may be written in transactions: their marks, and what was aborted, take offsets that nobody can read."""
    kafka = kafka.model_copy(update={"partitions": 1})
    pipeline = make_pipeline(kafka)
    ensure_topics(kafka)
    traffic, aborted = (make_traffic(seed, 20, 2, now_ms() - MINUTE, 1, first=seed * 20) for seed in (0, 1))
    with closing(Producer(kafka.client() | {"transactional.id": kafka.prefix})) as producer:
        producer.init_transactions(20)
        for events, end in (
            (traffic.events, producer.commit_transaction),
            (aborted.events, producer.abort_transaction),
        ):
            producer.begin_transaction()
            for event in events:
                producer.produce(kafka.topic(event.topic), event.value, partition=0)
            producer.flush(20)
            end(20)
    run_until(make_join_service(pipeline, tmp_path / "a", Tomorrow()), joined_through(now_ms(), 1), 30)
    check_examples(read_examples(kafka, ExampleFormat(pipeline.features, pipeline.labels)), traffic.labels)


def test_a_topic_that_ends_before_what_was_joined_is_waited_for(
    kafka: KafkaSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Going on from either end of it would drop records or join them again."""
    kafka = kafka.model_copy(update={"partitions": 1})
    pipeline = make_pipeline(kafka)
    ensure_topics(kafka)
    start = now_ms() - 20 * MINUTE
    traffic = make_traffic(1, 100, 2, start, 50)
    with producer_of(kafka) as producer:
        send(producer, kafka, traffic.events)
    outlet = KafkaOutlet(kafka, 0)
    assert outlet.open() is None
    outlet.send([], a_commit((0, 5000, 0, 0), state_id="gone", offsets={IMPRESSIONS: 0, ENGAGEMENTS: 5000}))
    outlet.close()
    with caplog.at_level(logging.WARNING):
        run_until(
            make_join_service(pipeline, tmp_path / "a", WallClock()),
            lambda _: any("engagements ends at offset" in record.message for record in caplog.records),
        )
    assert not read_examples(kafka, ExampleFormat(pipeline.features, pipeline.labels)).times
