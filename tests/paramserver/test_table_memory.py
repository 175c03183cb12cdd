"""A month of new ids: what leaves makes room for what comes, down to the process's resident memory."""

from __future__ import annotations

import json
import subprocess
import sys

# In a process of its own, so that nothing else's memory counts. A day is a million new ids, and each lives for a day.
LIFE = """
import json, sys
import numpy as np
from paramserver.table import Adagrad, Normal, Table

DAY, IDS, BATCH, SEALS = 86_400, 1_000_000, 8_000, 5
table = Table(4, optimizer=Adagrad(learning_rate=0.1), initializer=Normal(0, 0.1), expire_after_seconds=DAY)
random = np.random.default_rng(0)
gradients = random.normal(size=(BATCH, 4)).astype(np.float32)
out = np.empty((BATCH, 4), np.float32)
page = 4096
found = []
for day in range(30):
    expired = sealed = 0
    for batch in range(IDS // BATCH):
        ids = random.integers(-(2**63), 2**63 - 1, BATCH)
        now = int((day + batch * BATCH / IDS) * DAY * 1000)
        table.lookup_or_insert(ids, now, out)
        table.apply(ids, gradients, now)
        table.expire(now, 16 * BATCH)
        if (batch + 1) % (IDS // BATCH // SEALS) == 0:
            rows = table.seal()
            sealed += len(rows.ids)
            expired += len(rows.expired)
            del rows
    with open("/proc/self/statm") as statm:
        resident = int(statm.read().split()[1]) * page
    found.append({"resident": resident, "live": len(table), "sealed": sealed, "expired": expired})
json.dump(found, sys.stdout)
"""


def test_memory_stays_from_day_3_to_day_30() -> None:
    done = subprocess.run([sys.executable, "-c", LIFE], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    days = json.loads(done.stdout)
    steady = days[2:]  # from the end of day 3 on
    for day in steady:
        assert day["sealed"] == 1_000_000, "every new id is in a seal"
        assert 1_000_000 <= day["live"] <= 1_100_000
        assert abs(day["expired"] - 1_000_000) <= 100_000
        assert abs(day["resident"] / steady[0]["resident"] - 1) <= 0.05, days
