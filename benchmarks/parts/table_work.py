"""What the table's benchmarks share: ids, batches of them, and work that is timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paramserver.table import Adagrad, Table

ROOT = Path(__file__).resolve().parents[2]
BATCH = 8192
BATCHES = 40  # a group: this many batches are timed together
Ids = NDArray[np.int64]
Floats = NDArray[np.float32]
OPTIMIZER = Adagrad(learning_rate=0.01, initial_accumulator=0.5)


def distinct_ids(count: int) -> Ids:
    """Random 64-bit ids, all different (an odd factor permutes them)."""
    return (np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) ^ np.uint64(0x5555)).view(np.int64)


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


def insert(table: Table, out: Floats, batch: Ids) -> None:
    table.lookup_or_insert(batch, 0, out[: len(batch)])


def once(work: Callable[[int], object]) -> float:
    """Groups a second, by one group."""
    start = time.perf_counter()
    for k in range(BATCHES):
        work(k)
    return 1 / (time.perf_counter() - start)
