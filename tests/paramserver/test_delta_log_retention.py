"""What a delta log keeps and deletes, beside rollbacks and names that strangers left, and its last number."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from basis.problems import BadFile
from paramserver import manifest as manifests
from paramserver.delta_log import Cut, DeltaLog
from paramserver.files import Files
from paramserver.follower import Follower
from paramserver.history import all_manifests, damage_of, newest
from paramserver.manifest import Manifest, TakenOverError
from tests.paramserver.published import (
    BreakableFiles,
    MemoryFiles,
    State,
    Writer,
    published,
    replica_tables,
    state_of,
)


def referenced(files: MemoryFiles) -> Iterator[str]:
    for base in (False, True):
        for version in manifests.versions(files, base=base):
            manifest = manifests.read_manifest(files, version, base=base)
            yield manifests.manifest_name(version, base=base)
            for shard in manifest.shards:
                yield from (shard.rows.name, shard.state.name)
            if manifest.dense is not None:
                yield manifest.dense.file.name
            if manifest.form is not None:
                yield manifest.form.name


@pytest.mark.parametrize("keep", [1, 3, 8])
def test_old_versions_go_and_nothing_that_is_needed(keep: int) -> None:
    files = MemoryFiles()
    writer = Writer(files, keep, seed=5)
    for _ in range(40):
        writer.publish()
        bases, deltas = (manifests.versions(files, base=base) for base in (True, False))
        assert len(bases) <= 2
        assert len(deltas) <= 2 * keep
        second = bases[-2] if len(bases) == 2 else 0
        assert deltas == list(range(second + 1, writer.log.version + 1)), "who is a little behind need not start over"
        trainer_states = {name for name in files.names() if ".trainer." in name}
        assert len(trainer_states) <= 4, "the newest two, and those of the bases"
        assert set(referenced(files)) == set(files.names()) - trainer_states
    assert manifests.versions(files, base=True) == [40 // keep * keep - keep, 40 // keep * keep]


def test_the_newest_two_trainer_states_stay_and_those_of_bases() -> None:
    files = MemoryFiles()
    writer = Writer(files, 2)
    for at in range(7):
        writer.learn()
        newest = writer.log.publish(writer.seal(), Cut(0, 0, {}, trainer=b"%d" % at))
    assert newest.trainer is not None
    assert newest.trainer.read(files) == b"6"
    assert sorted(files.content[name] for name in files.names() if ".trainer." in name) == [b"3", b"5", b"6"]


class Stepping:
    """Files that let somebody else do something ahead of one of their operations."""

    def __init__(self, store: MemoryFiles, at: int, other: Callable[[], object]) -> None:
        self.files = BreakableFiles(store)
        self.left = at
        self._other = other
        self.files.before = self._before

    def _before(self, operation: str, name: str) -> None:
        self.left -= 1
        if self.left == 0:
            self._other()


def roll_back(files: Files, version: int, *, training: bool) -> Manifest | None:
    """As `minutely rollback` does; None where it was refused."""
    for _ in range(3):
        try:
            return DeltaLog.resume(files, "form", 1 << 30).go_back(version, 0, training=training)
        except TakenOverError:
            continue
        except (BadFile, FileNotFoundError):
            return None
    raise AssertionError("taken over three times")


def log_with_states(versions: int) -> tuple[MemoryFiles, Writer]:
    store = MemoryFiles()
    writer = Writer(store, 3, seed=4)
    for _ in range(versions):
        publish_with_state(writer)
    return store, writer


def publish_with_state(writer: Writer) -> None:
    writer.learn()
    epoch = writer.seal()
    writer.history[writer.log.version + 1] = state_of(writer.tables)
    state = b"trainer %d" % writer.log.version
    writer.log.publish(epoch, Cut(writer.now_ms, writer.now_ms, {}, dense=state, trainer=state))


def check_nothing_is_lost(store: MemoryFiles, rolled: Manifest | None, history: dict[int, State], back_to: int) -> None:
    for item in all_manifests(store):
        assert isinstance(item, Manifest)
        assert damage_of(store, item) == []
    if rolled is None:
        return
    tables = replica_tables()
    Follower(store, tables).load(rolled.version)
    assert state_of(tables) == history[back_to]
    if rolled.trainer is not None:
        rolled.trainer.read(store)


@pytest.mark.parametrize("training", [False, True])
def test_a_rollback_beside_a_publication_that_folds_and_deletes_loses_nothing(training: bool) -> None:
    """It comes ahead of every operation of the trainer's, to every version that is there."""
    rolled_back = refused = 0
    for back_to in (3, 5, 6, 7, 8):
        for at in range(1, 60):
            store, writer = log_with_states(8)
            rolled: list[Manifest | None] = []

            def other(store: MemoryFiles = store, rolled: list[Manifest | None] = rolled, to: int = back_to) -> None:
                rolled.append(roll_back(store, to, training=training))

            stepping = Stepping(store, at, other)
            writer.log._files = stepping.files
            for _ in range(2):  # the fold is at version 9
                with suppress(TakenOverError):
                    publish_with_state(writer)
            check_nothing_is_lost(store, rolled[0] if rolled else None, writer.history, back_to)
            rolled_back += bool(rolled and rolled[0])
            refused += bool(rolled and not rolled[0])
            if stepping.left > 0:
                break
    assert rolled_back > 50 and refused > 50


