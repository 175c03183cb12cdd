"""Live features on a real broker: joiners say what happened, and `minutely features` counts each thing once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from prometheus_client.registry import CollectorRegistry

from minutely.config import Pipeline
from minutely.services.features import make_features_service
from minutely.services.join import make_join_service
from streaming.clock import WallClock
from streaming.kafka.settings import KafkaSettings
from streaming.kafka.topics import ensure_topics
from streaming.live.metrics import LiveMetrics
from streaming.live.partition import LivePartition
from streaming.loop.service import PartitionService
from tests.kafka.joining import MINUTE, joined_through, now_ms, run_until
from tests.kafka.live_traffic import check, pipeline_of, traffic_of
from tests.kafka.traffic import Traffic, producer_of, send


def join_all(pipeline: Pipeline, folder: Path) -> None:
    run_until(
        make_join_service(pipeline, folder, WallClock()),
        joined_through(now_ms() - 9 * MINUTE, pipeline.kafka.partitions),
    )


def all_taken(service: PartitionService[LivePartition]) -> bool:
    return service.caught_up and len(service.members) == 3


def keep(service: PartitionService[LivePartition], done: Callable[[PartitionService[LivePartition]], bool]) -> None:
    run_until(service, done)  # type: ignore[arg-type]  # any service


def test_every_serving_and_first_click_counts_once(kafka: KafkaSettings, tmp_path: Path) -> None:
    pipeline = pipeline_of(kafka)
    ensure_topics(kafka, pipeline.live_spec().kept_ms)
    sent: list[Traffic] = []
    for requests, first in ((500, 0), (400, 500)):
        traffic = traffic_of(requests, first)
        sent.append(traffic)
        with producer_of(kafka) as producer:
            send(producer, kafka, traffic.events)
        joined = make_join_service(pipeline, tmp_path / "join", WallClock())
        run_until(joined, lambda service: service.caught_up and len(service.members) == 3)
        service = make_features_service(pipeline, WallClock())
        registry = CollectorRegistry()
        registry.register(LiveMetrics(service))
        names = {metric.name for metric in registry.collect()}
        keep(service, all_taken)
        assert "minutely_features_keys" in names
    check(pipeline, *sent)
