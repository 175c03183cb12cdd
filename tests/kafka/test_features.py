"""Live features on a real broker: joiners say what happened, and `minutely features` counts each thing once."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.registry import CollectorRegistry

from minutely.services.features import make_features_service
from minutely.services.join import make_join_service
from streaming.clock import WallClock
from streaming.kafka.outlet import Transactions
from streaming.kafka.settings import KafkaSettings
from streaming.kafka.topics import ensure_topics
from streaming.live.metrics import LiveMetrics
from streaming.live.partition import LivePartition
from streaming.log import EXAMPLES, INTERACTIONS, BrokerError
from streaming.loop.brokers import OutputRecord
from streaming.loop.service import PartitionService
from streaming.records.events import encode
from tests.kafka.joining import run_until
from tests.kafka.live_traffic import check, kept_of, pipeline_of, traffic_of
from tests.kafka.services import joiner, keeper, said, started, write_config
from tests.kafka.traffic import Traffic, producer_of, send


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
        registry.register(LiveMetrics(service.members))
        names = {metric.name for metric in registry.collect()}
        keep(service, all_taken)
        assert "minutely_features_keys" in names
    check(pipeline, *sent)


@pytest.mark.parametrize("host", ["own", "faust"])
def test_a_worker_that_is_killed_counts_nothing_twice(kafka: KafkaSettings, tmp_path: Path, host: str) -> None:
    """And nothing of a transaction that was aborted: a joiner that died may have written it."""
    pipeline = pipeline_of(kafka)
    ensure_topics(kafka, pipeline.live_spec().kept_ms)
    aborted = Transactions(kafka, "somebody", 0, [EXAMPLES])
    aborted.open()
    record = {"version": 1, "actions": ["click"], "totals": np.array([7, 7]).tobytes()}
    with pytest.raises(BrokerError):
        aborted.send([OutputRecord(INTERACTIONS, encode(record)), OutputRecord(EXAMPLES, b"", 99)], [0], "")
    aborted.close()
    config = write_config(pipeline, tmp_path)
    worker, joins = keeper(config, tmp_path, "keeper", "--host", host), joiner(config, tmp_path, "a")
    sent: list[Traffic] = []
    with started(worker, joins):
        for requests, first in ((500, 0), (400, 500), (300, 900)):
            traffic = traffic_of(requests, first)
            sent.append(traffic)
            with producer_of(kafka) as producer:
                send(producer, kafka, traffic.events)
            wanted = sum(len(each.labels) for each in sent)
            until = time.monotonic() + 120
            while kept_of(pipeline).core.totals[0] < wanted / (1 + (first == 900)):
                assert time.monotonic() < until, said([worker, joins], f"{kept_of(pipeline).core.totals} of {wanted}")
                time.sleep(0.3)
            worker.kill()
            worker.start()
            time.sleep(3)  # the joiner's watermark moves past what was
        until = time.monotonic() + 120
        while kept_of(pipeline).core.totals[0] < wanted:
            assert time.monotonic() < until, said([worker, joins], f"{kept_of(pipeline).core.totals} of {wanted}")
            time.sleep(0.5)
        time.sleep(2)
        assert worker.end() == 0, said([worker], "did not end in order")
    check(pipeline, *sent)