@pytest.mark.parametrize("training", [False, True])
def test_a_publication_that_folds_and_deletes_beside_a_rollback_loses_nothing(training: bool) -> None:
    """The trainer publishes twice ahead of every operation of the rollback's."""
    rolled_back = 0
    for back_to in (3, 5, 6, 7, 8):
        for at in range(1, 60):
            store, writer = log_with_states(8)

            def publish(writer: Writer = writer) -> None:
                with suppress(TakenOverError):
                    publish_with_state(writer)
                    publish_with_state(writer)

            stepping = Stepping(store, at, publish)
            rolled = roll_back(stepping.files, back_to, training=training)
            check_nothing_is_lost(store, rolled, writer.history, back_to)
            rolled_back += rolled is not None
            if stepping.left > 0:
                break
    assert rolled_back > 5


@pytest.mark.parametrize("base", [False, True])
def test_a_stray_name_far_above_the_versions_is_none(base: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Neither writer nor replica goes by it: one would publish what nobody finds, the other begin anew at each pull."""
    files, writer = published(5, keep=3)
    follower = Follower(files, tables := replica_tables())
    follower.pull()
    name = manifests.manifest_name(manifests.VERSIONS - 1, base=base)
    files.content[name] = b"x"
    writer.log = DeltaLog.resume(files, "form", 3)
    assert f"{name}: unreadable" in caplog.text
    applied: list[int] = []
    follower._applied = lambda manifest: applied.append(manifest.version)
    follower.pull()
    assert applied == [] and newest(files).version == 5
    assert writer.publish().version == 6
    follower.pull()
    assert applied == [6]
    fresh = Follower(files, fresh_tables := replica_tables())
    fresh.pull()
    assert fresh.version == 6
    assert state_of(fresh_tables) == state_of(tables) == writer.history[6]
    assert [str(item).partition(":")[0] for item in all_manifests(files) if isinstance(item, BadFile)] == [name]


def test_after_damaged_manifests_of_the_newest_versions_come_the_next_numbers() -> None:
    """Also where an old version is pinned, far below them."""
    files, writer = published(2)
    writer.log.version = 5_000_000
    writer.log.take_over({name: table.export() for name, table in writer.tables.items()}, Cut(0, 0, {}, b"dense"))
    writer.publish()
    name = manifests.manifest_name(5_000_002, base=False)
    files.content[name] = files.content[name][:-1]
    log = DeltaLog.resume(files, "form", 1000)
    assert log.newest is not None and (log.newest.version, log.version) == (5_000_001, 5_000_002)


def test_there_is_no_version_after_the_last() -> None:
    """Thirteen digits are no version's."""
    files, writer = published(1)
    writer.log.version = manifests.VERSIONS - 2
    rows = {name: table.export() for name, table in writer.tables.items()}
    last = writer.log.take_over(rows, Cut(0, 0, {}, b"dense"))
    before = set(files.content)
    refused = f"{last.name}: the last version that there can be"
    with pytest.raises(BadFile, match=refused):
        writer.log.take_over(rows, Cut(0, 0, {}, b"dense"))
    with pytest.raises(BadFile, match=refused):
        writer.log.go_back(1, 0, training=False)
    with pytest.raises(BadFile, match=refused):
        DeltaLog.resume(files, "form", 4)
    assert set(files.content) == before
