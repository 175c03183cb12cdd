"""How fast is the table? Side by side in one run: the table, the limits of the memory, libcuckoo, torch and what else installs.

    python benchmarks/table.py [--rows 1000000,10000000] [--dims 16,64] [--rounds 7] [--out table.json]

Contenders take turns batch group by batch group, so that noise meets them alike; every ratio is the median of paired ratios.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from fbgemm import fbgemm_table
from numpy.typing import NDArray
from tfra import tfra_table

from paramserver.table import Adagrad, Table

ROOT = Path(__file__).resolve().parent.parent
BATCH = 8192
BATCHES = 40  # a group: this many batches are timed together
Ids = NDArray[np.int64]
Floats = NDArray[np.float32]
OPTIMIZER = Adagrad(learning_rate=0.01, initial_accumulator=0.5)


def yardsticks() -> Any:
    """Builds and imports the C++ yardsticks."""
    import nanobind  # type: ignore[import-untyped]

    build = ROOT / "build" / "yardsticks"
    options = ["-DMINUTELY_YARDSTICKS=ON", "-DCMAKE_BUILD_TYPE=Release", f"-DPython_EXECUTABLE={sys.executable}"]
    configure = ["cmake", "-S", str(ROOT), "-B", str(build), f"-Dnanobind_DIR={nanobind.cmake_dir()}", *options]
    subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(
        ["cmake", "--build", str(build), "-j2", "--target", "_yardsticks"], check=True, stdout=subprocess.DEVNULL
    )
    found = next(
        (build / "benchmarks" / "native").glob("_yardsticks*" + str(sysconfig.get_config_var("EXT_SUFFIX"))[-3:])
    )
    spec = importlib.util.spec_from_file_location("_yardsticks", found)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def distinct_ids(count: int) -> Ids:
    """Random 64-bit ids, all different (an odd factor permutes them)."""
    return (np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) ^ np.uint64(0x5555)).view(np.int64)


def zipf_numbers(rows: int, count: int, random: np.random.Generator) -> Ids:
    """Row numbers with Zipf's law, exponent 1.05, over all rows, in random order of popularity."""
    weights = np.cumsum(np.arange(1, rows + 1, dtype=np.float64) ** -1.05)
    ranks = np.searchsorted(weights, random.random(count) * weights[-1])
    numbers: Ids = (ranks.astype(np.int64) * 2654435761) % rows
    return numbers


class Result:
    """Rates of contenders in turns."""

    def __init__(self) -> None:
        self.rates: dict[str, list[float]] = {}

    def measure(self, rounds: int, contenders: dict[str, Callable[[int], object]], keys: int = BATCH) -> None:
        for work in contenders.values():
            work(0)
        for turn in range(rounds):
            for name, work in contenders.items():
                start = time.perf_counter()
                for k in range(BATCHES):
                    work((turn * BATCHES + k) % (4 * BATCHES))
                self.rates.setdefault(name, []).append(BATCHES * keys / (time.perf_counter() - start) / 1e6)

    def ratio(self, one: str, other: str) -> float:
        if one not in self.rates or other not in self.rates:
            return float("nan")
        return median(a / b for a, b in zip(self.rates[one], self.rates[other], strict=True))

    def medians(self) -> dict[str, float]:
        return {name: round(median(rates), 2) for name, rates in self.rates.items()}


def warm_memory(gigabytes: float) -> None:
    """Touches memory and gives it back: a virtual machine's host is slow to hand out memory for the first time."""
    np.empty(int(gigabytes * (1 << 27)), np.float64).fill(1.0)


def grow(insert: Callable[[Ids], object], ids: Ids) -> list[float]:
    """Seconds of each batch of inserts."""
    seconds = []
    for at in range(0, len(ids), BATCH):
        start = time.perf_counter()
        insert(ids[at : at + BATCH])
        seconds.append(time.perf_counter() - start)
    return seconds


