"""Memory that rows took comes back when they go, and many tables find room in one process."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

# In processes of their own, so that nothing else's memory counts.
EXPIRE = """
import json, sys
import numpy as np
from paramserver.table import Table

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096

table = Table(16, expire_after_seconds=60)
random = np.random.default_rng(0)
out = np.empty((10_000, 16), np.float32)
first = random.integers(-(2**63), 2**63 - 1, 100_000)
for ids in first.reshape(10, -1):
    table.lookup_or_insert(ids, 0, out)
table.seal()
before = resident()
for _ in range(100):
    table.lookup_or_insert(random.integers(-(2**63), 2**63 - 1, 10_000), 1000, out)
table.seal()
full = resident()
for ids in first.reshape(10, -1):
    table.lookup_or_insert(ids, 50_000, out)
while len(table) > len(first):
    table.expire(62_000, 100_000)
for _ in range(40):
    table.expire(62_000, 100_000)
table.seal()
table.expire(62_000, 1)
after = resident()
rows = table.lookup(first)
fresh = Table(16)
json.dump({"before": before, "full": full, "after": after, "same": bool((rows == fresh.lookup(first)).all()),
           "there": bool(table.contains(first).all())}, sys.stdout)
"""

LATE = (
    EXPIRE.replace("while len(table)", "table.lookup_or_insert(kept, 50_000, out[: len(kept)])\nwhile len(table)")
    .replace(
        "table.seal()\nfull =",
        "kept = random.integers(-(2**63), 2**63 - 1, 5_000)\n"
        "table.lookup_or_insert(kept, 1000, out[:5_000])\ntable.seal()\nfull =",
    )
    .replace("> len(first)", "> len(first) + len(kept)")
)

MANY = """
import numpy as np
from paramserver.table import Table

tables = [Table(64, name=str(i)) for i in range(500)]
ids = np.arange(100)
for i, table in enumerate(tables):
    table.lookup_or_insert(ids + i, 0)
assert all(table.contains(ids + i).all() for i, table in enumerate(tables))
print(sum(map(len, tables)))
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check(found: dict[str, Any]) -> None:
    assert found["full"] > found["before"] + 80_000_000
    assert found["after"] <= 1.2 * found["before"], found
    assert found["same"] and found["there"]


def test_memory_of_expired_rows_comes_back() -> None:
    check(json.loads(run(EXPIRE)))


def test_rows_made_last_that_stay_do_not_hold_the_memory() -> None:
    check(json.loads(run(LATE)))


def test_five_hundred_tables_in_a_process() -> None:
    assert run(MANY) == "50000\n"
