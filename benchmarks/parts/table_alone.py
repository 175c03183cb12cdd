"""The table over itself or the machine: beside a writer, while it grows, and with many rows."""

from __future__ import annotations

import os
import threading
import time
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.parts.table_work import (
    BATCH,
    BATCHES,
    OPTIMIZER,
    Floats,
    Ids,
    distinct_ids,
    grow,
    insert,
    once,
    warm_memory,
)
from paramserver.table import Table


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
        alone.append(once(lambda k: replica.lookup(batches[k], out)))
        go.set()
        time.sleep(0.02)
        beside.append(once(lambda k: replica.lookup(batches[k], out)))
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
    seconds = np.array(grow(partial(insert, table, out), ids))[1_000_000 // BATCH :]
    return {
        "slowest batch / median": float(seconds.max() / np.median(seconds)),
        "median_ms": float(np.median(seconds) * 1e3),
    }


def seal(rows: int, dim: int, rounds: int) -> dict[str, float]:
    """What `seal` costs a row: a tenth of the table changed, chosen at random, as after a minute of training; and all of it."""
    table = Table(dim, optimizer=OPTIMIZER)
    ids = distinct_ids(rows)
    warm_memory(2 * rows * (4 * dim + 48) / 1e9)
    grow(partial(insert, table, np.empty((BATCH, dim), np.float32)), ids)
    whole = _seal_ns(table)
    random = np.random.default_rng(0)
    out = np.empty((BATCH, dim), np.float32)
    some = []
    for _ in range(rounds):
        grow(partial(insert, table, out), ids[random.choice(rows, rows // 10, replace=False)])
        some.append(_seal_ns(table))
    return {"ns a row, a tenth of the rows": median(some), "ns a row, all of them": whole}


def _seal_ns(table: Table) -> float:
    start = time.perf_counter()
    sealed = table.seal()
    return (time.perf_counter() - start) / len(sealed.ids) * 1e9


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
        grow(partial(insert, tables[count], out), ids)
        batches[count] = [ids[random.integers(0, count, BATCH)] for _ in range(BATCHES)]
        del ids
        if count == rows:
            resident = resident_bytes() - before
        cost[count] = {"lookup": [], "apply": []}
    for _ in range(5):
        for count, table in tables.items():
            rate = once(partial(_lookup_of, table, batches[count], out))
            cost[count]["lookup"].append(1 / rate)
            cost[count]["apply"].append(1 / once(partial(_apply_of, table, batches[count], gradients)))
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
