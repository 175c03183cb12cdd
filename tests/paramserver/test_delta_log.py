"""The delta log: what is published reads back as what was sealed, through drops, races, restarts, damage and compaction."""

from __future__ import annotations

import random
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from basis.problems import BadFile
from paramserver import manifest as manifests
from paramserver.delta_log import Cut, DeltaLog
from paramserver.follower import Follower
from paramserver.history import path_to, read_shard, read_version, restore
from paramserver.manifest import TakenOverError
from paramserver.precision import Precision
from paramserver.table import Rows, Table
from tests.paramserver.published import (
    COLUMNS,
    DIMS,
    BreakableFiles,
    MemoryFiles,
    Writer,
    calm,
    published,
    random_follower,
    replica_tables,
    state_of,
    trained_table,
)

OPERATIONS = [
    "publish",
    "publish",
    "publish",
    "resume",
    "take over",
    "fold",
    "pull",
    "repeat",
    "drop",
    "error",
    "hide",
    "cut off",
    "race",
    "restart",
]


@settings(max_examples=150)
@given(st.lists(st.sampled_from(OPERATIONS), max_size=25), st.integers(1, 6), st.integers(0, 2**32))
def test_a_follower_has_the_rows_of_its_version_whatever_happens(operations: list[str], keep: int, seed: int) -> None:
    rng = random.Random(seed)
    store = MemoryFiles()
    writer = Writer(store, keep, seed)
    broken = BreakableFiles(store)
    follower, tables = random_follower(broken, rng)
    for operation in [*operations, "publish", "pull"]:
        if operation == "publish":
            writer.publish()
            continue
        if operation == "fold":
            writer.log.fold()
            continue
        if operation == "resume":
            writer.log = DeltaLog.resume(store, "form", keep)
            continue
        if operation == "take over":
            writer = writer.taken_over(store, keep)
            continue
        if operation == "restart":
            follower, tables = random_follower(broken, rng)
            continue
        break_for_one_pull(broken, operation, writer, rng)
        before = follower.version
        try:
            follower.pull()
            failed = False
        except (OSError, BadFile):
            failed = True
        calm(broken)
        assert state_of(tables) == writer.history[follower.version], "what is there is one version, whole"
        assert follower.drifted() == []
        assert follower.version >= before
        if operation in ("pull", "repeat"):
            assert not failed
            assert follower.version == writer.log.version
    assert follower.manifest is not None
    assert follower.manifest.version == writer.log.version
    fresh = Follower(store, fresh_tables := replica_tables())
    fresh.pull()
    assert state_of(fresh_tables) == state_of(tables) == state_of(writer.tables)
    assert writer.log.newest is not None
    restored = Writer(MemoryFiles(), keep)
    for name, delta in read_version(store, writer.log.newest).items():
        restored.tables[name].restore(delta.rows)
    for name, table in writer.tables.items():
        ours, theirs = restored.tables[name].export(), table.export()
        for column in ("ids", "embeddings", "state", "last_seen_seconds", "counts"):
            assert getattr(ours, column).tobytes() == getattr(theirs, column).tobytes()


