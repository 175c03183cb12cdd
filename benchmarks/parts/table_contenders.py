"""The table beside the limits of the memory, libcuckoo, torch and what else installs: rates by turns, and their ratios."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.parts.fbgemm import fbgemm_table
from benchmarks.parts.table_work import (
    BATCH,
    BATCHES,
    OPTIMIZER,
    ROOT,
    Ids,
    distinct_ids,
    grow,
    insert,
    once,
    warm_memory,
)
from benchmarks.parts.tfra import tfra_table
from paramserver.table import Table


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


def speed(native: Any, rows: int, dim: int, law: str, rounds: int) -> dict[str, Any]:
    random = np.random.default_rng(0)
    ids = distinct_ids(rows)
    out = np.empty((BATCH, dim), np.float32)
    gradients = random.normal(size=(BATCH, dim)).astype(np.float32)
    table = Table(dim, optimizer=OPTIMIZER)
    insert_rates: dict[str, float] = {}
    gigabytes = rows * (4 * dim + 48) / 1e9
    warm_memory(gigabytes)
    insert_rates["table"] = rows / sum(grow(partial(insert, table, out), ids)) / 1e6
    stats = table.stats
    cuckoo = None
    name = f"Cuckoo{dim}"
    if hasattr(native, name):
        cuckoo = getattr(native, name)()
        warm_memory(2 * gigabytes)  # it doubles, and copies
        insert_rates["libcuckoo"] = rows / sum(grow(cuckoo.insert, ids)) / 1e6
        # Room for all from the start, which spares it every copy; the table has none.
        presized = getattr(native, name)()
        presized.reserve(rows)
        warm_memory(gigabytes)
        insert_rates["libcuckoo, presized"] = rows / sum(grow(presized.insert, ids)) / 1e6
        del presized
    # Once more into memory that both have: without the system's share, which varies from machine to machine.
    table.erase(ids)
    table.seal()
    insert_rates["table, again"] = rows / sum(grow(partial(insert, table, out), ids)) / 1e6
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
    lead = max((16, 24, 32, 48), key=lambda lead: once(lambda k: array.gather(numbers[k], out, lead)))
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
        table.lookup_or_insert(batches[k], 0, out)
        table.apply(batches[k], gradients, 0)

    table_bytes = stats.index_bytes + stats.row_bytes
    memory = native.Memory(table_bytes)
    contenders: dict[str, Callable[[int], object]] = {
        "random lines read": lambda k: memory.read(k, BATCH, lead),
        "random lines updated": lambda k: memory.update(k, BATCH, lead),
        "gather": lambda k: array.gather(numbers[k], out, lead),
        "lookup": lambda k: table.lookup(batches[k], out),
        "torch lookup": torch_lookup,
        "update": lambda k: array.update(numbers[k], gradients, lead),
        "apply": lambda k: table.apply(batches[k], gradients, 0),
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
    os.sched_setaffinity(0, {0})
    result.measure(rounds, contenders)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
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
    # An id's first bucket and its row, which lies on whole cache lines.
    lines = 1 + dim // 16
    return {
        "rows": rows,
        "dim": dim,
        "ids": law,
        "rates_million_per_second": result.medians()
        | slow.medians()
        | {f"insert {k}": round(v, 2) for k, v in insert_rates.items()},
        "ratios": {
            "lookup / gather": result.ratio("lookup", "gather"),
            "apply / update": result.ratio("apply", "update"),
            "lookup / libcuckoo": result.ratio("lookup", "libcuckoo lookup"),
            "apply / libcuckoo": result.ratio("apply", "libcuckoo apply"),
            "insert / libcuckoo": insert_rates["table"] / insert_rates.get("libcuckoo", float("nan")),
            "insert / libcuckoo presized": insert_rates["table"]
            / insert_rates.get("libcuckoo, presized", float("nan")),
            "insert again / libcuckoo": insert_rates["table, again"]
            / insert_rates.get("libcuckoo, again", float("nan")),
            "lookup / torch": result.ratio("lookup", "torch lookup"),
            "lookup, of its lines' bound": lines * result.ratio("lookup", "random lines read"),
            "apply, of its lines' bound": lines * result.ratio("apply", "random lines updated"),
            "insert, share of fresh memory": insert_rates["table"]
            * 1e6
            * table_bytes
            / rows
            / memory.fresh_bytes_per_second,
            "lookup / tfra": result.ratio("lookup", "tfra lookup"),
            "insert / tfra": insert_rates["table"] / insert_rates.get("tfra", float("nan")),
            "lookup / fbgemm": result.ratio("lookup", "fbgemm lookup"),
            "lookup + apply / torch": slow.ratio("table step", "torch step"),
            "lookup + apply / fbgemm": result.ratio("table step", "fbgemm step"),
        },
        "fresh_memory_gb_per_second": memory.fresh_bytes_per_second / 1e9,
        "bytes_over_embeddings_and_state": table_bytes / (rows * (dim + 1) * 4),
    }
