"""The joiner's service on a real broker."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from minutely.join import make_join_service
from streaming.clock import WallClock
from streaming.examples import ExampleFormat
from streaming.kafka.join_service import JoinService
from streaming.kafka.settings import KafkaSettings
from streaming.kafka.topics import ensure_topics
from tests.kafka.traffic import (
    check_examples,
    make_pipeline,
    make_traffic,
    producer_of,
    read_dead_letters,
    read_examples,
    send,
)

MINUTE = 60_000


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def run_until(service: JoinService, done: Callable[[JoinService], bool], seconds: float = 60) -> None:
    """Run a service until something holds; it is closed then."""
    until = time.monotonic() + seconds
    held = False

    def stop() -> bool:
        nonlocal held
        held = done(service)
        return held or time.monotonic() > until

    service.run(stop)
    assert held, f"not done in {seconds} s"


def joined_through(at_ms: int, partitions: int) -> Callable[[JoinService], bool]:
    """Whether every partition told a watermark past ``at_ms``."""
    return lambda service: (
        len(service.members) == partitions and all(member.join.told > at_ms for member in service.members.values())
    )


def test_every_example_once_from_a_backlog_then_again_from_its_state(kafka: KafkaSettings, tmp_path: Path) -> None:
    pipeline = make_pipeline(kafka)
    ensure_topics(kafka)
    start = now_ms() - 10 * MINUTE
    traffic = make_traffic(1, 2000, 5, start, 100)
    with producer_of(kafka) as producer:
        send(producer, kafka, traffic.events)
    for done in (
        lambda service: sum(member.join.joiner.counts["impressions"] for member in service.members.values()) > 800,
        joined_through(start + 5 * MINUTE, 3),
    ):
        run_until(make_join_service(pipeline, tmp_path / "a", WallClock()), done)
    check_examples(read_examples(kafka, ExampleFormat(pipeline.features, pipeline.labels)), traffic.labels)
    assert read_dead_letters(kafka) == []
