"""How fast is the crash-safe joiner on Kafka, next to only consuming and decoding the same records?

One broker, one partition, the same bytes for both; each in a process of its own, in turn, medians of `--rounds`. Run from the
repository: ``python -m benchmarks.join``. Prints a table; ``--profile`` adds what the joiner spends its time on.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from kafka import TopicPartition

from minutely.config import Pipeline
from minutely.join import make_join_service
from streaming.clock import WallClock
from streaming.events import MAX_TIME_MS, SCHEMA_VERSION, Engagement, Request, decode_engagement, decode_request, encode
from streaming.kafka.partition_io import consumer_of
from streaming.kafka.settings import KafkaSettings
from streaming.kafka.topics import ensure_topics
from streaming.log import ENGAGEMENTS, IMPRESSIONS
from tests.kafka.broker import running
from tests.kafka.traffic import producer_of

SIZES = {"50 a request": (50, 40, 4000), "1 a request": (1, 240, 40_000)}
"""Impressions and vector values of a request, and how many requests: about 9 KB and 1 KB each."""
EVERY_MS = 5
CLICKED = 0.05


def pipeline_of(kafka: KafkaSettings, values: int) -> Pipeline:
    return Pipeline.model_validate(
        {
            "name": "bench",
            "source": {"dir": ".", "impressions": {"file": "x.csv", "time": {"column": "t"}}, "actions": {"click": {}}},
            "features": {
                "user": {"column": "user", "scope": "request"},
                "item": {"column": "item"},
                "vector": {"kind": "vector", "column": "vector", "size": values},
            },
            "labels": {"click": {"action": "click", "window": "10s"}},
            "join": {"lateness": "1s"},
            "kafka": kafka.model_dump(mode="json"),
        }
    )


def fill(kafka: KafkaSettings, impressions: int, values: int, requests: int, start_ms: int) -> int:
    """Send the records; the bytes of a request."""
    rng = np.random.default_rng(1)
    value = b""
    with producer_of(kafka) as producer:
        for number in range(requests):
            served_at = start_ms + number * EVERY_MS
            ids = [f"{number}.{at}" for at in range(impressions)]
            request = Request(
                version=SCHEMA_VERSION,
                request_id=f"r{number}",
                served_at=served_at,
                impression_ids=ids,
                shared={"user": np.int64(number).tobytes()},
                features={
                    "item": rng.integers(0, 10_000, impressions).tobytes(),
                    "vector": rng.random((impressions, values), np.float32).tobytes(),
                },
            )
            value = encode(request)
            producer.send(kafka.topic(IMPRESSIONS), value, partition=0)
            for at in np.flatnonzero(rng.random(impressions) < CLICKED):
                click = Engagement(
                    version=SCHEMA_VERSION,
                    request_id=f"r{number}",
                    impression_id=ids[at],
                    action="click",
                    happened_at=served_at + 500,
                )
                producer.send(kafka.topic(ENGAGEMENTS), encode(click), partition=0)
    return len(value)


def decode_only(kafka: KafkaSettings) -> int:
    consumer = consumer_of(kafka)
    ats = [TopicPartition(kafka.topic(topic), 0) for topic in (IMPRESSIONS, ENGAGEMENTS)]
    ends = consumer.end_offsets(ats)
    consumer.assign(ats)
    consumer.seek_to_beginning(*ats)
    count = 0
    while any(consumer.position(at) < ends[at] for at in ats):
        for at, records in consumer.poll(timeout_ms=200, max_records=4000).items():
            if at == ats[0]:
                count += sum(len(decode_request(record.value, MAX_TIME_MS).impression_ids) for record in records)
            else:
                for record in records:
                    decode_engagement(record.value, MAX_TIME_MS)
    consumer.close()
    return count


def join(pipeline: Pipeline, through_ms: int, folder: Path) -> int:
    service = make_join_service(pipeline, folder, WallClock())
    count = 0

    def done() -> bool:
        nonlocal count
        for member in service.members.values():
            count = member.join.joiner.counts["examples"]
            return member.join.told > through_ms
        return False

    service.run(done)
    return count


def child(arguments: argparse.Namespace) -> None:
    told = json.loads(arguments.child)
    kafka = KafkaSettings.model_validate(told["kafka"])
    pipeline = pipeline_of(kafka, told["values"])
    profile = cProfile.Profile() if arguments.profile and told["what"] == "join" else None
    before, begun = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    if profile is not None:
        profile.enable()
    with tempfile.TemporaryDirectory() as folder:
        if told["what"] == "join":
            count = join(pipeline, told["through"], Path(folder) / "state")
        else:
            count = decode_only(kafka)
    after = resource.getrusage(resource.RUSAGE_SELF)
    if profile is not None:
        pstats.Stats(profile, stream=sys.stderr).sort_stats("tottime").print_stats(16)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps({"count": count, "wall": time.monotonic() - begun, "cpu": cpu, "rss": after.ru_maxrss * 1024}))


def measure(arguments: argparse.Namespace, told: dict[str, Any]) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.join", "--child", json.dumps(told)]
    command += ["--profile"] if arguments.profile else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--child")
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments)
        return
    print(f"{'':14} {'bytes':>6} {'':8} {'impressions/s':>14} {'per CPU s':>12} {'resident MiB':>13}")
    with tempfile.TemporaryDirectory() as folder, running(Path(folder) / "kafka") as cluster:
        for size, (impressions, values, requests) in SIZES.items():
            prefix = f"b{uuid.uuid4().hex[:6]}."
            start = time.time_ns() // 1_000_000 - requests * EVERY_MS - 3_600_000
            found: dict[str, list[dict[str, float]]] = {"decode": [], "join": []}
            size_bytes = 0
            for turn in range(arguments.rounds):  # topics of its own for each, since a joiner goes on where one stopped
                kafka = KafkaSettings(bootstrap=cluster.bootstrap, prefix=f"{prefix}{turn}.", partitions=1)
                ensure_topics(kafka)
                size_bytes = fill(kafka, impressions, values, requests, start)
                through = start + requests * EVERY_MS + 10_000
                told = {"kafka": kafka.model_dump(mode="json"), "values": values, "through": through}
                for what in found:
                    result = measure(arguments, {**told, "what": what})
                    assert result["count"] == impressions * requests, (what, result)
                    found[what].append(result)
            rates = {}
            for what, results in found.items():
                wall, cpu = (
                    statistics.median(item["count"] / item[key] for item in results) for key in ("wall", "cpu")
                )
                rss = max(item["rss"] for item in results) / (1 << 20)
                rates[what] = cpu
                print(f"{size:14} {size_bytes:6} {what:8} {wall:14,.0f} {cpu:12,.0f} {rss:13,.0f}")
            print(f"{size:14} {'':6} join/decode per CPU second: {rates['join'] / rates['decode']:.2f}")


if __name__ == "__main__":
    main()