def break_for_one_pull(files: BreakableFiles, operation: str, writer: Writer, rng: random.Random) -> None:
    """Make the next pull meet trouble at one of its first operations, once."""
    left = rng.randint(0, 6)
    error = {"drop": FileNotFoundError("gone"), "error": OSError("the network")}.get(operation)

    def before(kind: str, name: str) -> None:
        nonlocal left
        left -= 1
        if left == 0 and error is not None:
            raise error
        if left == 0 and operation == "race":
            for _ in range(rng.randint(1, 8)):
                writer.publish()

    files.before = before
    if operation == "hide":
        files.hidden = {name for name in files.names() if rng.random() < 0.3}
    if operation == "cut off":
        files.damage = lambda name, data: data[: len(data) // 2] if rng.random() < 0.3 else data


@settings(max_examples=80)
@given(st.integers(1, 4), st.integers(0, 2**32))
def test_a_version_is_there_whole_or_not_at_all_when_writing_fails(keep: int, seed: int) -> None:
    """The disk refuses an operation in the middle of a publication; readers see no trace, and the writer tries again."""
    rng = random.Random(seed)
    store = MemoryFiles()
    broken = BreakableFiles(store)
    writer = Writer(broken, keep, seed)
    tables = replica_tables()
    follower = Follower(store, tables)
    for _ in range(10):
        writer.learn()
        epoch, rows = writer.seal(), state_of(writer.tables)
        for attempt in range(10):
            writer.history[writer.log.version + 1] = rows
            fails_at = rng.randint(0, 8) if attempt < 9 else 0

            def before(kind: str, name: str) -> None:
                nonlocal fails_at
                fails_at -= 1
                if fails_at == 0 and kind != "read":
                    raise OSError("the disk is full")

            broken.before = before
            try:
                writer.log.publish(epoch, Cut(0, 0, {}))
                break
            except OSError:
                follower.pull()
                assert state_of(tables) == writer.history[follower.version]
        else:
            pytest.fail("twenty attempts in a row failed")
        calm(broken)
        follower.pull()
        assert state_of(tables) == rows


def test_versions_name_their_parent_offsets_and_weights() -> None:
    files = MemoryFiles()
    writer = Writer(files, 100)
    writer.learn()
    first = writer.log.publish(writer.seal(), Cut(500, 1000, {"examples/0": 7}, dense=b"weights", trainer=b"state"))
    second = writer.log.publish(writer.seal(), Cut(600, 2000, {"examples/0": 9}))
    assert [first.version, first.parent, second.version, second.parent] == [1, 0, 2, 1]
    assert manifests.read_manifest(files, 2, base=False) == second
    assert writer.log.newest == second
    assert (second.watermark, second.published_at, second.offsets) == (600, 2000, {"examples/0": 9})
    assert second.dense == first.dense
    assert second.dense is not None
    assert (second.dense.version, second.dense.watermark, second.dense.file.read(files)) == (1, 500, b"weights")
    assert first.trainer is not None
    assert first.trainer.read(files) == b"state"
    assert second.trainer is None


def test_an_empty_epoch_is_a_version_too() -> None:
    files = MemoryFiles()
    writer = Writer(files, 100)
    for _ in range(3):
        writer.log.publish(writer.seal(), Cut(0, 0, {}))
    follower = Follower(files, replica_tables())
    manifest = follower.pull()
    assert manifest is not None
    assert manifest.version == 3


def test_rows_that_are_not_those_of_their_version_are_found() -> None:
    files, writer = published(6)
    follower = Follower(files, tables := replica_tables("float32"))
    follower.pull()
    assert follower.manifest is not None
    assert set(follower.manifest.checksums) == set(DIMS)
    ids = tables["user"].ids()
    good = tables["user"].lookup(ids)
    for at in range(len(ids)):
        bad = np.array(good[at : at + 1])
        bad[0, 1] = np.nextafter(bad[0, 1], np.float32(9))
        tables["user"].upsert(ids[at : at + 1], bad)
        assert follower.drifted() == ["user"], "a bit of a value"
        tables["user"].erase(ids[at : at + 1])
        assert follower.drifted() == ["user"], "a row that is missing"
        tables["user"].upsert(ids[at : at + 1], good[at : at + 1])
        assert follower.drifted() == []
    tables["item"].upsert(np.array([1 << 40]), np.zeros((1, DIMS["item"]), np.float32))
    assert follower.drifted() == ["item"], "a row too many"
    follower.forget()
    follower.pull()
    assert state_of(tables) == state_of(writer.tables)
    assert follower.drifted() == []


@pytest.mark.parametrize("recover", [False, True])
def test_checksums_go_on_after_a_restart_and_begin_anew_with_another_precision(recover: bool) -> None:
    files, writer = published(5, keep=3)
    writer.log = DeltaLog.resume(files, "form", 3)
    if recover:  # as `recover_newest` does, without another reading
        fresh = {name: trained_table(name, seed=8) for name in DIMS}
        restore(files, path_to(files, 5), fresh, taken=writer.log.begin_checksums(5).take)
    follower = Follower(files, replica_tables())
    for _ in range(3):
        writer.publish()
        assert writer.log.newest is not None and writer.log.newest.checksums
        follower.pull()
        assert follower.drifted() == []
    writer.log = DeltaLog.resume(files, "form", 3, precision="int8")
    assert writer.log.is_of_another_precision
    assert not writer.publish().checksums, "some rows are exact, and some are not"
    writer.log.take_over({name: table.export() for name, table in writer.tables.items()}, Cut(0, 0, {}, b"dense"))
    for _ in range(2):
        follower.pull()
        assert follower.manifest is not None
        assert (set(follower.manifest.checksums), follower.manifest.precision) == (set(DIMS), "int8")
        assert follower.drifted() == []
        writer.publish()


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
@pytest.mark.parametrize("other", ["float32", "int8"])
@pytest.mark.parametrize("what", ["go back", "fold"])
def test_who_repeats_a_version_keeps_its_precision(what: str, precision: Precision, other: Precision) -> None:
    """Whatever precision its own log has: an exact replica's rows have the checksums that the manifest repeats."""
    files = MemoryFiles()
    writer = Writer(files, 1000, seed=9)
    writer.log = DeltaLog(files, "form", 1000, precision=precision)
    for _ in range(4):
        writer.publish()
    log = DeltaLog.resume(files, "form", 1000, precision=other)
    manifest = log.go_back(3, 0, training=False) if what == "go back" else log.fold()
    assert manifest is not None and manifest.checksums and manifest.precision == precision
    follower = Follower(files, tables := replica_tables("float32"))
    follower.load(manifest.version)
    assert follower.drifted() == []
    assert sum(map(len, tables.values()))


def test_nothing_published_is_nothing_to_pull() -> None:
    follower = Follower(MemoryFiles(), replica_tables())
    assert follower.pull() is None
    assert follower.version == 0


def test_a_pull_that_outlasts_compaction_does_not_end_at_an_old_version() -> None:
    """What follows the version that it read first is gone when it looks for it."""
    files = BreakableFiles(MemoryFiles())
    writer = Writer(files, 2)
    writer.publish()

    def compact(operation: str, name: str) -> None:
        if (operation, name) == ("read", manifests.manifest_name(2, base=False)):
            files.before = lambda operation, name: None
            for _ in range(9):
                writer.publish()

    files.before = compact
    follower = Follower(files, tables := replica_tables())
    follower.pull()
    assert follower.version == 10
    assert state_of(tables) == writer.history[10]


def test_a_base_is_the_table_with_everything_that_recovery_needs() -> None:
    files = MemoryFiles()
    writer = Writer(files, 5, seed=3)
    published = [writer.publish() for _ in range(23)]
    versions = manifests.versions(files, base=True)
    base = manifests.read_manifest(files, versions[-1], base=True)
    assert base.version == 20
    assert base.is_base
    assert (base.offsets, base.watermark) == (published[19].offsets, published[19].watermark)
    writer.log.fold()
    newest = manifests.read_manifest(files, 23, base=True)
    for name, part in read_shard(files, newest.shards[0]).items():
        rows = writer.tables[name].export()
        assert not len(part.rows.expired)
        for column in COLUMNS:
            assert getattr(part.rows, column).tobytes() == getattr(rows, column).tobytes(), (name, column)
    assert writer.tables["item"].default_row()[0].any(), "the default row learned something"
    assert writer.log.fold() is None, "there is nothing new to fold"


@pytest.mark.parametrize("beside", [False, True])
def test_a_table_recovered_from_its_log_goes_on_to_the_same_bits(beside: bool) -> None:
    files = MemoryFiles()
    writer = Writer(files, 4, seed=8)
    for _ in range(10):
        writer.publish()
    recovered = {name: trained_table(name, seed=8) for name in DIMS}
    path = path_to(files, writer.log.version)
    assert path[0].is_base
    assert len(path) > 1, "from a base and the deltas after it"
    if beside:
        with ThreadPoolExecutor(1) as executor:
            restore(files, path, recovered, executor)
    else:
        restore(files, path, recovered)
    rng = np.random.default_rng(0)
    for name, table in writer.tables.items():
        known = table.export().ids
        gradients = rng.normal(size=(len(known) + 1, DIMS[name])).astype(np.float32)
        for one in (table, recovered[name]):
            one.apply(np.append(known, 10**9), gradients, writer.now_ms)  # the last id trains the default row
        for column in COLUMNS:
            ours, theirs = getattr(table.export(), column), getattr(recovered[name].export(), column)
            assert ours.tobytes() == theirs.tobytes(), (name, column)


class AtOnce(Executor):
    """Works as soon as it is told to."""

    def submit(self, work: Any, /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(work(*arguments, **named))
        except Exception as error:
            future.set_exception(error)
        return future


class Watched(Table):
    """A table that says ``put`` whenever rows are put into it."""

    told: list[str]

    def restore(self, rows: Rows) -> None:
        self.told.append("put")
        super().restore(rows)


def test_one_shard_is_read_ahead_and_what_is_damaged_ends_it() -> None:
    content = MemoryFiles()
    log, trained = DeltaLog(content, "form", 100), Table(2)
    for version in range(1, 5):
        trained.lookup_or_insert(np.arange(version * 10), 0)
        log.publish({"t": trained.seal()}, Cut(version, version, {}))
    path = path_to(content, 4)
    files, table = BreakableFiles(content), Watched(2)
    table.told = []
    files.before = lambda operation, name: table.told.append(operation) if "rows" in name else None
    restore(files, path, {"t": table}, AtOnce())
    assert table.told == ["read", "read", "put", "read", "put", "read", "put", "put"]
    assert table.export().ids.tolist() == list(range(40))

    files.damage = lambda name, data: data[:-1] if name == path[2].shards[0].state.name else data
    table = Watched(2)
    table.told = []
    with pytest.raises(BadFile, match=path[2].shards[0].state.name), ThreadPoolExecutor(1) as executor:
        restore(files, path, {"t": table}, executor)
    assert table.told.count("put") == 2, "what came before it"


def test_a_table_is_as_large_for_rows_that_are_announced_as_for_those_that_come() -> None:
    content = MemoryFiles()
    log, trained = DeltaLog(content, "form", 100), Table(2)
    trained.lookup_or_insert(np.arange(100_000), 0)
    log.publish({"t": trained.seal()}, Cut(1, 1, {}))
    for version in (2, 3):
        trained.lookup_or_insert(np.arange(20_000), 0)
        log.publish({"t": trained.seal()}, Cut(version, version, {}))
    path = path_to(content, 3)
    assert [manifest.shards[0].by_table for manifest in path] == [{"t": 100_000}, {"t": 20_000}, {"t": 20_000}]
    tables = Table(2), Table(2, row_format="float32")
    restore(content, path, {"t": tables[0]})
    Follower(content, {"t": tables[1]}).pull()
    for table in tables:
        assert table.stats.live == 100_000
        assert table.stats.index_bytes <= 100_000 * 16 / 0.75 * 1.06, "no growth after it"


def test_a_log_of_another_form_is_not_resumed() -> None:
    files, _ = published(2)
    with pytest.raises(BadFile, match="version 2: made by another config"):
        DeltaLog.resume(files, "another form", 4)


def test_a_publication_that_failed_after_its_last_step_may_be_tried_again() -> None:
    files, writer = published(1)
    manifest = writer.log.newest
    assert manifest is not None
    manifests.write_manifest(files, manifest)
    with pytest.raises(TakenOverError):
        manifests.write_manifest(files, msgspec.structs.replace(manifest, watermark=manifest.watermark + 1))
