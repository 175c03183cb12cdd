"""How much memory does a replay take, and how fast is it, where its log fits memory and where it does not?

    python -m benchmarks.large_log [--impressions 20000000] [--memory 2GB] [--reference ../before] [--out large_log.json]

Makes a log of ten days with 19 features (14 of them ids, one a list) in ten Parquet files, none of which is in the order of time,
and replays it in a process of its own, whose peak resident memory it measures. ``--reference``, a checkout with an environment of
its own, replays the same log side by side, one after the other. ``--equal`` replays with that memory and with all of the machine's,
and compares the summaries.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parent.parent
DAYS, FILES = 10, 10
START = 1_767_225_600_000
REQUEST = 10
"""Impressions a request."""
USERS, ITEMS = 200_000, 50_000
AT_ONCE = 500_000
IDS = {
    "category": 200,
    "brand": 3_000,
    "city": 800,
    "device": 12,
    "system": 6,
    "page": 40,
    "position": REQUEST,
    "seller": 9_000,
}
NUMBERS = ["price", "score", "popularity", "rating", "discount"]
CONFIG = """
name: large
source:
  dir: .
  impressions:
    file: "*.parquet"
    time: {{column: time}}
    request: [request]
  actions:
    click: {{when: click, delay: {{column: wait}}}}
features:
  user: {{column: user, scope: request}}
  item: {{column: item}}
{ids}
  tags: {{column: tags, pool: mean}}
  hour: {{time: hour}}
  weekday: {{time: weekday}}
{numbers}
  age: {{kind: dense, column: made, transform: age}}
labels:
  click: {{action: click, window: 10m, decided_by: click}}
model: {{kind: deepfm, dim: 8, hidden: [64, 32]}}
"""


def write(folder: Path, impressions: int) -> None:
    """Write the log and its config."""
    rng = np.random.default_rng(1)
    taste, quality = rng.normal(size=(USERS, 4)).astype(np.float32), rng.normal(size=(ITEMS, 4)).astype(np.float32)
    of_item = {name: rng.integers(0, size, ITEMS) for name, size in IDS.items()}
    writers: list[pq.ParquetWriter] = []
    for begin in range(0, impressions, AT_ONCE):
        count = min(AT_ONCE, impressions - begin)
        request = (begin + np.arange(count)) // REQUEST
        user = (request * 7919) % USERS
        item = np.minimum(rng.zipf(1.2, count), ITEMS) - 1
        chance = 1 / (1 + np.exp(3 - (taste[user] * quality[item]).sum(1)))
        at = START + request * (DAYS * 86_400_000 // (impressions // REQUEST + 1))
        table = pa.table(
            {
                "time": at,
                "request": request,
                "user": user,
                "item": item,
                **{
                    name: (item * 31 + np.arange(count)) % size if name == "position" else of_item[name][item]
                    for name, size in IDS.items()
                },
                "tags": pa.ListArray.from_arrays(
                    np.arange(0, 3 * count + 1, 3, dtype=np.int32), rng.integers(0, 500, 3 * count)
                ),
                **{name: rng.random(count).astype(np.float32) for name in NUMBERS},
                "made": at - rng.integers(0, 30 * 86_400_000, count),
                "click": rng.random(count) < chance,
                "wait": rng.integers(1_000, 300_000, count),
            }
        )
        writers = writers or [pq.ParquetWriter(folder / f"part-{at}.parquet", table.schema) for at in range(FILES)]
        file = rng.permutation(count) % FILES
        for at_file, writer in enumerate(writers):
            rows = np.flatnonzero(file == at_file)
            writer.write_table(table.take(pa.array(rng.permutation(rows))))
    for writer in writers:
        writer.close()
    ids = "\n".join(f"  {name}: {{column: {name}}}" for name in IDS)
    numbers = "\n".join(f"  {name}: {{kind: dense, column: {name}}}" for name in NUMBERS)
    (folder / "large.yaml").write_text(CONFIG.format(ids=ids, numbers=numbers))


def replay(checkout: Path, folder: Path, *options: str) -> dict[str, Any]:
    """Replay the log with the program of a checkout."""
    out = Path(tempfile.mkdtemp(dir=folder))
    command = [str(checkout / ".venv" / "bin" / "minutely"), "replay", str(folder / "large.yaml")]
    command += ["--data", str(folder), "--out", str(out / "run"), *options]
    began = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=checkout, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(checkout)}
    )
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if status:
        sys.exit(f"{' '.join(command)}: status {status}")
    summary = json.loads((out / "run" / "summary.json").read_text())
    shutil.rmtree(out)
    return {
        "impressions": summary["impressions"],
        "examples": summary["examples"],
        "examples_per_second": summary["examples_per_second"],
        "seconds": round(seconds, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_gb": round(used.ru_maxrss * 1024 / 1e9, 2),
        "summary": {name: summary[name] for name in ("metrics", "rows", "versions", "dead_letters", "engagements")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--impressions", type=int, default=20_000_000)
    parser.add_argument("--memory", default="2GB")
    parser.add_argument("--reference", type=Path)
    parser.add_argument("--equal", action="store_true")
    parser.add_argument("--folder", type=Path, help="Where to make the log. [default: a temporary folder]")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "large_log.json")
    arguments = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        write(folder, arguments.impressions)
        size = sum(each.stat().st_size for each in folder.glob("*.parquet"))
        print(f"{arguments.impressions:,} impressions, {size / 1e9:.2f} GB of Parquet")
        print(f"{'':12} {'examples/s':>10} {'seconds':>8} {'CPU s':>8} {'peak GB':>8}")
        runs: dict[str, tuple[Path, list[str]]] = {arguments.memory: (ROOT, ["--memory", arguments.memory])}
        if arguments.equal:
            runs["all"] = ROOT, ["--memory", f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') >> 20}MiB"]
        if arguments.reference is not None:
            runs["reference"] = arguments.reference.resolve(), []
        for label, (checkout, options) in runs.items():
            got = found[label] = replay(checkout, folder, *options)
            rate, seconds, cpu = got["examples_per_second"], got["seconds"], got["cpu_seconds"]
            print(f"{label:12} {rate:10,.0f} {seconds:8,.0f} {cpu:8,.0f} {got['peak_gb']:8.2f}")
    if len(found) > 1:
        first = found[arguments.memory]["summary"]
        for label, got in found.items():
            same = json.dumps(got["summary"], sort_keys=True) == json.dumps(first, sort_keys=True)
            print(f"{label}: {'the same figures' if same else 'OTHER FIGURES'}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
