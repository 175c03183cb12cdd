"""What does the products' client cost beside librdkafka, and a JSON request beside a packed one?

Run from the repository: ``python -m benchmarks.sending [--rounds 2]``. A broker of its own takes records of 1 KB and 9 KB
from both clients, as fast as they are handed over; then requests of 50 impressions with 25 values each are made and read.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
import timeit
import uuid
from contextlib import closing, nullcontext, suppress
from pathlib import Path

import msgspec
import numpy as np

from minutely.client import BrokerError, Client
from minutely.services.produce import ProductsQueue
from stack.kafka import running
from streaming.features.kinds import DenseFeature, Feature, SparseFeature, VectorFeature
from streaming.kafka.sending import Librdkafka, RetryingSender
from streaming.kafka.settings import KafkaSettings
from streaming.kafka.topics import ensure_topics
from streaming.log import IMPRESSIONS
from streaming.records.events import FORMAT_VERSION, MAX_TIME_MS, decode_request
from streaming.records.json_records import pack_request
from streaming.records.json_requests import JsonRequest

RECORDS = {1000: 60_000, 9000: 12_000}
"""How many of each size."""
IMPRESSIONS_A_REQUEST = 50
FEATURES: dict[str, Feature] = {
    "user": SparseFeature(column="user", scope="request"),
    "item": SparseFeature(column="item"),
    "tags": SparseFeature(column="tags", pool="mean"),
    **{f"number_{at}": DenseFeature(kind="dense", column="number") for at in range(5)},
    "vector": VectorFeature(kind="vector", column="vector", size=16),
}


def sent(bootstrap: str, size: int, client: type[Librdkafka | ProductsQueue]) -> tuple[float, float]:
    """Records a second, and a CPU second of this process, threads included."""
    kafka = KafkaSettings(bootstrap=bootstrap, prefix=f"{uuid.uuid4().hex[:8]}.")
    ensure_topics(kafka)
    values = [os.urandom(size // 2) + bytes(size - size // 2) for _ in range(50)]
    queue = client(kafka)
    with closing(queue) if isinstance(queue, ProductsQueue) else nullcontext():
        sender = RetryingSender(kafka, logging.getLogger("benchmark"), lambda: False, queue)
        wall, cpu = time.perf_counter(), time.process_time()
        for number in range(RECORDS[size]):
            sender.send(kafka.topic(IMPRESSIONS), values[number % 50], key=f"r{number}".encode())
        assert sender.wait() == 0
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return RECORDS[size] / wall, RECORDS[size] / cpu


def request() -> JsonRequest:
    """A request of the product's, with 25 values an impression."""
    rng, count = np.random.default_rng(1), IMPRESSIONS_A_REQUEST
    return JsonRequest(
        version=FORMAT_VERSION,
        request_id="r1",
        served_at=time.time_ns() // 1_000_000,
        impression_ids=[f"i{at}" for at in range(count)],
        shared={"user": "u7"},
        features={
            "item": [f"item{at}" for at in rng.integers(99_999, size=count)],
            "tags": rng.integers(99, size=(count, 3)).tolist(),
            **{f"number_{at}": rng.random(count).round(4).tolist() for at in range(5)},
            "vector": rng.random((count, 16)).round(4).tolist(),
        },
    )


def microseconds(call: object) -> float:
    """The best of five times 200 calls, in microseconds each."""
    return min(timeit.repeat(call, number=200, repeat=5)) / 200 * 1e6  # type: ignore[arg-type]


def records() -> None:
    """Print what making and reading requests takes."""
    one = request()
    as_json = msgspec.json.encode(one)
    packed = pack_request(as_json, FEATURES)
    print(f"a request: {len(as_json)} bytes of JSON, {len(packed)} packed")
    read = microseconds(lambda: decode_request(pack_request(as_json, FEATURES), MAX_TIME_MS))
    print(
        f"read as JSON in {read:.0f} us, packed in {microseconds(lambda: decode_request(packed, MAX_TIME_MS)):.0f} us"
    )
    client = Client(
        bootstrap="127.0.0.1:1", on_lost=print, wait_seconds=0.1
    )  # no broker: the time until it would be sent

    def served() -> None:
        with suppress(BrokerError):
            client.served(request_id="r1", impressions=one.impression_ids, features=one.features, shared=one.shared)

    def engaged() -> None:
        with suppress(BrokerError):
            client.engaged("r1", "i1", "click")

    served()  # tries to connect, once
    print(f"checked by the client in {microseconds(served):.0f} us, an engagement in {microseconds(engaged):.0f} us")


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running(Path(folder) / "cluster") as cluster:
        for _ in range(options.rounds):
            for size in RECORDS:
                for client in (Librdkafka, ProductsQueue):
                    wall, cpu = sent(cluster.bootstrap, size, client)
                    print(f"{size} bytes, {client.__name__}: {wall:,.0f} a second, {cpu:,.0f} a CPU second", flush=True)
    records()


if __name__ == "__main__":
    main()
