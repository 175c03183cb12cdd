"""How much memory do pending impressions take? The joiner's own state over RocksDB, filled without Kafka.

Run from the repository: ``python -m benchmarks.pending [--impressions 5000000]``. For 50 and for 1 impressions a request, a process
of its own joins requests whose windows stay open, in batches as the service writes them, and prints what it has resident.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from streaming.features.kinds import Feature, SparseFeature, VectorFeature
from streaming.join.core import Joiner
from streaming.join.spec import JoinSpec
from streaming.join.state import Head, JoinState
from streaming.log import IMPRESSIONS, Record
from streaming.records.events import FORMAT_VERSION, Request, encode
from streaming.records.labels import Label

SIZES = {50: 40, 1: 240}
"""Impressions a request, and vector values an impression: about 9 KB and 1 KB a request."""
START_MS = 1_700_000_000_000
_BATCH = 2000


def resident_bytes() -> int:
    """What the process has in memory now; at most, where the system does not say."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def fill(per_request: int, impressions: int, folder: Path) -> dict[str, float]:
    """Join requests until ``impressions`` are pending; the largest resident size meanwhile."""
    values = SIZES[per_request]
    features: dict[str, Feature] = {
        "user": SparseFeature(column="user", scope="request"),
        "item": SparseFeature(column="item"),
        "vector": VectorFeature(kind="vector", column="vector", size=values),
    }
    spec = JoinSpec(features, {"click": Label(action="click", window="1d")})
    state = JoinState(folder, spec.settings.memory_bytes)
    joiner = Joiner(spec, state)
    rng = np.random.default_rng(1)
    vectors = rng.random((64, per_request * values), np.float32)
    before = largest = resident_bytes()
    begun = time.monotonic()
    requests = impressions // per_request
    for number in range(requests):
        request = Request(
            version=FORMAT_VERSION,
            request_id=f"request-{number}",
            served_at=START_MS + number,
            impression_ids=[f"{number}.{at}" for at in range(per_request)],
            shared={"user": number.to_bytes(8, "little")},
            features={"item": bytes(8 * per_request), "vector": vectors[number % 64].tobytes()},
        )
        joiner.add(IMPRESSIONS, Record(number, encode(request), START_MS + number))
        if number % _BATCH == _BATCH - 1 or number == requests - 1:
            joiner.advance(START_MS + number)
            joiner.drain()
            state.write(Head(state_id="bench", sequence=number, published=0, offsets={}, rebuild_points=[]))
            largest = max(largest, resident_bytes())
    pending = len(state)
    state.close()
    return {
        "pending": pending * per_request,
        "before": before,
        "largest": largest,
        "seconds": time.monotonic() - begun,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--impressions", type=int, default=5_000_000)
    parser.add_argument("--per-request", type=int, choices=list(SIZES), action="append")
    parser.add_argument("--child", action="store_true")
    arguments = parser.parse_args()
    if arguments.child:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(fill(arguments.per_request[0], arguments.impressions, Path(folder) / "state")))
        return
    print(f"{'a request':>10} {'pending':>12} {'resident MiB':>13} {'of it at start':>15} {'seconds':>8}")
    for per_request in arguments.per_request or SIZES:
        command = [sys.executable, "-m", "benchmarks.pending", "--child", "--per-request", str(per_request)]
        command += ["--impressions", str(arguments.impressions)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout)
        megabytes = {name: found[name] / (1 << 20) for name in ("largest", "before")}
        print(
            f"{per_request:10} {found['pending']:12,} {megabytes['largest']:13,.0f} {megabytes['before']:15,.0f} "
            f"{found['seconds']:8.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
