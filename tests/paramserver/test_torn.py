"""A follower that fails while its rows change: it has one version, whole, or says that it has none, and loads again. In place."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from basis.problems import BadFile
from paramserver import compaction, follower, manifest
from paramserver.follower import Follower
from paramserver.table import Table
from tests.commands import ROOT
from tests.paramserver.published import (
    DIMS,
    BreakableFiles,
    MemoryFiles,
    Writer,
    flipped,
    published,
    replica_tables,
    state_of,
)

Rows: TypeAlias = dict[tuple[str, int], bytes]


class Failing(Table):
    """A table that asks ``before`` ahead of each step that changes it, which may raise."""

    before: Callable[[], None]

    def erase(self, ids: Any) -> int:
        self.before()
        return super().erase(ids)

    def upsert(self, ids: Any, embeddings: Any) -> None:
        half = len(ids) // 2
        self.before()
        super().upsert(ids[:half], embeddings[:half])
        self.before()
        super().upsert(ids[half:], embeddings[half:])

    def reserve(self, rows: int) -> None:
        self.before()
        super().reserve(rows)

    def set_default_row(self, embedding: Any, state: Any = None) -> None:
        self.before()
        super().set_default_row(embedding, state)


def failing_tables(before: Callable[[], None]) -> dict[str, Table]:
    tables = {name: Failing(dim, name=name, row_format="float32") for name, dim in DIMS.items()}
    for table in tables.values():
        table.before = before
    return dict(tables)


def parted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole versions are in parts, and are read a part at a time."""
    monkeypatch.setattr(compaction, "_PART_BYTES", 150)
    monkeypatch.setattr(follower, "_HELD_BYTES", 0)


@pytest.mark.parametrize("other_model", [False, True])
@pytest.mark.parametrize("step", range(1, 24))
def test_what_fails_between_two_steps_leaves_a_version_or_none(
    step: int, other_model: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ordinary delta, and all rows of another model."""
    parted(monkeypatch)
    store = MemoryFiles()
    writer = Writer(store, 100, seed=step)
    for _ in range(4):
        writer.publish()
    left = 0

    def before() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise RuntimeError("no memory")

    tables = failing_tables(before)
    follower = Follower(store, tables)
    follower.pull()
    before_it = state_of(tables)
    if other_model:
        writer = writer.taken_over(store, 100)
    else:
        writer.publish()
    left = step
    failed = False
    try:
        follower.pull()
    except RuntimeError:
        failed = True
        assert follower.applying is None
        if follower.version:  # room for another model's rows is made before the old ones go
            assert other_model and follower.version == 4 and follower.manifest is not None
            assert state_of(tables) == before_it
        else:
            assert follower.manifest is None
    left = 0
    if not failed:
        assert state_of(tables) == writer.history[5]
    follower.pull()
    assert follower.version == 5
    assert state_of(tables) == writer.history[5], "it loads again, and nothing of before stays"


def test_a_shard_that_cannot_be_read_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    parted(monkeypatch)
    files = BreakableFiles(MemoryFiles())
    writer = Writer(files, 100, seed=2)
    for _ in range(6):
        writer.publish()
    tables = replica_tables()
    follower = Follower(files, tables)
    follower.pull()
    writer = writer.taken_over(files, 100)
    whole = manifest.read_manifest(files, 7, base=False)
    assert len(whole.shards) > 1
    for shard in whole.shards:
        files.damage = lambda name, data, bad=shard.rows.name: flipped(data, 50) if name == bad else data
        with pytest.raises(BadFile, match=shard.rows.name):
            follower.pull()
        assert follower.version == 6
        assert state_of(tables) == writer.history[6]
    files.damage = lambda name, data: data
    follower.pull()
    assert state_of(tables) == writer.history[7]


GROWTH = """
import sys
from pathlib import Path
import numpy as np
from paramserver.delta_log import Cut, DeltaLog
from paramserver.files import LocalFiles
from paramserver.follower import Follower
from paramserver.history import clear
from paramserver.table import Table, Uniform

ROWS, DIM = 1_000_000, 24

def kilobytes(name):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])

def publish(folder, start):
    table = Table(DIM, initializer=Uniform(-1, 1), seed=start)
    log = DeltaLog.resume(LocalFiles(folder, durable=False), "form", 100)
    table.lookup_or_insert(np.arange(start, start + ROWS), 0)
    log.take_over({"t": table.seal()}, Cut(start, start, {}, b"dense"))

def growth(work):
    Path("/proc/self/clear_refs").write_text("5")
    before = kilobytes("VmRSS")
    work()
    return (kilobytes("VmHWM") - before) * 1024 / (ROWS * DIM * 4)

folder = Path(sys.argv[2])
if sys.argv[1] == "publish":
    publish(folder, int(sys.argv[3]))
else:
    if sys.argv[1] == "clear":
        table = Table(DIM, initializer=Uniform(-1, 1))
        table.lookup_or_insert(np.arange(ROWS), 0)
        table.seal()
        print(growth(lambda: clear({"t": table})))
    else:
        table = Table(DIM, row_format="float32")
        follower = Follower(LocalFiles(folder, durable=False), {"t": table})
        follower.load(1)
        print(growth(lambda: follower.load(2)))
"""


def script(*arguments: object) -> str:
    # What is large goes back when it is freed; by itself, malloc keeps a shard or two, or none, by what came before.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "131072"}
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT, check=False,
        env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("start", [0, 500_000])
def test_another_version_comes_without_a_second_copy_of_the_rows(tmp_path: Path, start: int) -> None:
    """92 MiB of rows, of which all or half have the ids of those that are there. A shard
    and the ids are .8 of them; without the second reading it would be 1.3."""
    script("publish", tmp_path, 0)
    script("publish", tmp_path, start)
    growth = float(script("replace", tmp_path))
    assert growth < 0.9, f"{growth:.2f} of the rows"


def test_rows_are_taken_out_without_a_copy_of_them(tmp_path: Path) -> None:
    growth = float(script("clear", tmp_path))
    assert growth < 0.3, f"{growth:.2f} of the rows"


@pytest.mark.parametrize("held_bytes", [0, 16 << 20])
@pytest.mark.parametrize("version", [1, 5, 9])
def test_on_the_way_back_no_row_is_of_another_version(
    version: int, held_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replicas answer meanwhile: the way led through every version from the base on, each with its rows of then."""
    files, writer = published(12)
    monkeypatch.setattr(follower, "_HELD_BYTES", held_bytes)
    aim = replica_tables("float32")
    Follower(files, aim).load(version)
    steps: list[Rows] = []
    tables = failing_tables(lambda: steps.append(_rows(tables)))
    back = Follower(files, tables)
    back.pull()
    assert state_of(tables) == state_of(writer.tables)
    begun, steps[:] = _rows(tables), []
    back.pull(until=version)
    wanted = _rows(aim)
    assert _rows(tables) == wanted and state_of(tables) == state_of(aim)
    assert back.version == version and back.drifted() == []
    assert len(steps) > 3
    for rows in steps:
        for at, row in rows.items():
            assert row in (begun.get(at), wanted.get(at)), at


def _rows(tables: dict[str, Table]) -> Rows:
    return {
        (name, number): row.tobytes()
        for name, table in tables.items()
        for number, row in zip(table.ids().tolist(), table.lookup(table.ids()), strict=True)
    }
