"""A trainer whose files were damaged goes back to the last whole version and trains on from there, or says what is wrong."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from basis.problems import BadFile, GuardedError, NoRoomError
from paramserver import manifest as manifests
from paramserver.compaction import write_shard
from paramserver.delta import TableDelta
from paramserver.delta_log import DeltaLog
from paramserver.files import LocalFiles
from paramserver.manifest import Manifest, OtherFormat
from paramserver.marks import read_hold, unpin
from paramserver.table import Table
from streaming.clock import EventClock
from streaming.embedded_log import EmbeddedLog
from streaming.log import EXAMPLES
from streaming.records.unreadable_records import IN_A_ROW
from tests.trainer.test_retrain import FORMAT, LABELS, SETTINGS, make_replica, make_trainer, records
from trainer.guards import Guard
from trainer.online import OnlineTrainer
from trainer.settings import GuardSettings, TrainSettings

KEEP = 4


class Place:
    """A log and versions in a folder, and the trainers that work there one after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "deltas"
        self.log = EmbeddedLog(folder / "log", durable=False)
        self.files = LocalFiles(self.folder, durable=True)
        self.clock = EventClock(1)
        self.appended = 0

    def start(
        self,
        *,
        resume: bool = False,
        pass_over: dict[int, list[range]] | None = None,
        settings: TrainSettings = SETTINGS,
        files: LocalFiles | None = None,
    ) -> OnlineTrainer:
        files = files or self.files
        deltas = DeltaLog.resume(files, "form", KEEP)
        return OnlineTrainer(
            make_trainer(settings=settings), self.log, [0], FORMAT, files, deltas, self.clock,
            sparse_every=1, dense_every=1 << 40, resume=resume, pass_over=pass_over,
        )  # fmt: skip

    def learn(self, online: OnlineTrainer) -> None:
        self.log.append(EXAMPLES, 0, records(1, self.appended))
        self.appended += 1
        online.step()

    def publish(self, online: OnlineTrainer, versions: int) -> None:
        for _ in range(versions):
            self.learn(online)
            assert online.publish() is not None

    def entries(self) -> list[str]:
        return [path.name for path in self.folder.iterdir()]

    def check(self) -> Manifest:
        """Every example was trained once, and a replica that comes now has the rows of the newest version."""
        online = self.start()
        online.step()
        online.publish()
        rows = online.trainer.tables["example"].export()
        assert rows.ids.tolist() == list(range(3 * self.appended))
        assert set(rows.counts.tolist()) == {1}
        replica = make_replica(self.files)
        replica.pull()
        assert replica.tables["example"].export().embeddings.tobytes() == rows.embeddings.tobytes()
        assert replica.manifest is not None
        return replica.manifest


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    found = Place(tmp_path)
    yield found
    found.log.close()


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(
            {"torn": data[: len(data) // 2], "flipped": data[:40] + bytes([data[40] ^ 1]) + data[41:]}[how]
        )


KINDS = ("rows", "state", "trainer", "manifest")


@pytest.mark.parametrize("how", ["torn", "flipped", "missing"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("version", [9, 10, 11])
def test_a_damaged_version_is_left_out_and_its_examples_are_trained_again(
    place: Place, kind: str, how: str, version: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Versions 1 to 11 with bases 4 and 8: whatever is damaged after the base, there is a way back."""
    place.publish(place.start(), 11)
    replica = make_replica(place.files)
    replica.pull()
    manifest = manifests.read_manifest(place.files, version, base=False)
    shard, trainer = manifest.shards[0], manifest.trainer
    assert trainer is not None
    name = {"rows": shard.rows.name, "state": shard.state.name, "trainer": trainer.name, "manifest": manifest.name}[
        kind
    ]
    if not (place.folder / name).exists():
        assert (kind, version) == ("trainer", 9), "only the newest two trainer's states are kept"
        return
    damage(place.folder / name, how)
    newest = place.check()
    if version == 11 or kind != "trainer":
        assert name in caplog.text or (kind, how, version) == ("manifest", "missing", 11)
    if (kind, how, version) != ("manifest", "missing", 11) and not (kind == "trainer" and version < 11):
        assert newest.version == 12 and newest.lineage == 12, "all that replicas have is replaced"
    replica.pull()
    if newest.version == 12:
        late = make_replica(place.files)
        late.pull()
        for table in late.tables:
            assert (
                replica.tables[table].export().embeddings.tobytes() == late.tables[table].export().embeddings.tobytes()
            )


@pytest.mark.parametrize("kind", ["rows", "state", "manifest"])
@pytest.mark.parametrize("how", ["torn", "missing"])
def test_a_damaged_base_is_gone_around(place: Place, kind: str, how: str) -> None:
    place.publish(place.start(), 11)
    base = manifests.read_manifest(place.files, 8, base=True)
    shard = base.shards[0]
    name = {"rows": shard.rows.name, "state": shard.state.name, "manifest": base.name}[kind]
    damage(place.folder / name, how)
    assert place.check().version == 11, "the older base and the deltas after it lead to the same version"


@pytest.mark.parametrize("how", ["torn", "flipped", "missing"])
def test_damaged_dense_weights_are_named_and_published_again(
    place: Place, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """No later version brings them by itself, and the trainer's state holds them too."""
    place.publish(place.start(), 3)
    dense = manifests.read_manifest(place.files, 3, base=False).dense
    assert dense is not None and dense.version == 1
    damage(place.folder / dense.file.name, how)
    with pytest.raises((BadFile, FileNotFoundError), match=dense.file.name):
        make_replica(place.files).pull()
    newest = place.check()
    assert dense.file.name in caplog.text
    assert newest.dense is not None
    assert (newest.version, newest.dense.version) == (4, 4)
    assert newest.offsets == {"examples/0": 3}, "nothing is trained again"


def test_where_nothing_is_whole_the_files_are_named_and_nothing_begins_anew(place: Place) -> None:
    place.publish(place.start(), 3)
    names = [manifests.read_manifest(place.files, at, base=False).shards[0].state.name for at in (1, 2, 3)]
    damage(place.folder / names[0], "torn")
    with pytest.raises(BadFile, match=names[0]):
        place.start()


def test_a_state_file_that_no_table_takes_is_damage(place: Place) -> None:
    """With checksums that are right: rows of another width than the table's ended the trainer with a traceback."""
    place.publish(place.start(), 2)
    wider = Table(5, name="example")
    wider.lookup_or_insert(np.arange(3), 0)
    shard = write_shard(place.files, "x", {"example": TableDelta(wider.seal(), np.full(3, 2))}, "float32")
    manifest = msgspec.structs.replace(manifests.read_manifest(place.files, 2, base=False), shards=[shard])
    (place.folder / manifest.name).write_bytes(manifests.encode_checked(manifest))
    assert place.start().workers[0].offset == 1, "of version 1"


class _SmallTable(Table):
    def reserve(self, rows: int) -> None:
        super().reserve(2**31 - 1)


def test_where_this_machine_has_no_room_no_version_is_passed_over(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.publish(place.start(), 2)
    monkeypatch.setattr("paramserver.settings.Table", _SmallTable)
    with pytest.raises(NoRoomError, match=r"table user: [\d,]+ rows; allowed: as many as .* set tables\.max_rows"):
        place.start()


def test_a_manifest_of_a_newer_program_is_an_error_and_nothing_is_passed_over(place: Place) -> None:
    place.publish(place.start(), 2)
    path = place.folder / manifests.manifest_name(2, base=False)
    newer = {
        **msgspec.json.decode(path.read_bytes().split(b"\n")[0]),
        "format": manifests.FORMAT + 1,
        "shards": "in another form",
    }
    path.write_bytes(manifests.encode_checked(newer))
    with pytest.raises(OtherFormat, match=r"manifest-000000000002\.json: format"):
        place.start()


@contextmanager
def full_disk(most_bytes: int) -> Iterator[None]:
    """The kernel refuses to let any file grow beyond this, in the middle of a write as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_publishes_nothing_and_the_next_try_works(place: Place) -> None:
    online = place.start()
    place.publish(online, 2)
    replica = make_replica(place.files)
    place.learn(online)
    before = sorted(place.entries())
    for most in (100, 700, 1000):
        with full_disk(most), pytest.raises(OSError) as error:
            online.publish()
        assert error.value.errno == errno.EFBIG
        replica.pull()
        assert replica.sparse_version == 2
        assert not [name for name in place.entries() if name.endswith(".tmp")], "what is half written goes"
        assert manifests.versions(place.files, base=False) == [1, 2]
    assert set(before) <= set(place.entries())
    place.learn(online)  # training went on meanwhile
    manifest = online.publish()
    assert manifest is not None and manifest.version == 4, "what waited is a version of its own"
    assert manifest.offsets == {"examples/0": 4}
    assert place.check().version == 4


class FullDisk:
    """The system's calls; from the ``left``-th on that needs room on the disk there is none, in the middle of what is written."""

    def __init__(self) -> None:
        self.left = 1 << 60
        self.refused: list[str] = []

    def __getattr__(self, name: str) -> Any:
        call = getattr(os, name)
        return self._checked(name, call) if name in ("open", "write", "fsync", "replace", "link") else call

    def _checked(self, name: str, call: Any) -> Any:
        def checked(*arguments: Any) -> Any:
            if name == "open" and not arguments[1] & os.O_CREAT:
                return call(*arguments)
            self.left -= 1
            if self.left >= 0:
                return call(*arguments)
            if name == "write":
                call(arguments[0], arguments[1][: len(arguments[1]) // 2])
            self.refused.append(name)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        return checked


def test_a_disk_may_be_full_at_any_moment(place: Place) -> None:
    """At each call in turn that needs room, of publications and of the fold."""
    disk = FullDisk()
    online = place.start(files=LocalFiles(place.folder, durable=True, system=disk))
    replica = make_replica(place.files)
    refused: list[str] = []
    folds = 0
    for room in range(36):
        place.learn(online)
        before = online.deltas.version
        disk.left = room
        try:
            assert online.publish() is not None
            folds += bool(disk.refused)
        except OSError as error:
            assert error.errno == errno.ENOSPC
        refused += disk.refused[:1]
        disk.left, disk.refused = 1 << 60, []
        assert not [name for name in place.entries() if name.endswith(".tmp")]
        newest = manifests.versions(place.files, base=False)[-1:]
        assert newest in ([before] if before else [], [before + 1]), "one version is there whole, or none"
        replica.pull()
        if newest == [before + 1]:
            rows = online.trainer.tables["example"].export()
            assert replica.tables["example"].export().embeddings.tobytes() == rows.embeddings.tobytes()
        place.publish(online, 2)
        assert online.deltas.newest is not None
        assert online.deltas.newest.offsets == {"examples/0": place.appended}
    assert set(refused) == {"open", "write", "fsync", "replace", "link"}
    assert folds > 1, "some while it folded"
    place.check()


# Guards.


def test_a_weight_that_is_no_number_holds_training_until_somebody_says_so(place: Place) -> None:
    online = place.start()
    place.publish(online, 2)
    place.learn(online)
    online.trainer.weights.vector[0] = float("nan")
    with pytest.raises(GuardedError, match=r"dense weights that are no finite numbers: .*; version 2 stays"):
        online.publish()
    assert manifests.versions(place.files, base=False) == [1, 2]
    hold = read_hold(place.files)
    assert hold is not None and hold.after == 2
    with pytest.raises(GuardedError, match="held after version 2: dense weights"):
        place.start()
    resumed = place.start(resume=True)
    resumed.step()
    manifest = resumed.publish()
    assert manifest is not None and manifest.version == 3
    assert place.check().version == 3


def test_where_nothing_can_be_read_training_is_held(place: Place) -> None:
    online = place.start()
    place.publish(online, 2)
    place.log.append(EXAMPLES, 0, [b"\xc1"] * (IN_A_ROW + 1))
    wanted = rf"config of the joiners.*; version 2 stays; read since: 0:2-{IN_A_ROW + 1}$"
    with pytest.raises(GuardedError, match=wanted):
        for _ in range(IN_A_ROW):
            online.step()
    with pytest.raises(GuardedError, match=r"held after version 2: examples/0, offset \d+: "):
        place.start()
    resumed = place.start(resume=True, pass_over={0: [range(2, IN_A_ROW + 3)]})
    place.log.append(EXAMPLES, 0, records(1, 2))
    for _ in range(IN_A_ROW):
        resumed.step()
    manifest = resumed.publish()
    assert manifest is not None and (manifest.version, manifest.offsets) == (3, {"examples/0": IN_A_ROW + 4})
    assert resumed.take_refused() == []


def test_what_resuming_passes_over_is_not_trained_on(tmp_path: Path) -> None:
    """Not even read: the weights and rows are those of a log without it."""
    held, clean = (Place(tmp_path / name) for name in ("held", "clean"))
    try:
        online = held.start()
        held.publish(online, 2)
        for number in (2, 3):
            held.log.append(EXAMPLES, 0, records(1, number))
        online.step()
        online.trainer.weights.vector[0] = float("nan")
        with pytest.raises(GuardedError, match=r"; version 2 stays; read since: 0:2-3$"):
            online.publish()
        held.log.append(EXAMPLES, 0, [b"no batch of examples", *records(1, 4)])
        with pytest.raises(GuardedError, match=r"read since: 0:2-3; .* --pass-over skips offsets"):
            held.start()
        left = {0: [range(2, 4), range(4, 5), range(9, 12)], 1: [range(5, 6)]}
        resumed = held.start(resume=True, pass_over=left)
        resumed.step()
        manifest = resumed.publish()
        assert manifest is not None and manifest.offsets == {"examples/0": 6}
        online = clean.start()
        clean.publish(online, 2)
        clean.log.append(EXAMPLES, 0, records(1, 4))
        online.step()
        assert torch.equal(resumed.trainer.weights.vector, online.trainer.weights.vector)
        found, wanted = (each.trainer.tables["example"].export() for each in (resumed, online))
        assert found.ids.tolist() == wanted.ids.tolist()
        assert found.embeddings.tobytes() == wanted.embeddings.tobytes()
        assert resumed.trainer.examples > 0
    finally:
        held.log.close()
        clean.log.close()


def test_a_row_that_is_no_number_is_named(place: Place) -> None:
    online = place.start()
    place.publish(online, 2)
    place.learn(online)
    table = online.trainer.tables["example"]
    table.upsert(np.array([7]), np.full((1, table.dim), np.inf, np.float32))
    with pytest.raises(GuardedError, match="table example: id 7: embedding holds inf; version 2 stays"):
        online.publish()
    replica = make_replica(place.files)
    replica.pull()
    assert replica.sparse_version == 2
    with pytest.raises(GuardedError, match="table example: id 7"):
        place.start()
    place.start(resume=True)
    assert place.check().version == 3


def test_a_loss_out_of_its_bounds_is_not_published(place: Place) -> None:
    strict = TrainSettings(guards=GuardSettings(loss=(0.0, 0.001), over=9))
    online = place.start(settings=strict)
    place.publish(online, 2)  # there are not enough examples for a mean yet
    place.learn(online)
    with pytest.raises(GuardedError, match=r"mean of the loss is 0\.\d+; allowed by train\.guards\.loss: 0 to 0\.001"):
        online.publish()
    assert manifests.versions(place.files, base=False) == [1, 2]
    with pytest.raises(GuardedError, match="held after version 2: the running mean of the loss"):
        place.start()
    place.start(resume=True)
    assert place.check().offsets == {"examples/0": 3}


def test_a_running_mean_out_of_its_bounds_is_refused() -> None:
    guard = Guard(GuardSettings(loss=(0.0, 0.9), prediction={"like": (0.2, 0.8)}, over=100), LABELS)
    for _ in range(30):
        guard.add(torch.tensor(5.0), torch.zeros(10, 1))
    guard.check()
    for _ in range(30):
        guard.add(torch.tensor(5.0), torch.full((10, 1), 4.0))
    with pytest.raises(
        GuardedError, match=r"mean prediction of like is 0\.9\d+; allowed by train\.guards\.prediction\.like"
    ):
        guard.check()
    for _ in range(60):
        guard.add(torch.tensor(float("nan")), torch.zeros(10, 1))
    with pytest.raises(GuardedError, match=r"mean of the loss is nan; allowed by train.guards.loss: 0 to 0.9"):
        guard.check()


# Going back.


def test_training_goes_back_with_a_rollback_or_on_from_the_newest(place: Place) -> None:
    online = place.start()
    place.publish(online, 6)
    old = manifests.read_manifest(place.files, 5, base=False)
    replica = make_replica(place.files)
    for training in (False, True):
        deltas = DeltaLog.resume(place.files, "form", KEEP)
        back = deltas.go_back(5 if training is False else deltas.trainable()[0], 1, training=training)
        if not training:
            assert (back.watermark, back.parent, back.trains_from) == (old.watermark, 0, 6)
        replica.pull()
        assert replica.sparse_version == back.version
        online = place.start()
        place.learn(online)
        following = online.publish()
        assert following is not None and following.version == back.version + 1
        replica.pull()
        fresh = make_replica(place.files)
        fresh.pull()
        expected = following.version if training else back.version
        assert replica.sparse_version == fresh.sparse_version == expected
        unpin(place.files)
        replica.pull()
        assert replica.sparse_version == following.version
    place.check()


def test_the_model_as_of_a_time(place: Place) -> None:
    online = place.start()
    found = {}
    for _ in range(6):
        place.publish(online, 1)
        newest = online.deltas.newest
        assert newest is not None
        found[newest.watermark] = online.trainer.tables["example"].export().embeddings.tobytes()
    for watermark, rows in list(found.items())[3:]:
        for at in (watermark, watermark + 5):
            replica = make_replica(place.files)
            assert replica.load_as_of(at).watermark == watermark
            assert replica.tables["example"].export().embeddings.tobytes() == rows
    with pytest.raises(BadFile, match=r"no version as of .*: those there are of"):
        make_replica(place.files).load_as_of(1)
    assert np.all(np.diff(list(found)) > 0)
