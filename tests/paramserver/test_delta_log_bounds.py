"""What the delta log may cost: the size of what replicas get, and a week of ids that each live for a day."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from paramserver.compaction import write_shard
from paramserver.delta import TableDelta
from paramserver.delta_log import Cut, DeltaLog
from paramserver.files import LocalFiles
from paramserver.follower import Follower
from paramserver.table import Normal, Table

DAY_MS = 86_400_000


@pytest.mark.parametrize("dim", [16, 64])
def test_replicas_get_little_more_than_keys_and_changed_embeddings(tmp_path: Path, dim: int) -> None:
    changed = 20_000
    table = Table(dim, initializer=Normal(0, 0.1))
    table.lookup_or_insert(np.arange(changed), 0)
    delta = {"user": TableDelta(table.seal(), np.ones(changed, np.int64))}
    files = LocalFiles(tmp_path, durable=False)
    exact = write_shard(files, "1", delta, "float32").rows.size
    half = write_shard(files, "2", delta, "float16").rows.size
    small = write_shard(files, "3", delta, "int8").rows.size

    assert exact <= 1.1 * changed * (8 + 4 * dim)
    if dim == 64:
        assert half <= 0.55 * exact
        assert small <= 0.32 * exact


def test_a_replica_forgets_what_expired_within_an_epoch_and_grows_no_further(tmp_path: Path) -> None:
    """The form for CI of benchmarks/delta_log.py's `expiry`: fewer ids and days, the log folding under the replica."""
    days, epochs, new = 7, 12, 2_000
    table = Table(4, initializer=Normal(0, 0.1), expire_after_seconds=DAY_MS // 1000)
    replica = Table(4, row_format="float32")
    log, follower = (
        DeltaLog(LocalFiles(tmp_path, durable=False), "form", 10),
        Follower(LocalFiles(tmp_path, durable=False), {"user": replica}),
    )
    bytes_by_day: list[tuple[int, int]] = []
    files_by_day: list[int] = []
    gone = 0
    for epoch in range(days * epochs):
        now_ms = epoch * DAY_MS // epochs
        table.lookup_or_insert(np.arange(epoch * new, (epoch + 1) * new) * 2_654_435_761, now_ms)
        table.expire(now_ms, 1 << 20)
        rows = table.seal()
        log.publish({"user": rows}, Cut(now_ms, now_ms, {"examples/0": epoch}))
        follower.pull()
        gone += len(rows.expired)
        assert not replica.contains(rows.expired).any()
        assert (replica.export().ids == table.export().ids).all()
        if (epoch + 1) % epochs == 0:
            stats = (table.stats, replica.stats)
            bytes_by_day.append((stats[0].index_bytes + stats[0].row_bytes, stats[1].index_bytes + stats[1].row_bytes))
            files_by_day.append(len(list(tmp_path.iterdir())))

    assert gone == (days - 1) * epochs * new, "every id that is older than a day, and no other"
    day_3, *later = np.array(bytes_by_day[2:])
    assert all((abs(day / day_3 - 1) <= 0.05).all() for day in later), bytes_by_day
    assert max(files_by_day) <= 4 * (2 * 10 + 4), "two bases, the deltas after the older one, dense and trainer's files"
