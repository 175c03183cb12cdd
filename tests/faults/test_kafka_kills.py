"""The promise: whatever is killed, every example is in `examples` once, in the archive once, and trained once, and live features
count every serving and action once."""

from __future__ import annotations

import os
import random
import time
import uuid
from pathlib import Path

import numpy as np
import pytest

from paramserver.delta_log import DeltaLog
from paramserver.files import LocalFiles
from paramserver.history import read_version
from stack.kafka import BrokerUnavailable, Cluster, running
from streaming.archive.table import Archive
from streaming.kafka.settings import KafkaSettings
from streaming.kafka.topics import ensure_topics
from streaming.records.examples import ExampleFormat
from tests.commands import missing
from tests.kafka.live_traffic import check, items, kept_of, pipeline_of
from tests.kafka.services import Service, archiver, joiner, keeper, said, started, trainer, write_config
from tests.kafka.traffic import LiveTraffic, check_archive, check_examples, make_traffic, read_examples

SEEDS = [int(seed) for seed in os.environ.get("FAULT_SEEDS", "1").split(",")]
REQUESTS = int(os.environ.get("FAULT_REQUESTS", "30000"))
IMPRESSIONS = 10
EVERY_MS = 2.5
WINDOW_MS, LATENESS_MS, SHUFFLE_MS = 10_000, 30_000, 5_000
KILLS = 12
WAIT_SECONDS = 240
KEEPERS = ("trainer", "archive")
"""What is in their folders is what they are there for."""


def trained(deltas: Path, form: str) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    """How often each impression was trained on, as the newest version says."""
    files = LocalFiles(deltas, durable=False)
    newest = DeltaLog.resume(files, form, 1024).newest
    if newest is None:
        return np.empty(0, np.uint32)
    return read_version(files, newest)["key"].rows.counts


def kill_something(rng: random.Random, cluster: Cluster, services: list[Service]) -> str:
    """One kill, and the restart; what it was."""
    victim = rng.choice([*services, *services, cluster])
    if isinstance(victim, Cluster):
        node = rng.choice(victim.nodes)
        node.kill()
        time.sleep(rng.random() * 2)
        victim.restart(node)
        return f"broker {node.number}"
    lose_state = victim.name not in KEEPERS and rng.random() < 0.4
    victim.kill(lose_state=lose_state)
    time.sleep(rng.random())
    victim.start()
    return victim.name + (" and its state" if lose_state else "")


@pytest.mark.parametrize("seed", SEEDS)
def test_everything_once_whatever_is_killed(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    try:
        with running(tmp_path / "cluster", nodes=3) as cluster:
            kafka = KafkaSettings(
                bootstrap=cluster.bootstrap, prefix=f"f{uuid.uuid4().hex[:8]}.", partitions=4, replication=3
            )
            kill_while_it_runs(rng, seed, kafka, cluster, tmp_path)
    except BrokerUnavailable as error:
        missing(str(error))


def kill_while_it_runs(rng: random.Random, seed: int, kafka: KafkaSettings, cluster: Cluster, tmp_path: Path) -> None:
    pipeline = pipeline_of(
        kafka,
        join={"lateness": f"{LATENESS_MS}ms"},
        train={"step_every": "1s"},
        sync={"sparse_every": "3s", "keep_deltas": 10},
        archive={"commit_every": "3s"},
    )
    ensure_topics(kafka, pipeline.live_spec().kept_ms)
    config = write_config(pipeline, tmp_path)
    services = [joiner(config, tmp_path, "a"), joiner(config, tmp_path, "b"), trainer(config, tmp_path)]
    services += [archiver(config, tmp_path), keeper(config, tmp_path, "keeper a"), keeper(config, tmp_path, "keeper b")]
    example_format = ExampleFormat(pipeline.features, pipeline.labels)
    with started(*services):
        start = time.time_ns() // 1_000_000 + 3000
        traffic = make_traffic(seed, REQUESTS, IMPRESSIONS, start, EVERY_MS, WINDOW_MS, SHUFFLE_MS, also=items)
        feed = LiveTraffic(kafka, traffic)
        feed.start()
        kills = []
        pause = (REQUESTS * EVERY_MS + WINDOW_MS + LATENESS_MS) / 1000 / (KILLS + 1)
        for _ in range(KILLS):
            time.sleep(pause * (0.4 + 0.8 * rng.random()))
            kills.append(kill_something(rng, cluster, services))
            print(f"{time.time() - start / 1000:6.1f} s: killed {kills[-1]}", flush=True)
        feed.join(WAIT_SECONDS)
        for service in services:
            service.waits_for("\n", seconds=WAIT_SECONDS)  # the last one killed is at work again
        assert feed.error is None and not feed.is_alive(), feed.error
        until = time.monotonic() + WAIT_SECONDS
        while (counts := trained(tmp_path / "deltas", pipeline.form())).sum() < len(traffic.labels):
            assert time.monotonic() < until, said(services, f"{counts.sum()} of {len(traffic.labels)} trained; {kills}")
            assert all(service.runs for service in services), said(services, "a service ended by itself")
            time.sleep(1)
        time.sleep(5)  # what was trained or counted twice would show now
        while kept_of(pipeline).core.totals[0] < len(traffic.labels):
            assert time.monotonic() < until, said(services, f"{kept_of(pipeline).core.totals} servings and clicks")
            time.sleep(1)
        for service in services:
            assert service.end() == 0, said(services, f"{service.name} did not end in order")
    counts = trained(tmp_path / "deltas", pipeline.form())
    assert len(counts) == len(traffic.labels)
    assert (counts == 1).all(), f"{(counts > 1).sum()} trained more than once; {kills}"
    check_examples(read_examples(kafka, example_format), traffic.labels)
    check_archive(Archive(str(tmp_path / "archive"), example_format), traffic.labels)
    check(pipeline, traffic)