def speed(native: Any, rows: int, dim: int, law: str, rounds: int) -> dict[str, Any]:
    random = np.random.default_rng(0)
    ids = distinct_ids(rows)
    out = np.empty((BATCH, dim), np.float32)
    gradients = random.normal(size=(BATCH, dim)).astype(np.float32)
    tables = {n: Table(dim, optimizer=OPTIMIZER, threads=n) for n in (1, 2)}
    insert_rates: dict[str, float] = {}
    gigabytes = rows * (4 * dim + 48) / 1e9
    for n, table in tables.items():
        warm_memory(gigabytes)
        seconds = grow(partial(_insert, table, out), ids)
        insert_rates[f"table x{n}"] = rows / sum(seconds) / 1e6
    stats = tables[1].stats
    cuckoo = None
    name = f"Cuckoo{dim}"
    if hasattr(native, name):
        cuckoo = getattr(native, name)()
        warm_memory(2 * gigabytes)  # it doubles, and copies
        insert_rates["libcuckoo"] = rows / sum(grow(cuckoo.insert, ids)) / 1e6
    # Once more into memory that both have: without the system's share, which varies from machine to machine.
    tables[1].erase(ids)
    tables[1].seal()
    insert_rates["table x1, again"] = rows / sum(grow(partial(_insert, tables[1], out), ids)) / 1e6
    if cuckoo is not None:
        cuckoo.clear()
        insert_rates["libcuckoo, again"] = rows / sum(grow(cuckoo.insert, ids)) / 1e6
    tfra = tfra_table(rows, dim)
    if tfra is not None:
        insert_rates["tfra"] = rows / sum(grow(tfra.insert, ids)) / 1e6
    array = native.Array(rows, dim)
    if law == "zipf":
        drawn = zipf_numbers(rows, 4 * BATCHES * BATCH, random).reshape(-1, BATCH)
        numbers = list(drawn)
    else:
        numbers = (
            [np.unique(random.integers(0, rows, BATCH + 600))[:BATCH] for _ in range(4 * BATCHES)]
            if rows > 10 * BATCH
            else []
        )
        numbers = [random.permutation(part) for part in numbers]
    batches = [ids[part] for part in numbers]
    result = Result()
    lead = max((16, 24, 32, 48), key=lambda lead: _once(lambda k: array.gather(numbers[k], out, lead, 1)))
    torch.set_num_threads(1)
    bag = torch.nn.EmbeddingBag(rows, dim, mode="sum", sparse=True)
    torch_numbers = [torch.from_numpy(part) for part in numbers]
    offsets = torch.arange(BATCH)
    optimizer = torch.optim.Adagrad(bag.parameters(), 0.01)
    torch_gradients = torch.from_numpy(gradients)

    def torch_lookup(k: int) -> None:
        with torch.no_grad():
            bag(torch_numbers[k], offsets)

    def torch_step(k: int) -> None:
        optimizer.zero_grad()
        bag(torch_numbers[k], offsets).backward(torch_gradients)
        optimizer.step()

    fbgemm = fbgemm_table(rows, dim)

    def fbgemm_lookup(k: int) -> None:
        assert fbgemm is not None
        with torch.no_grad():
            fbgemm.lookup(torch_numbers[k])

    def fbgemm_step(k: int) -> None:
        assert fbgemm is not None
        fbgemm.lookup(torch_numbers[k]).backward(torch_gradients)

    def table_step(k: int) -> None:
        tables[1].lookup_or_insert(batches[k], 0, out)
        tables[1].apply(batches[k], gradients, 0)

    contenders: dict[str, Callable[[int], object]] = {
        "gather": lambda k: array.gather(numbers[k], out, lead, 1),
        "lookup": lambda k: tables[1].lookup(batches[k], out),
        "lookup, 2 threads": lambda k: tables[2].lookup(batches[k], out),
        "torch lookup": torch_lookup,
        "update": lambda k: array.update(numbers[k], gradients, lead, 1),
        "apply": lambda k: tables[1].apply(batches[k], gradients, 0),
        "apply, 2 threads": lambda k: tables[2].apply(batches[k], gradients, 0),
    }
    if cuckoo is not None:
        contenders["libcuckoo lookup"] = lambda k: cuckoo.lookup(batches[k], out)
        contenders["libcuckoo apply"] = lambda k: cuckoo.apply(batches[k], gradients)
    if tfra is not None:
        contenders["tfra lookup"] = lambda k: tfra.lookup(batches[k])
    if fbgemm is not None:
        contenders["fbgemm lookup"] = fbgemm_lookup
        contenders["fbgemm step"] = fbgemm_step
    contenders["table step"] = table_step
    one_thread = {name: work for name, work in contenders.items() if "2 threads" not in name}
    two_threads = {name: contenders[name] for name in ("lookup", "lookup, 2 threads", "apply", "apply, 2 threads")}
    os.sched_setaffinity(0, {0})
    result.measure(rounds, one_thread)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    both = Result()
    both.measure(rounds, two_threads)
    slow = Result()
    start = time.perf_counter()
    torch_step(0)
    steps = max(1, min(10, int(2 / (time.perf_counter() - start))))
    for turn in range(rounds):
        for step_name, work in (("table step", table_step), ("torch step", torch_step)):
            start = time.perf_counter()
            for k in range(steps):
                work((turn * steps + k) % len(numbers))
            slow.rates.setdefault(step_name, []).append(steps * BATCH / (time.perf_counter() - start) / 1e6)
    return {
        "rows": rows,
        "dim": dim,
        "ids": law,
        "rates_million_per_second": result.medians()
        | slow.medians()
        | {f"insert {k}": round(v, 2) for k, v in insert_rates.items()},
        "two_threads_rates": both.medians(),
        "ratios": {
            "lookup / gather": result.ratio("lookup", "gather"),
            "apply / update": result.ratio("apply", "update"),
            "lookup / libcuckoo": result.ratio("lookup", "libcuckoo lookup"),
            "apply / libcuckoo": result.ratio("apply", "libcuckoo apply"),
            "insert / libcuckoo": insert_rates["table x1"] / insert_rates.get("libcuckoo", float("nan")),
            "insert again / libcuckoo": insert_rates["table x1, again"]
            / insert_rates.get("libcuckoo, again", float("nan")),
            "lookup / torch": result.ratio("lookup", "torch lookup"),
            "lookup / tfra": result.ratio("lookup", "tfra lookup"),
            "insert / tfra": insert_rates["table x1"] / insert_rates.get("tfra", float("nan")),
            "lookup / fbgemm": result.ratio("lookup", "fbgemm lookup"),
            "lookup + apply / torch": slow.ratio("table step", "torch step"),
            "lookup + apply / fbgemm": result.ratio("table step", "fbgemm step"),
            "lookup 2 threads / 1": both.ratio("lookup, 2 threads", "lookup"),
            "apply 2 threads / 1": both.ratio("apply, 2 threads", "apply"),
        },
        "bytes_over_embeddings_and_state": (stats.index_bytes + stats.row_bytes) / (rows * (dim + 1) * 4),
    }


