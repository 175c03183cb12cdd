"""A producer whose clock is fast, on real brokers: it closes no window of others, for a joiner beside it and for one that lags."""

from __future__ import annotations

import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa

from minutely.config import Pipeline
from minutely.services.join import make_join_service
from streaming.clock import WallClock
from streaming.kafka.settings import KafkaSettings
from streaming.kafka.topics import ensure_topics
from streaming.log import ENGAGEMENTS, IMPRESSIONS
from streaming.records.events import FORMAT_VERSION, Engagement, Request, encode
from streaming.records.examples import ExampleFormat
from tests.kafka.joining import joined_through, now_ms, run_until
from tests.kafka.traffic import Event, LiveTraffic, Traffic, make_pipeline, read_dead_letters, read_examples

# 45 minutes of requests, one of them 40 minutes ahead, a window of 60 s and clicks after 5 s, each divided by 100.
REQUESTS, LASTS_MS, AHEAD_MS = 3000, 27_000, 24_000
OUTLIER = 900
"""Among the first 4,000 records, which a joiner that lags reads at once: all impressions, and a third of the engagements."""
WINDOW_MS, CLICK_AFTER_MS = 600, 50
JOIN = {"lateness": "50ms", "max_ahead": "50ms", "max_future": "36s"}


def made(start_ms: int) -> Traffic:
    """In order of arrival. All that is said of the one request is said by the clock that is fast."""
    events: list[Event] = []
    labels: dict[str, float] = {}
    for number in range(REQUESTS):
        at = start_ms + number * LASTS_MS // REQUESTS
        served_at = at + AHEAD_MS * (number == OUTLIER)
        name, ids = f"r{number}", [f"{number}.0", f"{number}.1"]
        request = Request(
            version=FORMAT_VERSION,
            request_id=name,
            served_at=served_at,
            impression_ids=ids,
            shared={"user": np.int64(number % 100).tobytes()},
            features={"key": np.array([2 * number, 2 * number + 1], "<i8").tobytes()},
        )
        done = Engagement(
            version=FORMAT_VERSION,
            request_id=name,
            impression_id=ids[0],
            action="click",
            happened_at=served_at + CLICK_AFTER_MS,
        )
        events += [
            Event(at, IMPRESSIONS, name, encode(request)),
            Event(at + CLICK_AFTER_MS, ENGAGEMENTS, name, encode(done)),
        ]
        labels |= {f"{name}/{ids[0]}": 1.0, f"{name}/{ids[1]}": 0.0}
    return Traffic(sorted(events), labels)


def pipeline_of(kafka: KafkaSettings) -> Pipeline:
    """With one partition, in topics of its own."""
    kafka = kafka.model_copy(update={"prefix": f"c{uuid.uuid4().hex[:8]}.", "partitions": 1})
    ensure_topics(kafka)
    return make_pipeline(kafka, labels={"click": {"action": "click", "window": f"{WINDOW_MS}ms"}}, join=JOIN)


def test_one_record_far_ahead_in_a_backlog_loses_nothing(kafka: KafkaSettings, tmp_path: Path) -> None:
    beside, behind = pipeline_of(kafka), pipeline_of(kafka)
    start = now_ms() + 3000
    traffic = made(start)
    feeds = [LiveTraffic(pipeline.kafka, traffic) for pipeline in (beside, behind)]
    for feed in feeds:
        feed.start()
    over = joined_through(start + OUTLIER * LASTS_MS // REQUESTS + AHEAD_MS + WINDOW_MS, 1)
    run_until(make_join_service(beside, tmp_path / "beside", WallClock()), over, 90)
    for feed in feeds:
        feed.join(10)
        assert feed.error is None and not feed.is_alive()
    run_until(make_join_service(behind, tmp_path / "behind", WallClock()), over)
    tables = []
    for pipeline in (beside, behind):
        emitted = read_examples(pipeline.kafka, ExampleFormat(pipeline.features, pipeline.labels))
        assert read_dead_letters(pipeline.kafka) == []
        assert emitted.labels == traffic.labels
        assert set(emitted.times.values()) == {1}
        tables.append(
            pa.Table.from_batches(emitted.batches).drop_columns(["score.click"]).sort_by("example_id").combine_chunks()
        )
    assert tables[0].equals(tables[1])
