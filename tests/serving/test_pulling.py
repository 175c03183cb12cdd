"""When a replica pulls, and that a pull which fails leaves what is served as it was."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from rich.console import Console

from minutely.services.serve import make_replica_service
from minutely.services.versions import release, roll_back
from paramserver.delta_log import DeltaLog
from paramserver.manifest import encode_checked, read_manifest
from paramserver.table import Table
from serving.service import ReplicaService
from streaming.clock import EventClock
from tests.clocks import SetClock
from tests.serving.publishing import DAY, Publisher, draw, make_pipeline

MINUTE = 60_000
COUNT = 50


class World:
    """A trainer, and a replica whose clock we set."""

    def __init__(self, folder: Path, keep_deltas: int = 100, **sections: Any) -> None:
        self.folder = folder
        self.clock = EventClock(DAY)
        self.publisher = Publisher(make_pipeline(**sections), folder, keep_deltas=keep_deltas)
        self.service: ReplicaService = make_replica_service(
            self.publisher.pipeline, self.publisher.files, self.clock, "replica"
        )
        self.puller = self.service.puller
        self.puller._random = Random(5)
        self.columns = draw(np.random.default_rng(1), COUNT)

    def at(self, minutes: float) -> None:
        """Let time pass, the puller's thread doing its work."""
        end = DAY + round(minutes * MINUTE)
        while self.clock.now_ms() < end:
            self.clock.move_to(min(end, self.clock.now_ms() + max(1, self.puller.wait_ms())))
            self.puller.step()

    @property
    def version(self) -> int:
        return self.service.replica.sparse_version

    def scores(self) -> bytes:
        return self.service.replica.score(self.columns, COUNT).tobytes()

    def trained(self) -> bytes:
        return self.publisher.scores(self.columns, COUNT).tobytes()


def test_a_version_is_there_soon_after_it_was_published(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.at(0.5)
    assert not world.service.ready()[0]
    waits = []
    for minute in range(1, 12):
        world.at(minute + 0.3)
        world.publisher.next(world.clock.now_ms(), dense=minute == 1)
        published = world.clock.now_ms()
        while world.version != minute:
            world.clock.move_to(world.clock.now_ms() + max(1, world.puller.wait_ms()))
            world.puller.step()
        waits.append(world.clock.now_ms() - published)
        assert world.service.ready()[0]
    assert max(waits) < 3000, "not a whole interval later"
    assert len(set(waits)) > 5, "replicas do not come all at once"


def test_it_does_not_ask_without_end(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.publisher.next(world.clock.now_ms())
    looks = 0
    while world.clock.now_ms() < DAY + 10 * MINUTE:
        world.clock.move_to(world.clock.now_ms() + max(1, world.puller.wait_ms()))
        world.puller.step()
        looks += 1
    assert looks < 620, "once a second from when the next version was due"


def test_a_clock_that_is_set_back_does_not_keep_it_from_looking(tmp_path: Path) -> None:
    clock, publisher = SetClock(1000, DAY), Publisher(make_pipeline(), tmp_path)
    service = make_replica_service(publisher.pipeline, publisher.files, clock, "replica")
    for version in (1, 2):
        publisher.next(clock.now_ms())
        for _ in range(70):
            clock.elapsed += 1000
            service.puller.step()
        assert service.replica.sparse_version == version
        clock.ahead -= 60 * MINUTE


def _damage(world: World, pattern: str) -> tuple[Path, bytes]:
    (path,) = world.folder.glob(pattern)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :])
    return path, data


@pytest.mark.parametrize("pattern", ["000000000002.*rows.arrow", "manifest-000000000002.json"])
def test_a_damaged_delta_changes_nothing(tmp_path: Path, pattern: str) -> None:
    world = World(tmp_path)
    world.publisher.next(world.clock.now_ms())
    world.at(1)
    before = world.scores()
    world.publisher.next(world.clock.now_ms(), dense=False)
    path, whole = _damage(world, pattern)
    world.at(10)
    assert (world.version, world.scores()) == (1, before)
    assert 10 < world.puller.failures["damaged"] < 40, "tried again, ever more seldom"
    assert path.name in str(world.puller.problem)
    assert world.service.ready()[0], "the version that it has is whole"
    path.write_bytes(whole)
    world.at(11)
    assert world.version == 2 and world.puller.problem is None
    assert world.trained() != before


@pytest.mark.parametrize("pattern", ["{:012}.*rows.arrow", "manifest-{:012}.json"])
@pytest.mark.parametrize("served", [0, 1])
def test_versions_that_come_together_with_a_damaged_one_are_served(tmp_path: Path, pattern: str, served: int) -> None:
    """With their dense weights: by a replica that starts now, and by one that was there before."""
    world = World(tmp_path)
    for minute in range(served + 1):
        world.at(minute)
        world.publisher.next(world.clock.now_ms(), dense=True)
    trained = world.trained()
    world.publisher.next(world.clock.now_ms(), dense=False)
    _damage(world, pattern.format(served + 2))
    world.at(served + 2)
    assert (world.version, world.service.replica.dense_version) == (served + 1, served + 1)
    assert world.scores() == trained and world.service.ready()[0]
    assert world.puller.failures["damaged"] > 0


