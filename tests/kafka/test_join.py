"""The joiner's service on a real broker."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
from prometheus_client.registry import CollectorRegistry

from minutely.config import Pipeline
from minutely.replays.loop import open_state
from minutely.services.join import make_join_service
from streaming.clock import EventClock, WallClock
from streaming.embedded_log import EmbeddedLog
from streaming.join.embedded import catch_up, embedded_service
from streaming.join.metrics import JoinMetrics
from streaming.join.service import JoinService
from streaming.kafka.settings import KafkaSettings
from streaming.kafka.topics import ensure_topics
from streaming.log import ENGAGEMENTS, EXAMPLES, IMPRESSIONS
from streaming.records.events import MAX_TIME_MS, Engagement, decode_request, encode
from streaming.records.examples import ExampleFormat
from tests.kafka.joining import MINUTE, joined_through, now_ms, run_until
from tests.kafka.traffic import (
    Event,
    Traffic,
    check_examples,
    make_pipeline,
    make_traffic,
    producer_of,
    read_dead_letters,
    read_examples,
    read_topic,
    send,
)


def embedded(pipeline: Pipeline, traffic: Traffic, folder: Path) -> pa.Table:
    """The examples of the same records through the embedded log, in the order of their ids."""
    clock = EventClock(now_ms())
    log = EmbeddedLog(folder / "log", durable=False, clock=clock)
    service = embedded_service(log, pipeline.join_spec(), partial(open_state, pipeline, folder / "pending"), clock)
    service.start()
    for event in traffic.events:
        log.append(event.topic, 0, [event.value])
    catch_up(service)
    records = log.read(EXAMPLES, 0, 0, log.end(EXAMPLES, 0))
    batches = [service.members[0].work.joiner.format.decode(record.value)[0] for record in records]
    service.leave()
    log.close()
    return in_order(batches)


def in_order(batches: Sequence[pa.RecordBatch]) -> pa.Table:
    """By id; scores that are missing as nulls, since a NaN equals none."""
    table = pa.Table.from_batches(batches).sort_by("example_id").combine_chunks()
    at = table.schema.get_field_index("score.click")
    scores = table.column(at)
    return table.set_column(at, "score.click", pc.if_else(pc.is_nan(scores), None, scores))


def test_a_backlog_gives_what_the_embedded_loop_gives_across_a_restart(kafka: KafkaSettings, tmp_path: Path) -> None:
    pipeline = make_pipeline(kafka)
    ensure_topics(kafka)
    start = now_ms() - 10 * MINUTE
    traffic = make_traffic(1, 6000, 5, start, 50)
    with producer_of(kafka) as producer:
        send(producer, kafka, traffic.events)
    for done in (
        lambda service: (
            sum(member.work.joiner.counts.records["impressions"] for member in service.members.values()) > 2000
        ),
        joined_through(start + 6 * MINUTE, 3),
    ):
        run_until(make_join_service(pipeline, tmp_path / "a", WallClock()), done)
    emitted = read_examples(kafka, ExampleFormat(pipeline.features, pipeline.labels))
    check_examples(emitted, traffic.labels)
    assert read_dead_letters(kafka) == []
    assert in_order(emitted.batches).equals(embedded(pipeline, traffic, tmp_path))


def test_state_that_is_lost_or_not_the_last_is_made_good(kafka: KafkaSettings, tmp_path: Path) -> None:
    pipeline = make_pipeline(kafka, labels={"click": {"action": "click", "window": "60s"}})
    ensure_topics(kafka)
    start = now_ms() - 10 * MINUTE
    traffic = make_traffic(2, 4000, 3, start, 100, window_ms=60_000)
    with producer_of(kafka) as producer:
        send(producer, kafka, traffic.events)
    read = 0
    for folder in ("a", "b", "a", "lost"):  # "a" comes back with a state that is no longer the last
        read += 900

        def done(service: JoinService, read: int = read) -> bool:
            joined = service.members.values()
            return len(joined) == 3 and sum(sum(member.work.offsets.values()) for member in joined) > read

        run_until(make_join_service(pipeline, tmp_path / folder, WallClock()), done)
    run_until(make_join_service(pipeline, tmp_path / "a", WallClock()), joined_through(start + 8 * MINUTE, 3))
    check_examples(read_examples(kafka, ExampleFormat(pipeline.features, pipeline.labels)), traffic.labels)


def test_a_service_has_caught_up_when_all_that_was_there_is_joined(kafka: KafkaSettings, tmp_path: Path) -> None:
    """Not before its first round, nor while it has more to read; and no longer where more arrives."""
    pipeline = make_pipeline(kafka)
    ensure_topics(kafka)
    start = now_ms() - 20 * MINUTE
    parts = [make_traffic(seed, 2000, 2, start, 50, first=2000 * seed).events for seed in range(2)]
    service = make_join_service(pipeline, tmp_path / "a", WallClock())
    sent, found = 0, list[int]()

    def done(service: JoinService) -> bool:
        nonlocal sent
        if len(found) == sent == len(parts):
            return True
        if len(found) == sent:
            with producer_of(kafka) as producer:
                send(producer, kafka, parts[sent])
            sent += 1
            service.round()
        if service.caught_up and len(service.members) == kafka.partitions:
            members = service.members.values()
            assert not any(member.work.uncommitted for member in members)
            found.append(sum(sum(member.work.offsets.values()) for member in members))
        return False

    assert not service.caught_up
    run_until(service, done)
    assert found == [len(parts[0]), len(parts[0]) + len(parts[1])]


def test_when_input_stops_negatives_are_out_in_time(kafka: KafkaSettings, tmp_path: Path) -> None:
    window = 3
    pipeline = make_pipeline(
        kafka, labels={"click": {"action": "click", "window": f"{window}s"}}, join={"lateness": "0s"}
    )
    ensure_topics(kafka)
    service = make_join_service(pipeline, tmp_path / "a", WallClock())
    traffic = make_traffic(3, 30, 4, 0, 0)  # some partitions are idle, and engagements come nowhere
    start = now_ms()
    requests = [
        encode(msgspec.structs.replace(decode_request(event.value, MAX_TIME_MS), served_at=start))
        for event in traffic.events
        if event.topic == IMPRESSIONS
    ]
    with producer_of(kafka) as producer:
        for value in requests:
            producer.send(kafka.topic(IMPRESSIONS), value, partition=1)
    run_until(
        service,
        lambda service: sum(member.work.joiner.counts.examples for member in service.members.values()) == 120,
        window + 5,
    )
    emitted = read_examples(kafka, ExampleFormat(pipeline.features, pipeline.labels))
    assert len(emitted.times) == 120
    assert set(emitted.times.values()) == {1}


def bad_records(rng: random.Random, good: bytes) -> dict[str, list[bytes]]:
    """Records that cannot be joined, by the reason that must be given."""
    request = decode_request(good, MAX_TIME_MS)
    change = partial(msgspec.structs.replace, request)
    large = encode(change(request_id="x" * 2_000_000))
    return {
        "malformed": [
            *(good[: rng.randrange(1, len(good))] for _ in range(300)),
            *(encode({"version": 1, "request_id": 7, "served_at": "now"}) for _ in range(100)),
            *(b"" for _ in range(100)),
            *(b"\x81\xa1\xff\xfe" + rng.randbytes(20) for _ in range(100)),
            *(b'{"version": 1, "request_id": "j", "served_at": 5}' for _ in range(45)),
            *(good.replace(request.request_id.encode(), b"\xff" * len(request.request_id)) for _ in range(50)),
            *[large] * 5,
        ],
        "version": [encode(change(version=2)) for _ in range(150)],
        "future": [encode(change(served_at=now_ms() + 7 * 86_400_000)) for _ in range(150)],
    }


def test_malformed_records_are_dead_letters_and_all_else_is_joined(kafka: KafkaSettings, tmp_path: Path) -> None:
    rng = random.Random(4)
    pipeline = make_pipeline(kafka)
    ensure_topics(kafka)
    start = now_ms() - 20 * MINUTE
    traffic = make_traffic(4, 99_000, 1, start, 10)
    bad = bad_records(rng, next(event.value for event in traffic.events if event.topic == IMPRESSIONS))
    records = list(traffic.events)
    for values in bad.values():
        for value in values:
            at = rng.randrange(len(records))
            records.insert(at, Event(0, IMPRESSIONS, f"bad {at}", value))
    with producer_of(kafka) as producer:
        send(producer, kafka, records)
    service = make_join_service(pipeline, tmp_path / "a", WallClock())
    run_until(service, joined_through(start + 18 * MINUTE, 3), 120)
    check_examples(read_examples(kafka, ExampleFormat(pipeline.features, pipeline.labels)), traffic.labels)
    letters = read_dead_letters(kafka)
    assert Counter(letter.reason for letter in letters) == {reason: len(values) for reason, values in bad.items()}
    for reason, values in bad.items():
        assert Counter(letter.payload for letter in letters if letter.reason == reason) == Counter(values)
    sent = {
        (partition, offset): value
        for partition, found in read_topic(kafka, IMPRESSIONS).items()
        for offset, value in found
    }
    assert all(sent[letter.partition, letter.offset] == letter.payload for letter in letters)


def test_metrics_count_by_partition(kafka: KafkaSettings, tmp_path: Path) -> None:
    pipeline = make_pipeline(kafka)
    ensure_topics(kafka)
    start = now_ms() - 10 * MINUTE
    traffic = make_traffic(5, 300, 2, start, 100)
    lost = Engagement(version=1, request_id="nobody", impression_id="0", action="click", happened_at=start)
    with producer_of(kafka) as producer:
        send(producer, kafka, [*traffic.events, Event(0, ENGAGEMENTS, "nobody", encode(lost))])
    service = make_join_service(pipeline, tmp_path / "a", WallClock())
    registry = CollectorRegistry()
    registry.register(JoinMetrics(service))
    seen: dict[str, float] = {}

    def done(service: JoinService) -> bool:
        if not joined_through(start + MINUTE, 3)(service):
            return False
        for metric in registry.collect():
            for sample in metric.samples:
                name = "/".join([sample.name, *(value for key, value in sample.labels.items() if key != "partition")])
                seen[name] = seen.get(name, 0) + sample.value
        return True

    run_until(service, done)
    requests = sum(event.topic == IMPRESSIONS for event in traffic.events)
    assert seen["minutely_join_records_total/impressions"] == requests
    assert seen["minutely_join_lag/impressions"] == seen["minutely_join_lag/engagements"] == 0
    assert seen["minutely_join_examples_total"] == 600
    assert seen["minutely_join_repeated_total"] >= requests - 300
    assert seen["minutely_join_dead_letters_total/unmatched"] == 1
    assert seen["minutely_join_dead_letters_total/late"] == 0
    assert seen["minutely_join_watermark_seconds"] > 3 * start / 1000
    assert seen["minutely_join_clock_ahead_seconds"] == 0, "it is the brokers' own"
