"""How fast is the crash-safe joiner on Kafka, next to only consuming and decoding the same records, and to quixstreams' joins?

One broker, one partition, the same bytes for all; each in a process of its own, in turn, medians of `--rounds`. Run from the
repository: ``python -m benchmarks.join``. Prints a table; ``--profile`` adds what the joiner spends its time on. quixstreams
(`benchmarks.parts.quix_join`: two forms, exactly once, with changelog topics) gets an environment in the user's cache folder.
A run counts only where all wrote the same examples: the topics are read back and compared, labels, times and features.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import json
import pstats
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import pyarrow as pa
import pyarrow.compute as pc
from confluent_kafka import TopicPartition

from minutely.config import Pipeline
from minutely.services.join import make_join_service
from stack.kafka import running
from streaming.clock import WallClock
from streaming.join.service import GARBAGE_AFTER
from streaming.kafka.client import ends_of, reader_of
from streaming.kafka.settings import MAX_OUTPUT_BYTES, KafkaSettings
from streaming.kafka.topics import ensure_topics
from streaming.log import ENGAGEMENTS, EXAMPLES, IMPRESSIONS, INPUTS
from streaming.records.events import (
    FORMAT_VERSION,
    MAX_TIME_MS,
    Engagement,
    Request,
    decode_engagement,
    decode_request,
    encode,
)
from streaming.records.examples import ExampleFormat
from tests.kafka.traffic import producer_of, read_examples

SIZES = {"50 a request": (50, 40, 12_000), "1 a request": (1, 240, 40_000)}
"""Impressions and vector values of a request, and how many requests: about 9 KB and 1 KB each."""
EVERY_MS = 5
CLOSING_MS = 30_000
"""How long after the others the last request is served: quixstreams closes windows only by later records."""
QUIX = "quixstreams==3.28.1"
QUIX_FORMS = ("windows", "queue")
"""Of `benchmarks.parts.quix_join`."""
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
    """Send the records; the bytes of a request.

    Both topics at the same pace, since quixstreams goes through them by the broker's time. One request more than ``requests``
    closes the windows of the others.
    """
    rng = np.random.default_rng(1)
    value = b""
    with producer_of(kafka) as producer:
        for number in range(requests + 1):
            if number % 100 == 0 or number == requests:
                producer.wait()
            served_at = start_ms + number * EVERY_MS + (CLOSING_MS if number == requests else 0)
            key = f"r{number}"
            ids = [f"{number}.{at}" for at in range(impressions)]
            request = Request(
                version=FORMAT_VERSION,
                request_id=key,
                served_at=served_at,
                impression_ids=ids,
                shared={"user": np.int64(number).tobytes()},
                features={
                    "item": rng.integers(0, 10_000, impressions).tobytes(),
                    "vector": rng.random((impressions, values), np.float32).tobytes(),
                },
            )
            value = encode(request)
            producer.send(kafka.topic(IMPRESSIONS), value, key=key.encode(), partition=0)
            clicked = rng.random(impressions) < CLICKED
            for at in np.flatnonzero(clicked) if number < requests else ():
                click = Engagement(
                    version=FORMAT_VERSION,
                    request_id=key,
                    impression_id=ids[at],
                    action="click",
                    happened_at=served_at + 500,
                )
                producer.send(kafka.topic(ENGAGEMENTS), encode(click), key=key.encode(), partition=0)
    return len(value)


def decode_only(kafka: KafkaSettings) -> int:
    consumer = reader_of(kafka)
    names = [kafka.topic(topic) for topic in INPUTS]
    ends = ends_of(consumer, [TopicPartition(name, 0) for name in names], 20)
    consumer.assign([TopicPartition(name, 0, 0) for name in names])
    count, left = 0, sum(ends.values())
    while left:
        for message in consumer.consume(4000, 0.2):
            error, value = message.error(), message.value() or b""
            assert error is None, error
            left -= 1
            if message.topic() == names[0]:
                count += len(decode_request(value, MAX_TIME_MS).impression_ids)
            else:
                decode_engagement(value, MAX_TIME_MS)
    consumer.close()
    return count


def join(pipeline: Pipeline, through_ms: int, folder: Path) -> int:
    gc.set_threshold(GARBAGE_AFTER)
    service = make_join_service(pipeline, folder, WallClock())
    count = 0

    def done() -> bool:
        nonlocal count
        for member in service.members.values():
            count = member.work.joiner.counts.examples
            return member.work.published > through_ms
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
    print(json.dumps({"count": count, "wall": time.monotonic() - begun, "cpu": cpu}))


def measure(arguments: argparse.Namespace, told: dict[str, Any]) -> dict[str, float]:
    if told["what"] in QUIX_FORMS:
        command = [str(quix_python()), "-m", "benchmarks.parts.quix_join", json.dumps(told)]
    else:
        command = [sys.executable, "-m", "benchmarks.join", "--child", json.dumps(told)]
        command += ["--profile"] if arguments.profile else []
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def quix_python() -> Path:
    """The Python of an environment with quixstreams and what builds examples, made on first use."""
    folder = Path(platformdirs.user_cache_dir("minutely")) / QUIX.replace("==", "-")
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        uv = shutil.which("uv") or str(Path(sys.prefix) / "uv" / "bin" / "uv")
        packages = [QUIX, "msgspec", "numpy", "pyarrow", "pydantic", "pyyaml", "xxhash"]
        subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)], check=True)
        subprocess.run([uv, "pip", "install", "--quiet", "--python", str(python), *packages], check=True)
        (folder / "ready").touch()
    return python


def examples_of(kafka: KafkaSettings, pipeline: Pipeline, closing: int) -> pa.Table:
    """All examples, read committed, but those of the closing request; by id."""
    table = pa.Table.from_batches(read_examples(kafka, ExampleFormat(pipeline.features, pipeline.labels)).batches)
    scores = table["score.click"]
    scores = pc.if_else(pc.is_nan(scores), pa.scalar(None, scores.type), scores)  # a NaN equals none
    table = table.set_column(table.schema.get_field_index("score.click"), "score.click", scores)
    return table.filter(pc.invert(pc.starts_with(table["example_id"], f"r{closing}/"))).sort_by("example_id")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--size", choices=list(SIZES), action="append")
    parser.add_argument("--child")
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments)
        return
    print(f"{'':14} {'bytes':>6} {'':8} {'impressions/s':>14} {'per CPU s':>12}")
    with tempfile.TemporaryDirectory() as folder, running(Path(folder) / "kafka") as cluster:
        for size in arguments.size or SIZES:
            impressions, values, requests = SIZES[size]
            prefix = f"b{uuid.uuid4().hex[:6]}."
            start = time.time_ns() // 1_000_000 - requests * EVERY_MS - 3_600_000
            found: dict[str, list[dict[str, float]]] = {what: [] for what in ("decode", "join", *QUIX_FORMS)}
            size_bytes = 0
            for turn in range(arguments.rounds):  # topics of its own for each, since a joiner goes on where one stopped
                kafka = KafkaSettings(bootstrap=cluster.bootstrap, prefix=f"{prefix}{turn}.", partitions=1)
                ensure_topics(kafka)
                size_bytes = fill(kafka, impressions, values, requests, start)
                told = {
                    "kafka": kafka.model_dump(mode="json"),
                    "values": values,
                    "impressions": impressions,
                    "requests": requests + 1,
                    "through": start + requests * EVERY_MS + CLOSING_MS + 10_000,
                    "largest": MAX_OUTPUT_BYTES,
                }
                pipeline = pipeline_of(kafka, values)
                for what in found:
                    out = kafka
                    if what in QUIX_FORMS:
                        out = KafkaSettings(bootstrap=cluster.bootstrap, prefix=f"{prefix}{turn}.{what}.", partitions=1)
                        ensure_topics(out)
                    result = measure(arguments, {**told, "what": what, "output": out.topic(EXAMPLES)})
                    all_out = impressions * (requests + (what in ("decode", "join")))
                    assert result["count"] in (all_out, impressions * (requests + 1)), (what, result)
                    found[what].append(result)
                    if what == "join":
                        ours = examples_of(kafka, pipeline, requests)
                        assert ours.num_rows == impressions * requests, ours.num_rows
                    elif what in QUIX_FORMS:
                        theirs = examples_of(out, pipeline, requests)
                        assert ours.equals(theirs), f"quixstreams ({what}) wrote other examples: {theirs.num_rows}"
            rates = {}
            for what, results in found.items():
                wall, cpu = (
                    statistics.median(item["count"] / item[key] for item in results) for key in ("wall", "cpu")
                )
                rates[what] = cpu
                print(f"{size:14} {size_bytes:6} {what:8} {wall:14,.0f} {cpu:12,.0f}")
            for what in ("decode", *QUIX_FORMS):
                print(f"{size:14} {'':6} join/{what} per CPU second: {rates['join'] / rates[what]:.2f}")


if __name__ == "__main__":
    main()