def _insert(table: Table, out: Floats, batch: Ids) -> None:
    table.lookup_or_insert(batch, 0, out[: len(batch)])


def _once(work: Callable[[int], object]) -> float:
    start = time.perf_counter()
    for k in range(BATCHES):
        work(k)
    return 1 / (time.perf_counter() - start)


def beside_a_writer(rows: int, dim: int, rounds: int) -> dict[str, float]:
    """A replica's lookups while another thread applies deltas, over its lookups alone; each thread on a core of its own."""
    replica = Table(dim, row_format="float32")
    ids = distinct_ids(rows)
    values = np.ones((BATCH, dim), np.float32)
    for at in range(0, rows, BATCH):
        replica.upsert(ids[at : at + BATCH], values[: len(ids[at : at + BATCH])])
    random = np.random.default_rng(1)
    batches = [ids[random.integers(0, rows, BATCH)] for _ in range(BATCHES)]
    deltas = [ids[random.integers(0, rows, BATCH)] for _ in range(BATCHES)]
    out = np.empty((BATCH, dim), np.float32)
    stop, go = threading.Event(), threading.Event()
    written = 0

    def write() -> None:
        nonlocal written
        os.sched_setaffinity(0, {1})
        while not stop.is_set():
            if not go.wait(0.01):
                continue
            replica.upsert(deltas[written % BATCHES], values)
            written += 1

    writer = threading.Thread(target=write)
    os.sched_setaffinity(0, {0})
    writer.start()
    alone, beside = [], []
    for _ in range(rounds):
        go.clear()
        time.sleep(0.02)
        alone.append(_once(lambda k: replica.lookup(batches[k], out)))
        go.set()
        time.sleep(0.02)
        beside.append(_once(lambda k: replica.lookup(batches[k], out)))
    stop.set()
    writer.join()
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    return {
        "lookup beside a writer / alone": median(b / a for a, b in zip(alone, beside, strict=True)),
        "batches_written": written,
    }


