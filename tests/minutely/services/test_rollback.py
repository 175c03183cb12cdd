"""`minutely rollback` that is killed between its steps: it has happened whole, or not at all."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from rich.console import Console

from basis.problems import BadFile
from minutely.services.versions import release, roll_back
from paramserver import history
from paramserver.delta_log import Cut, DeltaLog
from paramserver.follower import Follower
from paramserver.manifest import encode_checked, manifest_name, read_manifest
from paramserver.marks import read_pin, unpin
from tests.paramserver.published import BreakableFiles, MemoryFiles, Writer, replica_tables, state_of

QUIET = Console(quiet=True)
KEEP = 3


class KilledError(BaseException):
    """The process is gone."""


def learn_and_publish(writer: Writer, times: int) -> None:
    """As a trainer that was started again."""
    writer.log = DeltaLog.resume(writer.log._files, "form", KEEP)
    for _ in range(times):
        writer.learn()
        epoch = writer.seal()
        writer.history[writer.log.version + 1] = state_of(writer.tables)
        writer.log.publish(epoch, Cut(writer.now_ms, writer.now_ms, {}, dense=b"dense", trainer=b"trainer"))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("held", [False, True])
def test_a_rollback_that_is_killed_has_happened_or_has_not(
    training: bool, held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ahead of each of its operations; also where replicas are held by another one, and whatever a trainer publishes then."""
    happened = not_happened = 0
    left = 0

    def kill(operation: str, name: str) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise KilledError

    for at in range(1, 100):
        store = MemoryFiles()
        files = BreakableFiles(store)
        monkeypatch.setattr("minutely.services.versions.open_versions", lambda place, files=files: files)
        writer = Writer(store, KEEP, seed=4)
        learn_and_publish(writer, 8)
        before = 0
        if held:
            roll_back(QUIET, "place", 7, training=False)
            before = read_pin(store)
            assert before == 9
            writer.history[9] = writer.history[7]
            learn_and_publish(writer, 2)
        follower = Follower(store, tables := replica_tables())
        follower.pull()
        to = history.newest(store).trainable[-1]
        left, files.before = at, kill
        killed = False
        try:
            roll_back(QUIET, "place", to, training=training)
        except KilledError:
            killed = True
        files.before = lambda operation, name: None
        newest = history.newest(store)
        expected = before
        if newest.goes_back_to == to:
            happened += 1
            writer.history[newest.version] = writer.history[to]
            expected = 0 if training else newest.version
        else:
            not_happened += 1
        for _ in range(8):
            assert read_pin(store) == expected, at
            follower.pull()
            fresh = Follower(store, fresh_tables := replica_tables())
            fresh.pull()
            assert follower.version == fresh.version == (expected or history.newest(store).version), at
            assert state_of(tables) == state_of(fresh_tables) == writer.history[follower.version]
            learn_and_publish(writer, 1)
        release(QUIET, "place")
        follower.pull()
        assert (read_pin(store), follower.version) == (0, writer.log.version)
        if not killed:
            break
    assert not killed and not_happened > 5 and happened


def test_a_damaged_pin_is_removed_by_a_release(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody can pull or go back while it is there."""
    store = MemoryFiles()
    monkeypatch.setattr("minutely.services.versions.open_versions", lambda place: store)
    learn_and_publish(Writer(store, KEEP, seed=4), 4)
    roll_back(QUIET, "place", 3, training=False)
    store.content["pin.json"] = store.content["pin.json"][:-3]
    with pytest.raises(BadFile, match=r"pin\.json"):
        roll_back(QUIET, "place", 3, training=False)
    release(Console(), "place")
    assert "pin.json" in capsys.readouterr().out
    assert read_pin(store) == 0


def test_who_releases_while_a_rollback_is_at_work_releases_what_was_before() -> None:
    """The rollback said that replicas stay, and none did."""

    class ReleasedMeanwhile(MemoryFiles):
        def create(self, name: str, data: bytes) -> None:
            unpin(self)
            super().create(name, data)

    store = ReleasedMeanwhile()
    writer = Writer(store, KEEP, seed=4)
    learn_and_publish(writer, 8)
    log = DeltaLog.resume(store, "form", KEEP)
    assert log.go_back(7, 0, training=False).version == 9
    assert read_pin(store) == 9


def test_a_rollback_that_comes_while_another_ends_decides() -> None:
    class RolledBackMeanwhile(MemoryFiles):
        def create(self, name: str, data: bytes) -> None:
            super().create(name, data)
            if name == manifest_name(9, base=False):
                DeltaLog.resume(self, "form", KEEP).go_back(8, 0, training=False)

    store = RolledBackMeanwhile()
    learn_and_publish(Writer(store, KEEP, seed=4), 8)
    assert DeltaLog.resume(store, "form", KEEP).go_back(7, 0, training=False).version == 9
    assert read_pin(store) == 10


@pytest.mark.parametrize("value", [-1, 1 << 63, 100])
@pytest.mark.parametrize("what", ["lineage", "goes_back_to", "trains_from", "forgets"])
def test_versions_that_cannot_be_are_refused(what: str, value: int) -> None:
    store = MemoryFiles()
    learn_and_publish(Writer(store, KEEP, seed=4), 1)
    wrong = replace(read_manifest(store, 1, base=False), **{what: value})
    store.content[wrong.name] = encode_checked(wrong)
    with pytest.raises(BadFile, match=what):
        read_manifest(store, 1, base=False)
