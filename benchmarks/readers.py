"""How fast are logged files read? Our reader (DuckDB) next to Arrow's own readers and to reading the bytes alone.

    python -m benchmarks.readers [--rows 1000000] [--rounds 3] [--out readers.json]

One file a format with 19 columns: a time, ids as numbers and texts, numbers, a list (not in CSV). Both readers turn it into Arrow
columns, CSV into texts, in a process of its own each, in turns; medians. The bytes alone come from the page cache.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset
import pyarrow.json
import pyarrow.parquet

from streaming.source.files.find import FoundFile, Kind
from streaming.source.files.open import open_found
from streaming.source.settings import File

ROOT = Path(__file__).resolve().parent.parent
KINDS: tuple[Kind, ...] = ("parquet", "csv", "jsonl")


def write(folder: Path, rows: int) -> None:
    """Write the same rows in every format."""
    rng = np.random.default_rng(1)
    columns: dict[str, Any] = {
        "time": 1_700_000_000_000 + np.arange(rows) * 50,
        "user": rng.integers(0, rows // 10, rows),
        "item": pa.array(np.char.add("item", rng.integers(0, 20_000, rows).astype(str))),
        **{f"id{at}": rng.integers(0, 1000 * 10**at, rows) for at in range(6)},
        **{f"number{at}": rng.random(rows).astype(np.float32) for at in range(8)},
        "click": rng.integers(0, 2, rows),
    }
    flat = pa.table(columns)
    tags = pa.ListArray.from_arrays(np.arange(0, 3 * rows + 1, 3, dtype=np.int32), rng.integers(0, 500, 3 * rows))
    table = flat.append_column("tags", tags)
    pyarrow.parquet.write_table(table, folder / "log.parquet")
    pyarrow.csv.write_csv(flat, folder / "log.csv")
    with (folder / "log.jsonl").open("w") as file:
        for batch in table.to_batches(max_chunksize=50_000):
            file.writelines(json.dumps(row, separators=(",", ":")) + "\n" for row in batch.to_pylist())


def ours(path: Path, kind: Kind) -> int:
    """Read a file as `minutely` does."""
    with pyarrow.csv.open_csv(path.with_suffix(".csv")) as header:
        columns = header.schema.names + ([] if kind == "csv" else ["tags"])
    with open_found(FoundFile(path, kind, {}), File(file=path.name), columns) as contents:
        return sum(table.num_rows for table in contents.tables)


def arrows(path: Path, kind: Kind) -> int:
    """Read a file by Arrow's reader of its format."""
    if kind == "parquet":
        return int(pyarrow.dataset.dataset(path).to_table().num_rows)
    if kind == "jsonl":
        return int(pyarrow.json.read_json(path).num_rows)
    with pyarrow.csv.open_csv(path) as header:
        texts = dict.fromkeys(header.schema.names, pa.string())
    return int(pyarrow.csv.read_csv(path, convert_options=pyarrow.csv.ConvertOptions(column_types=texts)).num_rows)


def bytes_alone(path: Path, _kind: Kind) -> int:
    """Read a file and do nothing with it."""
    with path.open("rb") as file:
        while file.read(1 << 20):
            pass
    return 0


READERS: dict[str, Callable[[Path, Kind], int]] = {"minutely": ours, "arrow": arrows, "bytes": bytes_alone}


def measure(path: Path, kind: Kind, reader: str) -> dict[str, float]:
    """Measure a reader in this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    rows = READERS[reader](path, kind)
    return {
        "seconds": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "rows": rows,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "readers.json")
    parser.add_argument("--child", nargs=3)
    arguments = parser.parse_args()
    if arguments.child:
        path, kind, reader = arguments.child
        print(json.dumps(measure(Path(path), kind, reader)))
        return
    found: dict[str, dict[str, dict[str, float]]] = {}
    print(f"{'':10} {'MB':>6} {'':10} {'M rows/s':>9} {'per CPU s':>10} {'peak MiB':>9}")
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), arguments.rows)
        for kind in KINDS:
            path = Path(folder, f"log.{kind}")
            runs: dict[str, list[dict[str, float]]] = {reader: [] for reader in READERS}
            for _ in range(arguments.rounds):
                for reader, results in runs.items():
                    command = [sys.executable, "-m", "benchmarks.readers", "--child", str(path), kind, reader]
                    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT)
                    results.append(json.loads(done.stdout))
            found[kind] = {}
            for reader, results in runs.items():
                median = {name: statistics.median(each[name] for each in results) for name in results[0]}
                assert reader == "bytes" or median["rows"] == arguments.rows, (reader, median)
                found[kind][reader] = median
                rates = [arguments.rows / median[name] / 1e6 for name in ("seconds", "cpu")]
                size = path.stat().st_size / 1e6
                print(f"{kind:10} {size:6.0f} {reader:10} {rates[0]:9.2f} {rates[1]:10.2f} {median['peak_mib']:9.0f}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
