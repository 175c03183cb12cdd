"""Trainer, joiner and a following replica as processes on a real broker, killed at random: every example is trained once, and
the replica ends with the trainer's rows, byte for byte."""

from __future__ import annotations

import json
import os
import random
import time
import uuid
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from minutely.config import Pipeline
from paramserver.delta_log import DeltaLog
from paramserver.files import LocalFiles
from paramserver.history import read_version
from paramserver.manifest import Manifest
from stack.kafka import BrokerUnavailable, running
from streaming.kafka.settings import KafkaSettings
from streaming.kafka.topics import ensure_topics
from streaming.records.examples import ExampleFormat
from tests.commands import missing
from tests.faults.following import digest, follow
from tests.kafka.services import Service, joiner, said, started, trainer, write_config
from tests.kafka.traffic import LiveTraffic, check_examples, make_pipeline, make_traffic, read_examples

SEEDS = [int(seed) for seed in os.environ.get("FAULT_SEEDS", "1").split(",")]
KILLS = 21
REQUESTS, IMPRESSIONS, EVERY_MS = 2000, 10, 8.0
WINDOW_MS, LATENESS_MS, SHUFFLE_MS = 3_000, 10_000, 2_000
WAIT_SECONDS = 120


class Following(Service):
    """The replica's process."""

    def __init__(self, config: Path, folder: Path) -> None:
        self.lines = folder / "replica.lines"
        arguments = [str(config), str(folder / "deltas"), str(self.lines)]
        super().__init__("replica", arguments, folder / "nothing", folder / "replica.log", forks=True, program=follow)

    @property
    def pulled(self) -> list[dict[str, object]]:
        """What it had, in order, over all its lives; a line that was cut off by a kill is left out."""
        whole = (
            [line for line in self.lines.read_text().splitlines() if line.endswith("}")] if self.lines.exists() else []
        )
        return [json.loads(line) for line in whole]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_replica_follows_whoever_is_killed(seed: int, tmp_path: Path) -> None:
    try:
        with running(tmp_path / "cluster") as cluster:
            kafka = KafkaSettings(bootstrap=cluster.bootstrap, prefix=f"f{uuid.uuid4().hex[:8]}.", partitions=2)
            kill_while_it_runs(seed, kafka, tmp_path)
    except BrokerUnavailable as error:
        missing(str(error))


def kill_while_it_runs(seed: int, kafka: KafkaSettings, folder: Path) -> None:
    rng = random.Random(seed)
    pipeline = make_pipeline(
        kafka,
        labels={"click": {"action": "click", "window": f"{WINDOW_MS}ms"}},
        join={"lateness": f"{LATENESS_MS}ms"},
        train={"step_every": "1s"},
        tables={"only": {"user": {"expire_after": "2s"}}},
        sync={"sparse_every": "1s", "keep_deltas": 4},
    )
    ensure_topics(kafka)
    config = write_config(pipeline, folder)
    replica = Following(config, folder)
    services = [joiner(config, folder, "a"), trainer(config, folder), replica]
    for service in services:
        service.forks = True
    with started(*services):
        start = time.time_ns() // 1_000_000 + 1000
        traffic = make_traffic(seed, REQUESTS, IMPRESSIONS, start, EVERY_MS, WINDOW_MS, SHUFFLE_MS)
        feed = LiveTraffic(kafka, traffic)
        feed.start()
        kills: Counter[str] = Counter()
        for _ in range(KILLS):
            time.sleep(rng.random() * 1.4)
            victim = rng.choices(services, [1, 3, 3])[0]
            victim.kill(lose_state=victim.name == "a" and rng.random() < 0.5)
            time.sleep(rng.random() * 0.2)
            victim.start()
            kills[victim.name] += 1
        feed.join(WAIT_SECONDS)
        assert feed.error is None and not feed.is_alive(), feed.error
        until = time.monotonic() + WAIT_SECONDS
        while trained(folder / "deltas", pipeline)[1].sum() < len(traffic.labels):
            assert time.monotonic() < until, said(services, f"not all are trained; killed: {kills}")
            assert all(service.runs for service in services), said(services, "a service ended by itself")
            time.sleep(0.5)
        time.sleep(2)  # what was trained twice would show now
        for service in services:
            assert service.end() == 0, said(services, f"{service.name} did not end in order")
    newest, counts = trained(folder / "deltas", pipeline)
    assert newest is not None
    assert len(counts) == len(traffic.labels)
    assert (counts == 1).all(), f"{(counts > 1).sum()} trained more than once; killed: {kills}"
    check_examples(read_examples(kafka, ExampleFormat(pipeline.features, pipeline.labels)), traffic.labels)
    check_replica(replica, newest, folder / "deltas")
    print(f"seed {seed}: killed {dict(kills)}; {newest.version} versions, {len(replica.pulled)} pulled")


def trained(deltas: Path, pipeline: Pipeline) -> tuple[Manifest | None, np.ndarray[tuple[int], np.dtype[np.uint32]]]:
    """The newest version, and how often each impression was trained on."""
    files = LocalFiles(deltas, durable=False)
    try:
        newest = DeltaLog.resume(files, pipeline.form(), 4).newest
        if newest is not None:
            return newest, read_version(files, newest)["key"].rows.counts
    except FileNotFoundError:  # compacted meanwhile
        pass
    return None, np.empty(0, np.uint32)


def check_replica(replica: Following, newest: Manifest, deltas: Path) -> None:
    """It never went back, never met a damaged file, and ends with the rows that recovery gives."""
    pulled = replica.pulled
    assert not [line for line in pulled if "error" in line]
    for name in ("version", "watermark"):
        values = [line[name] for line in pulled]
        assert values == sorted(values), f"its {name} went back"  # type: ignore[type-var]
    rows = {name: delta.rows for name, delta in read_version(LocalFiles(deltas, durable=False), newest).items()}
    assert pulled[-1]["version"] == newest.version
    assert pulled[-1]["rows"] == digest({name: (part.ids, part.embeddings) for name, part in rows.items()})
    assert len(rows["user"].ids) < 100, "no user's row has expired"