def test_damaged_dense_weights_are_tried_again(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.publisher.next(world.clock.now_ms())
    world.at(1)
    world.clock.move_to(2 * DAY)
    world.publisher.next(world.clock.now_ms())
    path, whole = _damage(world, "000000000002.*dense.safetensors")
    for _ in range(5):
        world.clock.move_to(world.clock.now_ms() + max(1, world.puller.wait_ms()))
        world.puller.step()
    assert (world.version, world.service.replica.dense_version) == (2, 1)
    assert world.puller.failures["damaged"] == 5
    path.write_bytes(whole)
    world.clock.move_to(world.clock.now_ms() + MINUTE)
    world.puller.step()
    assert world.service.replica.dense_version == 2
    assert world.scores() == world.trained()


def _rewrite(world: World, version: int, **changes: Any) -> None:
    """Have a manifest, with a checksum that is right, say something else."""
    manifest = read_manifest(world.publisher.files, version, base=False)
    shard = replace(manifest.shards[0], **changes)
    (world.folder / manifest.name).write_bytes(encode_checked(replace(manifest, shards=[shard])))


@pytest.mark.parametrize("rows", [2**31 - 1, 2**29])
def test_more_rows_than_its_files_can_hold_are_refused(tmp_path: Path, rows: int) -> None:
    """Room was made for them before anything was looked at, and what that raised went past all that tells of it."""
    world = World(tmp_path)
    world.publisher.next(world.clock.now_ms())
    _rewrite(world, 1, by_table={"item": rows})
    world.at(1)
    assert f"{rows} rows in " in str(world.puller.problem) and world.puller.failures["damaged"] > 1
    assert world.service.ready() == (False, world.puller.problem)


class _SmallMachine(Table):
    """Has no room for what is announced to it."""

    def reserve(self, rows: int) -> None:
        super().reserve(2**31 - 1)


def test_a_replica_without_room_for_the_rows_of_another_model_goes_on_with_those_it_has(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.publisher.next(world.clock.now_ms())
    world.at(1)
    before = world.scores()
    world.publisher.next(world.clock.now_ms())
    roll_back(Console(file=StringIO()), str(tmp_path), 2, training=False)
    for table in world.service.replica.tables.values():
        table.__class__ = _SmallMachine
    world.at(5)
    problem = str(world.puller.problem)
    assert "NoRoomError: table" in problem and "set tables.max_rows" in problem
    assert 1 < world.puller.failures["failed"] < 30, "tried again, ever more seldom"
    assert world.service.ready()[0] and world.version == 2 and world.scores() != before
    for table in world.service.replica.tables.values():
        table.__class__ = Table
    world.at(6)
    assert world.version == 3 and world.puller.problem is None


def test_versions_of_another_config_are_refused(tmp_path: Path) -> None:
    other = Publisher(make_pipeline(tables={"default_row": "learned"}), tmp_path)
    other.next(DAY)
    world = World(tmp_path)
    world.at(1)
    assert world.version == 0
    assert "another config" in str(world.puller.problem)
    assert world.service.ready() == (False, world.puller.problem)


@pytest.mark.parametrize("keep_deltas", [3, 100])
def test_pins_lead_anywhere_and_back(tmp_path: Path, keep_deltas: int) -> None:
    """Also to before the newest base; rows and dense weights become those of the version, ids that came later are gone."""
    world = World(tmp_path, keep_deltas)
    scores = {}
    for version in range(1, 9):
        world.publisher.next(world.clock.now_ms())
        world.at(version)
        assert world.version == version
        world.puller.pin(version)  # brings the dense weights, which are not due
        world.service.replica.pull(until=version)
        scores[version] = world.scores()
        assert scores[version] == world.trained()
        world.puller.unpin()
    rows = sum(map(len, world.service.replica.tables.values()))
    for wanted in (6, 8, 5, 7):
        world.puller.pin(world.puller.find(wanted))
        world.puller.step()
        assert (world.version, world.puller.pinned) == (wanted, (wanted, "replica"))
        assert world.scores() == scores[wanted], wanted
        world.publisher.train(world.clock.now_ms())
        assert world.service.ready()[0]
    assert sum(map(len, world.service.replica.tables.values())) <= rows
    world.publisher.publish(world.clock.now_ms())
    world.at(20)
    assert world.version == 7, "pinned"
    world.puller.unpin()
    world.puller.step()
    assert world.version == 9
    with pytest.raises(LookupError, match=r"version 77 is not there; allowed: \d to 9"):
        world.puller.find(77)


def test_a_replicas_own_pin_wins_over_a_rollbacks(tmp_path: Path) -> None:
    world = World(tmp_path)
    for version in (1, 2, 3):
        world.publisher.next(world.clock.now_ms())
        world.at(version)
    console = Console(file=StringIO())
    roll_back(console, str(tmp_path), 1, training=False)
    world.at(5)
    assert (world.version, world.puller.pinned) == (4, (4, "rollback")), "version 4 holds what 1 held"
    world.publisher.log = DeltaLog.resume(world.publisher.files, world.publisher.pipeline.form(), 100)
    world.publisher.next(world.clock.now_ms())
    world.at(7)
    assert world.version == 4, "a rollback holds all replicas"
    assert (world.service.status().pinned, world.service.status().pinned_by) == (4, "rollback")
    world.puller.pin(2)
    world.puller.step()
    assert (world.version, world.puller.pinned) == (2, (2, "replica"))
    assert (world.service.status().pinned, world.service.status().pinned_by) == (2, "replica")
    world.puller.unpin()
    world.puller.step()
    assert (world.version, world.puller.pinned) == (4, (4, "rollback")), "back to where the others are"
    release(console, str(tmp_path))
    world.at(9)
    assert (world.version, world.puller.pinned) == (5, None)
    assert world.service.status().pinned_by is None


def test_a_pin_before_the_first_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match="none is published"):
        World(tmp_path).puller.find(None)


def test_another_model_takes_over_whole(tmp_path: Path) -> None:
    """Between its rows and its weights nothing is scored."""
    world = World(tmp_path)
    world.publisher.next(world.clock.now_ms())
    world.at(1)
    replica = world.service.replica
    other = Publisher(world.publisher.pipeline, tmp_path / "other", seed=99)
    other.train(world.clock.now_ms(), 500)
    from paramserver.delta_log import Cut

    cut = Cut(world.clock.now_ms(), world.clock.now_ms(), {}, other.trainer.dense_weights())
    world.publisher.log.take_over({name: table.export() for name, table in other.tables.items()}, cut)
    seen = []
    upsert = type(next(iter(replica.tables.values()))).upsert

    def watching(table: object, ids: object, rows: object) -> None:
        seen.append(replica.whole)
        assert world.service.ready() == (True, "another model takes over: requests wait for it")
        upsert(table, ids, rows)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(next(iter(replica.tables.values()))), "upsert", watching)
        world.at(3)
    assert seen and not any(seen)
    assert replica.whole and (replica.sparse_version, replica.dense_version) == (2, 2)
    assert world.scores() == other.scores(world.columns, COUNT).tobytes()


