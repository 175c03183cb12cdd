"""What do live features cost a request? p99 of ranking with them over that without, while they change.

    python -m benchmarks.serve_live [--rows 100000] [--seconds 10] [--rate 150] [--turns 5] [--keys 100000] [--records 5000]

The model of `benchmarks.serve`, and beside it the same with five definitions of live features, all by features of candidates. Two
replicas answer in turns, open loop, at one rate. A broker takes ``--records`` of `features` a second in transactions all the time,
which one of the replicas folds in.
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from benchmarks.serve import Versions, load, make_pipeline
from minutely.config import Pipeline
from stack.kafka import running
from streaming.kafka.settings import KafkaSettings
from streaming.live.core import FIRST_ACTION, SERVED, Happened, LiveCore
from streaming.live.published import published_keys
from streaming.log import FEATURES
from tests.serving.server import Server

_BATCHES_A_SECOND = 10
_LIVE: dict[str, Any] = {
    "rates": {
        "f0": {"key": ["f0"], "of": ["click"], "half_life": ["10m", "1h", "1d", "30d"]},
        "f1": {"key": ["f1"], "of": ["click"], "half_life": ["30d"]},
        "f2": {"key": ["f2"], "of": ["click"], "half_life": ["30d"]},
    },
    "age": {"f0": {"key": ["f0"], "of": ["click"]}, "f1": {"key": ["f1"], "of": ["click"]}},
}


def with_live(pipeline: Pipeline, kafka: KafkaSettings) -> Pipeline:
    found = pipeline.model_dump(mode="json", exclude_unset=True)
    addresses = [f"{kind}.{name}" for kind, each in _LIVE.items() for name in each]
    features = {address.replace(".", "_"): {"live": address} for address in addresses}
    more = {"features": {**found["features"], **features}, "live": _LIVE, "kafka": kafka.model_dump(mode="json")}
    return Pipeline.model_validate({**found, **more})


class Writing:
    """Writes what is kept of random keys, in transactions, until it is stopped; of all keys first."""

    def __init__(self, pipeline: Pipeline, options: argparse.Namespace) -> None:
        self._kafka, self._each = pipeline.kafka, options.records // _BATCHES_A_SECOND
        random, keys = np.random.default_rng(1), np.arange(options.keys)
        spec = pipeline.live_spec()
        core, identities = LiveCore(spec.settings, list(spec.windows)), spec.identities(pipeline.features)
        now, nothing = np.full(len(keys), time.time_ns() // 1_000_000), np.empty((len(keys), 0), np.int64)
        self._records: list[tuple[bytes, bytes]] = []
        for name, identity in identities.items():
            for what in (SERVED, SERVED, FIRST_ACTION):
                core.note(name, Happened(keys, np.full(len(keys), what, np.int32), now, now, nothing))
            self._records += published_keys(identity, keys, core.packed(name, keys))
        random.shuffle(self._records)
        self._producer = Producer(self._kafka.client() | {"transactional.id": "bench", "compression.type": "lz4"})
        self._producer.init_transactions(30)
        self.written, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def begin(self) -> None:
        for at in range(0, len(self._records), 10_000):
            self._write(self._records[at : at + 10_000])
        self.written = 0
        self._thread.start()

    def end(self) -> None:
        self._stop.set()
        self._thread.join()

    def _write(self, records: list[tuple[bytes, bytes]]) -> None:
        self._producer.begin_transaction()
        for key, value in records:
            self._producer.produce(self._kafka.topic(FEATURES), value, key)
        self._producer.commit_transaction(30)
        self.written += len(records)

    def _run(self) -> None:
        at, due = 0, time.monotonic()
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            due += 1 / _BATCHES_A_SECOND
            self._write(self._records[at : at + self._each])
            at = (at + self._each) % (len(self._records) - self._each)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rows", 100_000), ("turns", 5), ("keys", 100_000), ("records", 5000), ("candidates", 100)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rate", type=float, default=150)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as name, running(Path(name) / "cluster") as cluster:
        kafka = KafkaSettings(bootstrap=cluster.bootstrap, partitions=6)
        plain = make_pipeline("1s")
        pipelines = {"without": plain, "with": with_live(plain, kafka)}
        topic = NewTopic(FEATURES, kafka.partitions, 1, config={"cleanup.policy": "compact"})
        admin = AdminClient(kafka.client())
        admin.create_topics([topic])[FEATURES].result()
        writing = Writing(pipelines["with"], options)
        writing.begin()
        servers = {}
        for side, pipeline in pipelines.items():
            folder = Path(name) / side
            Versions(pipeline, folder / "deltas").publish(np.arange(options.rows))
            servers[side] = Server(pipeline, folder / "deltas", folder / "server").start()
        try:
            for side, server in servers.items():
                print(f"{side}: ready after {server.wait():.1f} s", flush=True)
                load(server, options, packed=True, rate=options.rate, seconds=2)
            measure(servers, writing, options)
        finally:
            writing.end()
            for server in servers.values():
                server.process.end(signal.SIGKILL)


def measure(servers: dict[str, Server], writing: Writing, options: argparse.Namespace) -> None:
    ratios = []
    for _ in range(options.turns):
        found = {}
        for side, server in servers.items():
            before, started = writing.written, time.monotonic()
            found[side] = load(server, options, packed=True, rate=options.rate)
            written = (writing.written - before) / (time.monotonic() - started)
            said = f"p50 {found[side]['p50_ms']:.1f} ms, p99 {found[side]['p99_ms']:.1f} ms {found[side]['statuses']}"
            print(f"{side}: {said}, {written:,.0f} records/s", flush=True)
        ratios.append(
            (found["with"]["p50_ms"] / found["without"]["p50_ms"], found["with"]["p99_ms"] / found["without"]["p99_ms"])
        )
    p50, p99 = (median(each) for each in zip(*ratios, strict=True))
    print(f"with over without: p50 {p50:.2f}, p99 {p99:.2f}")
    lines = [
        line for line in servers["with"].ask("GET", "/metrics")[1].splitlines() if line.startswith("minutely_live")
    ]
    print("\n".join(lines))
    missing = [
        line
        for line in servers["with"].ask("GET", "/metrics")[1].splitlines()
        if line.startswith("minutely_serve_missing")
    ]
    assert missing == ["minutely_serve_missing_live_total 0.0"], missing


if __name__ == "__main__":
    main()