def growth(rows: int) -> dict[str, float]:
    """Batches of new ids from 1 M rows on: the slowest over the median."""
    table = Table(16)
    ids = distinct_ids(rows)
    warm_memory(rows * 120 / 1e9)
    out = np.empty((BATCH, 16), np.float32)
    seconds = np.array(grow(partial(_insert, table, out), ids))[1_000_000 // BATCH :]
    return {
        "slowest batch / median": float(seconds.max() / np.median(seconds)),
        "median_ms": float(np.median(seconds) * 1e3),
    }


def large(rows: int) -> dict[str, float]:
    """Memory of a large table, and what an id costs there over what it costs among a million."""
    cost: dict[int, dict[str, list[float]]] = {}
    tables, batches = {}, {}
    random = np.random.default_rng(0)
    out, gradients = np.empty((BATCH, 16), np.float32), np.full((BATCH, 16), 0.01, np.float32)
    before = resident_bytes()
    for count in (rows, 1_000_000):
        tables[count] = Table(16, optimizer=OPTIMIZER)
        ids = distinct_ids(count)
        grow(partial(_insert, tables[count], out), ids)
        batches[count] = [ids[random.integers(0, count, BATCH)] for _ in range(BATCHES)]
        del ids
        if count == rows:
            resident = resident_bytes() - before
        cost[count] = {"lookup": [], "apply": []}
    for _ in range(5):
        for count, table in tables.items():
            rate = _once(partial(_lookup_of, table, batches[count], out))
            cost[count]["lookup"].append(1 / rate)
            cost[count]["apply"].append(1 / _once(partial(_apply_of, table, batches[count], gradients)))
    stats = tables[rows].stats
    ratios = {
        f"{name}, {rows // 1_000_000} M / 1 M rows": median(
            a / b for a, b in zip(cost[rows][name], cost[1_000_000][name], strict=True)
        )
        for name in ("lookup", "apply")
    }
    return ratios | {"table_gib": (stats.index_bytes + stats.row_bytes) / 2**30, "resident_gib": resident / 2**30}


def resident_bytes() -> int:
    """Memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _lookup_of(table: Table, batches: list[Ids], out: Floats, k: int) -> None:
    table.lookup(batches[k], out)


def _apply_of(table: Table, batches: list[Ids], gradients: Floats, k: int) -> None:
    table.apply(batches[k], gradients, 0)


def disk(rows: int) -> dict[str, float]:
    """save and load over the disk's sequential speed; the page cache is dropped before reads."""
    table = Table(16, optimizer=OPTIMIZER)
    ids = distinct_ids(rows)
    for at in range(0, rows, BATCH):
        table.lookup_or_insert(ids[at : at + BATCH], 0)

    def drop(path: Path) -> None:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def timed(work: Callable[[], object]) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    ratios: dict[str, list[float]] = {"save": [], "load": []}
    with TemporaryDirectory(dir=ROOT) as folder:
        saved, plain = Path(folder) / "table", Path(folder) / "plain"
        table.save(saved)
        content = np.frombuffer(saved.read_bytes(), np.uint8)

        def write_plain() -> None:
            with plain.open("wb") as file:
                file.write(content.data)
                os.fsync(file.fileno())

        def read_plain() -> None:
            with plain.open("rb", buffering=0) as file:
                buffer = bytearray(4 << 20)
                while file.readinto(buffer):
                    pass

        for _ in range(3):
            write_seconds = timed(write_plain)
            ratios["save"].append(write_seconds / timed(lambda: table.save(saved)))
            drop(plain)
            read_seconds = timed(read_plain)
            loaded = Table(16, optimizer=OPTIMIZER)
            warm_memory(rows * 120 / 1e9)
            drop(saved)
            ratios["load"].append(read_seconds / timed(partial(loaded.load, saved)))
        gigabytes = len(content) / 1e9
    return {
        "save / disk": median(ratios["save"]),
        "load / disk": median(ratios["load"]),
        "disk_write_gb_per_second": gigabytes / write_seconds,
        "disk_read_gb_per_second": gigabytes / read_seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="1000000,10000000")
    parser.add_argument("--dims", default="16,64")
    parser.add_argument("--laws", default="uniform,zipf")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="speed,beside,growth,disk,large")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "table.json")
    options = parser.parse_args()
    native = yardsticks()
    report: dict[str, Any] = {}
    wanted = options.only.split(",")
    if "speed" in wanted:
        report["speed"] = []
        for dim in map(int, options.dims.split(",")):
            for rows in map(int, options.rows.split(",")):
                for law in options.laws.split(","):
                    one = speed(native, rows, dim, law, options.rounds)
                    report["speed"].append(one)
                    print(f"\n{rows:,} rows, dim {dim}, {law} ids, batches of {BATCH}", flush=True)
                    for name, rate in (one["rates_million_per_second"] | one["two_threads_rates"]).items():
                        print(f"  {name:28} {rate:8.2f} M/s")
                    for name, ratio in one["ratios"].items():
                        print(f"  {name:28} {ratio:8.2f}")
                    print(f"  bytes / (embeddings + state) {one['bytes_over_embeddings_and_state']:8.2f}", flush=True)
    tasks: dict[str, Callable[[], dict[str, float]]] = {
        "beside": lambda: beside_a_writer(10_000_000, 16, options.rounds),
        "growth": lambda: growth(20_000_000),
        "disk": lambda: disk(5_000_000),
        "large": lambda: large(50_000_000),
    }
    for name, task in tasks.items():
        if name in wanted:
            report[name] = task()
            print(f"\n{name}: " + ", ".join(f"{key} {value:.2f}" for key, value in report[name].items()), flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