def test_rows_that_drifted_are_told_of_and_loaded_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Within an hour; and what another start, or the log itself, has wrong is no endless loading."""
    world = World(tmp_path)
    for minute in range(1, 4):
        world.publisher.next(world.clock.now_ms(), dense=minute == 1)
        world.at(minute)
    served = world.scores()
    assert world.version == 3
    name, table = next(iter(world.service.replica.tables.items()))
    table.erase(table.ids()[:5])
    world.at(55)
    assert not world.puller.drifted
    world.at(65)
    assert world.puller.drifted == {name: 1}
    assert f"table {name}: its rows differ from the checksum of version 3; loading all of them again" in caplog.text
    assert world.service.ready()[0] and world.version == 3
    assert world.scores() == served
    world.at(130)
    assert world.puller.drifted == {name: 1}, "and they stay so"

    upsert, loads = table.upsert, 0

    def wrong(ids: object, embeddings: object) -> None:
        nonlocal loads
        loads += 1
        upsert(ids, embeddings)
        upsert(np.array([1 << 50]), np.zeros((1, table.dim), np.float32))

    table.upsert = wrong
    table.erase(table.ids()[:5])
    world.at(200)
    assert world.puller.drifted == {name: 3}
    assert "so do those in the delta log" in caplog.text
    assert loads == 3, "of three versions, once"
    assert world.service.ready()[0], "what the log holds is served"


@pytest.mark.parametrize("by", ["rollback", "replica"])
def test_a_replica_that_is_held_on_purpose_is_ready_and_says_so(tmp_path: Path, by: str) -> None:
    """However old its version becomes; when it is let go, it is again ready only once it has what is new."""
    world = World(tmp_path, serve={"stale_is_unready": True})
    for version in (1, 2):
        world.publisher.next(world.clock.now_ms())
        world.at(version)
    assert world.service.ready() == (True, "fresh")
    if by == "rollback":
        roll_back(Console(file=StringIO()), str(tmp_path), 1, training=False)
    else:
        world.puller.pin(1)
    world.at(3)
    version = world.version
    assert world.service.ready() == (True, f"held at version {version} by {by}: fresh")
    world.at(60)
    assert world.version == version
    assert world.service.ready() == (True, f"held at version {version} by {by}: stale")
    world.publisher.log = DeltaLog.resume(world.publisher.files, world.publisher.pipeline.form(), 100)
    world.publisher.next(world.clock.now_ms())
    if by == "rollback":
        release(Console(file=StringIO()), str(tmp_path))
    else:
        world.puller.unpin()
    assert world.service.ready()[0], "until the next pull"
    world.at(61)
    assert world.version == version + 1 if by == "rollback" else 3
    assert world.service.ready() == (True, "fresh")
    world.at(120)
    assert world.service.ready()[0] is False, "nothing holds it any more, and nothing new comes"
