"""Does the delta log keep up? Recovery against the disk, publication against training, sizes, a steady cadence, a month of expiry.

    python -m benchmarks.delta_log [--only recover,seal,size,cadence,expiry] [--minutes 10] [--days 30] [--out delta_log.json]

What is compared takes turns in one run; every ratio is the median of paired ratios. Files are synced as a trainer's are.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from paramserver.compaction import write_shard
from paramserver.delta import TableDelta
from paramserver.delta_log import Cut, DeltaLog
from paramserver.files import LocalFiles
from paramserver.follower import Follower
from paramserver.history import path_to, restore
from paramserver.precision import Precision
from paramserver.table import Adagrad, Normal, Table

ROOT = Path(__file__).resolve().parent.parent
OPTIMIZER = Adagrad(learning_rate=0.01, initial_accumulator=0.5)
PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "int8")
BATCH, FEATURES, DIM = 2048, 20, 16
CHANGED = 100_000
DAY = 86_400
Ids = NDArray[np.int64]


def distinct_ids(count: int, first: int = 0) -> Ids:
    """Ids spread over all of int64, none twice."""
    return ((np.arange(first, first + count, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)).view(np.int64)


def cut(version: int) -> Cut:
    return Cut(watermark=version, now_ms=version, offsets={"examples/0": version})


def insert(table: Table, ids: Ids, now_ms: int = 0) -> None:
    for at in range(0, len(ids), 8192):
        table.lookup_or_insert(ids[at : at + 8192], now_ms)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def recover(rows: int, rounds: int) -> dict[str, float]:
    """All rows from a base and ten deltas over reading the same files; the page cache is dropped before each."""
    ids = distinct_ids(rows)
    with TemporaryDirectory(dir=ROOT / "build") as folder, ThreadPoolExecutor(1) as beside:
        files = LocalFiles(Path(folder), durable=True)
        log = DeltaLog(files, "form", 1000)
        table = Table(DIM, optimizer=OPTIMIZER, initializer=Normal(0, 0.1))
        for part in np.array_split(ids, 5):
            insert(table, part)
            log.publish({"t": table.seal()}, cut(log.version + 1))
        log.fold()
        random = np.random.default_rng(0)
        for _ in range(10):
            changed = ids[random.integers(0, rows, CHANGED)]
            table.apply(changed, np.full((CHANGED, DIM), 0.01, np.float32), 1000)
            log.publish({"t": table.seal()}, cut(log.version + 1))
        exact = table.export()
        path = path_to(files, log.version)
        names = [Path(folder) / ref.name for item in path for shard in item.shards for ref in (shard.rows, shard.state)]
        table_bytes = sum(getattr(exact, name).nbytes for name in ("ids", "embeddings", "state"))

        def drop() -> None:
            for name in names:
                with name.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

        def read() -> None:
            buffer = bytearray(4 << 20)
            for name in names:
                with name.open("rb", buffering=0) as file:
                    while file.readinto(buffer):
                        pass

        ratios, reading, restoring, pulling = [], [], [], []
        for _ in range(rounds):
            np.empty(table_bytes // 2, np.float64).fill(1.0)  # a machine's host is slow to hand out memory at first
            drop()
            replica = Table(DIM, row_format="float32")
            pulling.append(seconds(Follower(files, {"t": replica}).pull))
            np.empty(table_bytes // 2, np.float64).fill(1.0)
            drop()
            reading.append(seconds(read))
            restored = Table(DIM, optimizer=OPTIMIZER)
            drop()
            restoring.append(seconds(lambda to=restored: restore(files, path, {"t": to}, beside)))  # type: ignore[misc]
            ratios.append(reading[-1] / restoring[-1])
        back = restored.export()
        assert (back.ids == exact.ids).all() and (back.embeddings == exact.embeddings).all()
        assert (replica.export().embeddings == exact.embeddings).all()
        size = sum(name.stat().st_size for name in names)
    return {
        "recover / disk": median(ratios),
        "files_gb": size / 1e9,
        "files": len(names),
        "disk_read_gb_per_second": size / median(reading) / 1e9,
        "recover_seconds": median(restoring),
        "million_rows_per_second": rows / median(restoring) / 1e6,
        "replica_load_seconds": median(pulling),
    }


class Training:
    """A network of two hidden layers over 20 features whose rows of dim 16 are in a table; one thread."""

    def __init__(self, rows: int) -> None:
        self.ids = distinct_ids(rows)
        self.table = Table(DIM, optimizer=OPTIMIZER, initializer=Normal(0, 0.1))
        insert(self.table, self.ids)
        self.table.seal()
        layers = [nn.Linear(FEATURES * DIM, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 1)]
        self.model = nn.Sequential(*layers)
        self.optimizer = torch.optim.Adam(self.model.parameters(), 0.001, fused=True)
        self.random = np.random.default_rng(0)
        self.rows = np.empty((BATCH * FEATURES, DIM), np.float32)
        self.labels = torch.rand(BATCH, 1).round()

    def among(self, count: int) -> Ids:
        """Some ids, for an epoch that is to change so many rows."""
        return self.ids[self.random.choice(len(self.ids), count, replace=False)]

    def step(self, among: Ids) -> None:
        ids = among[self.random.integers(0, len(among), BATCH * FEATURES)]
        self.table.lookup_or_insert(ids, 1000, self.rows)
        leaf = torch.from_numpy(self.rows).requires_grad_()
        self.optimizer.zero_grad()
        torch.autograd.backward(
            nn.functional.binary_cross_entropy_with_logits(self.model(leaf.view(BATCH, -1)), self.labels)
        )
        self.optimizer.step()
        assert leaf.grad is not None
        self.table.apply(ids, leaf.grad.numpy(), 1000)


def epochs(training: Training, cadence: float) -> Iterator[tuple[int, float]]:
    """Trains for a cadence, then gives steps and seconds; who takes them publishes within the next cadence, or not."""
    start = time.perf_counter()
    while True:
        among, steps = training.among(CHANGED), 0
        while time.perf_counter() - start < cadence:
            training.step(among)
            steps += 1
        training.table.lookup_or_insert(among, 1000)  # whatever chance has left out: exactly so many rows
        now = time.perf_counter()
        yield steps, now - start
        start = now


def seal(rounds: int) -> dict[str, float]:
    """Seal and publication of 100,000 changed rows every second between training steps, and what training loses by it."""
    torch.set_num_threads(1)
    training = Training(1_000_000)
    publishing, sealing, rates = [], [], []
    with TemporaryDirectory(dir=ROOT / "build") as folder, ThreadPoolExecutor(1) as beside:
        log = DeltaLog(LocalFiles(Path(folder), durable=True), "form", 1024, executor=beside)
        start = time.perf_counter()
        for at, (steps, _) in enumerate(epochs(training, 1.0)):
            before = time.perf_counter()
            rows = training.table.seal()
            sealing.append(time.perf_counter() - before)
            assert len(rows.ids) == CHANGED
            if at % 2:  # its time counts with the epoch that it belongs to, by turns none
                log.publish({"t": rows}, cut(log.version + 1))
                publishing.append(time.perf_counter() - before)
            now = time.perf_counter()
            lost = now - before if at % 2 else 0.0
            rates.append(steps / (before - start + lost))
            start = time.perf_counter()
            if at + 1 == 2 * rounds:
                break
        log.close()
    pairs = [with_it / without for without, with_it in zip(rates[::2], rates[1::2], strict=True)][1:]
    return {
        "seal_and_publish_p50_ms": float(np.percentile(publishing, 50)) * 1e3,
        "seal_and_publish_p99_ms": float(np.percentile(publishing, 99)) * 1e3,
        "seal_p99_ms": float(np.percentile(sealing, 99)) * 1e3,
        "publications": len(publishing),
        "training with / without": median(pairs),
        "examples_per_second": median(rates[::2]) * BATCH,
    }


def size() -> dict[str, float]:
    """The replicas' file of 100,000 rows over keys and embeddings, and over the float32 one."""
    found = {}
    with TemporaryDirectory(dir=ROOT / "build") as folder:
        files = LocalFiles(Path(folder), durable=False)
        for dim in (16, 64):
            table = Table(dim, initializer=Normal(0, 0.1))
            insert(table, distinct_ids(CHANGED))
            delta = {"t": TableDelta(table.seal(), np.ones(CHANGED, np.int64))}
            sizes = {kind: write_shard(files, f"{kind}-{dim}", delta, kind).rows.size for kind in PRECISIONS}
            found[f"dim {dim}: float32 / keys and embeddings"] = sizes["float32"] / (CHANGED * (8 + 4 * dim))
            for kind in PRECISIONS[1:]:
                found[f"dim {dim}: {kind} / float32"] = sizes[kind] / sizes["float32"]
    return found


