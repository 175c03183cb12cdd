"""How long from an engagement to the live features that a replica reads, and what does keeping them cost beside only consuming?

    python -m benchmarks.live_freshness [--seconds 60] [--impressions 1000] [--host own|faust]

Real Kafka, one joiner and one `minutely features`, all on this machine, beside traffic of so many impressions a second, each with
an engagement. A probe is a new user: served once, who then clicks; `features` is read committed and folded, as replicas do, until
the click counts. Printed: quantiles of the time from the click to that, the CPU seconds that `minutely features` took for each
million things that it counted, and those of a client that only consumes `interactions`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from confluent_kafka import TopicPartition

from benchmarks.freshness import make_pipeline, traffic
from minutely.config import Pipeline
from stack.kafka import running
from streaming.kafka.client import reader_of
from streaming.kafka.sending import RetryingSender
from streaming.kafka.topics import ensure_topics
from streaming.live.interactions import Interactions
from streaming.live.published import Kept
from streaming.log import ENGAGEMENTS, FEATURES, IMPRESSIONS, INTERACTIONS
from streaming.records.events import FORMAT_VERSION, Engagement, Request, encode
from tests.kafka.services import Service, joiner, keeper, started, write_config

LIVE = {
    "rates": {
        "user": {"key": ["user"], "of": ["click"], "half_life": ["10m", "1h", "1d"]},
        "item": {"key": ["item"], "of": ["click"], "half_life": ["1h", "30d"]},
    },
    "age": {"user": {"key": ["user"], "of": ["click"]}, "item": {"key": ["item"], "of": ["click"]}},
    "seen": {"both": {"key": ["user", "item"]}},
}
_FIRST_PROBE = 1_000_000


def live_pipeline(bootstrap: str) -> Pipeline:
    fields: dict[str, Any] = make_pipeline(bootstrap, "1s").model_dump(mode="json", exclude_unset=True)
    return Pipeline.model_validate({**fields, "live": LIVE})


class Follower:
    """What is committed of `features`, in a thread of its own."""

    def __init__(self, pipeline: Pipeline, stop: threading.Event) -> None:
        self.kept = Kept(pipeline.live_spec(), pipeline.features)
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)
        self._reader = reader_of(pipeline.kafka)
        topic = pipeline.kafka.topic(FEATURES)
        self._reader.assign([TopicPartition(topic, at, 0) for at in range(pipeline.kafka.partitions)])
        self._stop = stop

    def run(self) -> None:
        while not self._stop.is_set():
            found: dict[int, list[bytes]] = {}
            for message in self._reader.consume(5000, 0.02):
                if not message.error():
                    found.setdefault(message.partition() or 0, []).append(message.value() or b"")
            with self.changed:
                for partition, payloads in found.items():
                    self.kept.fold(partition, payloads)
                self.changed.notify_all()

    def clicked(self, user: int) -> bool:
        words = self.kept.core.packed("rates.user", np.array([user], np.int64))
        counts = words.view(np.float64)[0]
        return bool(counts[2] > 0)


def probes(pipeline: Pipeline, follower: Follower, seconds: float) -> list[float]:
    producer = RetryingSender(pipeline.kafka, logging.getLogger("benchmark"), lambda: False)
    random, found, begun = np.random.default_rng(3), list[float](), time.time()
    user = _FIRST_PROBE
    while time.time() < begun + seconds:
        user += 1
        name, at = f"probe{user}", int(time.time() * 1000)
        request = Request(
            version=FORMAT_VERSION, request_id=name, served_at=at, impression_ids=["1"],
            shared={"user": np.array([user]).tobytes()}, features={"item": np.array([7]).tobytes()},
        )  # fmt: skip
        producer.send(pipeline.kafka.topic(IMPRESSIONS), encode(request), key=name.encode())
        time.sleep(0.3 + 0.2 * random.random())
        clicked_at = time.time()
        done = Engagement(
            version=FORMAT_VERSION,
            request_id=name,
            impression_id="1",
            action="click",
            happened_at=int(clicked_at * 1000),
        )
        producer.send(pipeline.kafka.topic(ENGAGEMENTS), encode(done), key=name.encode())
        with follower.changed:
            while not follower.clicked(user) and time.time() < clicked_at + 10:
                follower.changed.wait(1)
        found.append(time.time() - clicked_at)
    producer.wait()
    return found


def cpu_seconds(service: Service) -> float:
    ticks = Path(f"/proc/{service.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def consumed(pipeline: Pipeline) -> tuple[int, int, float]:
    """Records and things of `interactions`, and the CPU seconds of only consuming and decoding them."""
    reader = reader_of(pipeline.kafka, name_ends=True)
    topic = pipeline.kafka.topic(INTERACTIONS)
    reader.assign([TopicPartition(topic, at, 0) for at in range(pipeline.kafka.partitions)])
    began, left = time.process_time(), pipeline.kafka.partitions
    records = things = 0
    while left:
        for message in reader.consume(5000, 1):
            if message.error():
                left -= 1
            else:
                records += 1
                things += sum(len(each.keys) for _, each in Interactions(message.value() or b"").happened)
    took = time.process_time() - began
    reader.close()
    return records, things, took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--impressions", type=float, default=1000)
    parser.add_argument("--host", choices=["own", "faust"], default="own")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "build" / "live_freshness.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, running(Path(name) / "kafka") as cluster:
        folder = Path(name)
        pipeline = live_pipeline(cluster.bootstrap)
        ensure_topics(pipeline.kafka, pipeline.live_spec().kept_ms)
        config = write_config(pipeline, folder)
        stop = threading.Event()
        follower = Follower(pipeline, stop)
        worker = keeper(config, folder, "features", "--host", options.host)
        sending = threading.Thread(target=traffic, args=(pipeline, options.impressions, stop))
        folding = threading.Thread(target=follower.run)
        with started(joiner(config, folder, "join"), worker):
            worker.waits_for("assigned", seconds=60) if options.host == "own" else time.sleep(15)
            sending.start()
            folding.start()
            try:
                time.sleep(5)
                before = cpu_seconds(worker)
                found = probes(pipeline, follower, options.seconds)
                spent = cpu_seconds(worker) - before
            finally:
                stop.set()
                sending.join()
                folding.join()
        records, things, reading = consumed(pipeline)
        share = options.seconds / (options.seconds + 5)
    p50, p99 = (float(np.quantile(found, at)) for at in (0.5, 0.99))
    result = {
        "host": options.host,
        "impressions_per_second": options.impressions,
        "probes": len(found),
        "p50_seconds": p50,
        "p99_seconds": p99,
        "records": records,
        "things": things,
        "cpu_seconds_per_million": 1e6 * spent / (things * share),
        "cpu_seconds_per_million_consuming": 1e6 * reading / things,
    }
    print(f"{len(found)} probes: p50 {p50:.3f} s, p99 {p99:.3f} s from a click to what a replica has of it")
    print(
        f"{things:,} things in {records:,} records; CPU seconds a million: {result['cpu_seconds_per_million']:.1f}, "
        f"only consuming and decoding {result['cpu_seconds_per_million_consuming']:.2f}"
    )
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
