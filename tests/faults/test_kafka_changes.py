"""Everything once while joiners come and go, and while the broker is away."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from pathlib import Path

from minutely.config import Pipeline
from stack.kafka import BrokerUnavailable, Cluster, running
from streaming.archive.table import Archive
from streaming.kafka.settings import KafkaSettings
from streaming.kafka.topics import ensure_topics
from streaming.records.examples import ExampleFormat
from tests.commands import missing
from tests.kafka.services import Service, archiver, joiner, said, started, trainer, write_config
from tests.kafka.traffic import (
    Emitted,
    LiveTraffic,
    Traffic,
    check_archive,
    check_examples,
    make_pipeline,
    make_traffic,
    producer_of,
    read_dead_letters,
    read_examples,
    send,
)

_WAIT_SECONDS = 90
_AWAY_SECONDS = 60


def on_one_node(folder: Path, test: Callable[[Cluster, KafkaSettings], None]) -> None:
    try:
        with running(folder / "cluster") as cluster:
            kafka = KafkaSettings(bootstrap=cluster.bootstrap, prefix=f"c{uuid.uuid4().hex[:8]}.", partitions=6)
            ensure_topics(kafka)
            test(cluster, kafka)
    except BrokerUnavailable as error:
        missing(str(error))


def wait_for_all(pipeline: Pipeline, traffic: Traffic, services: list[Service]) -> Emitted:
    example_format = ExampleFormat(pipeline.features, pipeline.labels)
    until = time.monotonic() + _WAIT_SECONDS
    while True:
        emitted = read_examples(pipeline.kafka, example_format)
        if emitted.times.keys() >= traffic.labels.keys():
            return emitted
        assert time.monotonic() < until, said(services, f"{len(emitted.times)} of {len(traffic.labels)} examples")
        time.sleep(2)


def test_joiners_one_then_three_then_two_under_load(tmp_path: Path) -> None:
    def test(_cluster: Cluster, kafka: KafkaSettings) -> None:
        pipeline = make_pipeline(kafka, labels={"click": {"action": "click", "window": "5s"}}, join={"lateness": "15s"})
        config = write_config(pipeline, tmp_path)
        joiners = [joiner(config, tmp_path, name) for name in "abc"]
        with started(joiners[0]):
            first = make_traffic(1, 6000, 5, time.time_ns() // 1_000_000, 2.5, 5_000, 2_000)
            feed = LiveTraffic(kafka, first)
            feed.start()
            time.sleep(5)
            with started(*joiners[1:]):
                until = time.monotonic() + _WAIT_SECONDS
                while not all("assigned" in each.output for each in joiners):
                    assert time.monotonic() < until, said(joiners, "one joiner had nothing to do")
                    time.sleep(0.5)
                feed.join(60)
                assert feed.error is None, feed.error
                # However long three took to share the partitions, one leaves them under load.
                second = make_traffic(2, 6000, 5, time.time_ns() // 1_000_000, 2.5, 5_000, 2_000, first=6000)
                feed = LiveTraffic(kafka, second)
                feed.start()
                time.sleep(3)
                assert joiners[1].end() == 0, said(joiners, "did not end in order")
                assert feed.is_alive(), "it left when all was sent"
                feed.join(60)
                assert feed.error is None, feed.error
                traffic = Traffic(first.events + second.events, first.labels | second.labels)
                check_examples(wait_for_all(pipeline, traffic, joiners), traffic.labels)
        assert read_dead_letters(kafka) == []

    on_one_node(tmp_path, test)


def test_the_broker_away_for_a_minute_is_said_once_and_loses_nothing(tmp_path: Path) -> None:
    def test(cluster: Cluster, kafka: KafkaSettings) -> None:
        pipeline = make_pipeline(
            kafka,
            labels={"click": {"action": "click", "window": "20s"}},
            train={"step_every": "1s"},
            sync={"sparse_every": "5s"},
            archive={"commit_every": "2s"},
        )
        config = write_config(pipeline, tmp_path)
        services = [joiner(config, tmp_path, "a"), trainer(config, tmp_path), archiver(config, tmp_path)]
        with started(*services):
            time.sleep(8)
            start = time.time_ns() // 1_000_000 - 15_000
            traffic = make_traffic(1, 3000, 5, start, 5, 12_000, 2_000)
            with producer_of(kafka) as producer:
                send(producer, kafka, traffic.events)
            until = time.monotonic() + _WAIT_SECONDS
            while not all(
                "examples since the start" in service.output for service in services[1:]
            ):  # and windows are still open
                assert time.monotonic() < until, said(services, "a service did not begin")
                time.sleep(0.2)
            memory = resident_bytes(services[0])
            cluster.nodes[0].kill()
            time.sleep(_AWAY_SECONDS)
            assert all(service.runs for service in services), said(services, "a service ended")
            assert resident_bytes(services[0]) < memory + (64 << 20)
            cluster.restart(cluster.nodes[0])
            check_examples(wait_for_all(pipeline, traffic, services), traffic.labels)
            until = time.monotonic() + _WAIT_SECONDS
            while any(
                f"{len(traffic.labels)} examples since the start" not in service.output for service in services[1:]
            ):
                assert time.monotonic() < until, said(services, "not all was trained and archived")
                time.sleep(1)
            archive = Archive(str(tmp_path / "archive"), ExampleFormat(pipeline.features, pipeline.labels))
            check_archive(archive, traffic.labels)
            for service in services:
                lines = [line for line in service.output.splitlines() if "WARNING" in line]
                assert any("retrying" in line for line in lines), said(services, "nothing was said")
                for what in {line.split("WARNING ")[1].split(":")[0] for line in lines}:
                    waiting = [line for line in lines if f"WARNING {what}: " in line and "retrying" in line]
                    assert len(waiting) <= 1, said(services, "said more than once")

    on_one_node(tmp_path, test)


def resident_bytes(service: Service) -> int:
    status = Path(f"/proc/{service.pid}/status")
    if not status.exists():
        missing("/proc, to read a process's memory")
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024