def cadence(minutes: float, keep: int) -> dict[str, Any]:
    """A version a second at full training speed: what may not grow, in the middle and at the end."""
    torch.set_num_threads(1)
    training = Training(1_000_000)
    seen: list[dict[str, float]] = []
    with TemporaryDirectory(dir=ROOT / "build") as folder, ThreadPoolExecutor(1) as beside:
        place = Path(folder)
        log = DeltaLog(LocalFiles(place, durable=True), "form", keep, executor=beside)
        end = time.perf_counter() + minutes * 60
        for steps, passed in epochs(training, 1.0):
            before = time.perf_counter()
            rows = training.table.seal()
            sealed = time.perf_counter()
            log.publish({"t": rows}, cut(log.version + 1))
            now = time.perf_counter()
            there = [file.stat().st_size for file in place.iterdir() if file.exists()]
            seen.append(
                {
                    "resident_mb": resident_bytes() / 1e6,
                    "seal_ms": (sealed - before) * 1e3,
                    "publish_ms": (now - before) * 1e3,
                    "open_files": len(list(Path("/proc/self/fd").iterdir())),
                    "log_files": len(there),
                    "log_mb": sum(there) / 1e6,
                    "deltas": len(list(place.glob("manifest-*"))),
                    "examples_per_second": steps * BATCH / passed,
                }
            )
            if now > end:
                break
        log.close()
    thirds = [seen[len(seen) * part // 3 : len(seen) * (part + 1) // 3] for part in range(3)]
    report: dict[str, Any] = {"versions": len(seen), "keep_deltas": keep}
    for name in seen[0]:
        report[name] = [round(median(row[name] for row in part), 2) for part in thirds]
        report[f"largest {name}"] = [round(max(row[name] for row in part), 2) for part in thirds]
    return report


def expiry(days: int, new_a_day: int, epochs_a_day: int = 24) -> dict[str, Any]:
    """Ids that live for a day, through table, delta log and follower: memory by day, and whether the replica has the same ids."""
    table = Table(4, optimizer=OPTIMIZER, initializer=Normal(0, 0.1), expire_after_seconds=DAY)
    replica = Table(4, row_format="float32")
    found: list[dict[str, float]] = []
    with TemporaryDirectory(dir=ROOT / "build") as folder:
        files = LocalFiles(Path(folder), durable=False)
        log, follower = DeltaLog(files, "form", epochs_a_day), Follower(files, {"t": replica})
        an_epoch = new_a_day // epochs_a_day
        for epoch in range(days * epochs_a_day):
            for part, ids in enumerate(np.array_split(distinct_ids(an_epoch, epoch * an_epoch), 8)):
                now = (epoch * 8 + part) * DAY * 1000 // (epochs_a_day * 8)
                table.lookup_or_insert(ids, now)
                table.expire(now, 16 * len(ids))
            rows = table.seal()
            gone = rows.expired
            log.publish({"t": rows}, cut(log.version + 1))
            follower.pull()
            assert not replica.contains(gone).any(), "an expired row outlived its epoch in the replica"
            assert len(replica) == len(table), (epoch, len(replica), len(table))
            if (epoch + 1) % epochs_a_day == 0:
                parts = {"table_mb": table.stats, "replica_mb": replica.stats}
                mb = {name: (stats.index_bytes + stats.row_bytes) / 1e6 for name, stats in parts.items()}
                found.append(mb | {"live": len(table), "resident_mb": resident_bytes() / 1e6})
    steady = found[2:]
    worst = {
        f"{name} from day 3, largest / day 3": max(day[name] for day in steady) / steady[0][name] for name in found[0]
    }
    least = {f"{name} smallest / day 3": min(day[name] for day in steady) / steady[0][name] for name in found[0]}
    return worst | least | {"days": found}


def main() -> None:
    tasks: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
        "recover": lambda options: recover(options.rows, options.rounds),
        "seal": lambda options: seal(options.epochs // 2),
        "size": lambda options: size(),
        "cadence": lambda options: cadence(options.minutes, options.keep_deltas),
        "expiry": lambda options: expiry(options.days, options.new_a_day),
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(tasks))
    parser.add_argument("--rows", type=int, default=5_000_000, help="of recover")
    parser.add_argument("--rounds", type=int, default=5, help="of recover")
    parser.add_argument("--epochs", type=int, default=200, help="of seal; every second one is published")
    parser.add_argument("--minutes", type=float, default=10, help="of cadence")
    parser.add_argument("--keep-deltas", type=int, default=60, help="of cadence")
    parser.add_argument("--days", type=int, default=30, help="of expiry")
    parser.add_argument("--new-a-day", type=int, default=1_000_000, help="of expiry")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "delta_log.json")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {}
    for name in options.only.split(","):
        report[name] = tasks[name](options)
        print(f"\n{name}")
        for key, value in report[name].items():
            if key != "days":
                print(f"  {key:42} {value if isinstance(value, list) else format(value, '10.3f')}")
        print(end="", flush=True)
        options.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
