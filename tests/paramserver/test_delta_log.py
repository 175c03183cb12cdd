"""The delta log: what is published reads back as what was sealed, through drops, races, restarts, damage and compaction."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from basis.problems import BadFile
from paramserver import manifest as manifests
from paramserver.delta import TableDelta, decode, decode_rows, encode_rows, encode_state
from paramserver.delta_log import Cut, DeltaLog
from paramserver.files import Files, LocalFiles, WriteBack
from paramserver.fold import fold
from paramserver.follower import Follower
from paramserver.history import read_shard, read_version
from paramserver.manifest import Manifest, TakenOverError
from paramserver.table import Adagrad, Normal, Rows, Table

DIMS = {"user": 3, "item": 2}
HOUR_MS = 3_600_000
IDS = 12
COLUMNS = ("ids", "embeddings", "state", "last_seen_seconds", "counts", "default_embedding", "default_state")


class MemoryFiles:
    """Files of one test."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}

    def write(self, name: str, data: bytes) -> None:
        self.content[name] = bytes(data)

    def create(self, name: str, data: bytes) -> None:
        if name in self.content:
            raise FileExistsError(name)
        self.write(name, data)

    def read(self, name: str) -> bytes:
        if name not in self.content:
            raise FileNotFoundError(name)
        return self.content[name]

    def names(self) -> list[str]:
        return list(self.content)

    def delete(self, name: str) -> None:
        self.content.pop(name, None)


class BreakableFiles:
    """Files whose every operation first asks ``before`` (operation, name), which may raise, or change the files."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self.before: Callable[[str, str], None] = lambda operation, name: None
        self.hidden: set[str] = set()
        self.damage: Callable[[str, bytes], bytes] = lambda name, data: data

    def write(self, name: str, data: bytes) -> None:
        self.before("write", name)
        self._files.write(name, data)

    def create(self, name: str, data: bytes) -> None:
        self.before("write", name)
        self._files.create(name, data)

    def read(self, name: str) -> bytes:
        self.before("read", name)
        if name in self.hidden:
            raise FileNotFoundError(name)
        return self.damage(name, self._files.read(name))

    def names(self) -> list[str]:
        self.before("names", "")
        return [name for name in self._files.names() if name not in self.hidden]

    def delete(self, name: str) -> None:
        self.before("delete", name)
        self._files.delete(name)


class State(NamedTuple):
    """All rows and default rows of all tables, comparable byte for byte."""

    ids: tuple[bytes, ...]
    embeddings: tuple[bytes, ...]
    defaults: tuple[bytes, ...]


def state_of(tables: Mapping[str, Table]) -> State:
    rows = [tables[name].export() for name in DIMS]
    columns = ("ids", "embeddings", "default_embedding")
    return State(*(tuple(getattr(part, column).tobytes() for part in rows) for column in columns))


def replica_tables(row_format: str = "train") -> dict[str, Table]:
    return {name: Table(dim, name=name, row_format=row_format) for name, dim in DIMS.items()}  # type: ignore[arg-type]


def random_follower(files: Files, rng: random.Random) -> tuple[Follower, dict[str, Table]]:
    tables = replica_tables(rng.choice(["train", "float32"]))
    return Follower(files, tables), tables


def trained_table(name: str, seed: int) -> Table:
    """Users have a row at once; items at their second occurrence, and train the default row until then."""
    return Table(
        DIMS[name],
        optimizer=Adagrad(learning_rate=0.1, initial_accumulator=0.1, per_element=name == "user"),
        initializer=Normal(0, 0.1),
        seed=seed,
        name=name,
        expire_after_seconds=2 * 3600,
        admit_after=2 if name == "item" else 1,
        default_row="learned",
    )


class Writer:
    """A trainer that learns at random, and the log that it publishes to. ``history`` holds the rows of every version."""

    def __init__(self, files: Files, keep_deltas: int, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.tables = {name: trained_table(name, seed) for name in DIMS}
        self.log = DeltaLog(files, "form", keep_deltas)
        self.history = {0: state_of(self.tables)}
        self.now_ms = HOUR_MS

    def learn(self) -> None:
        """Some rows get a gradient, others are only seen; time passes; now and then what was not seen for long goes."""
        for _ in range(self.rng.integers(1, 4)):
            for name, table in self.tables.items():
                ids = self.rng.integers(0, IDS, self.rng.integers(0, 5))
                table.lookup_or_insert(ids, self.now_ms)
                touched = ids[self.rng.random(len(ids)) < 0.7]
                table.apply(touched, self.rng.normal(size=(len(touched), DIMS[name])).astype(np.float32), self.now_ms)
            self.now_ms += int(self.rng.integers(0, HOUR_MS))
            for table in self.tables.values():
                table.expire(self.now_ms, 1 << 16)

    def seal(self) -> dict[str, Rows]:
        return {name: table.seal() for name, table in self.tables.items()}

    def cut(self) -> Cut:
        dense = b"dense %d" % self.log.version if self.rng.random() < 0.3 else None
        trainer = b"trainer %d" % self.log.version if self.rng.random() < 0.5 else None
        return Cut(self.now_ms - 1000, self.now_ms, {"examples/0": self.log.version * 10}, dense, trainer)

    def publish(self) -> Manifest:
        self.learn()
        epoch = self.seal()
        self.history[self.log.version + 1] = state_of(self.tables)
        return self.log.publish(epoch, self.cut())

    def taken_over(self, files: Files, keep_deltas: int) -> Writer:
        """Another writer, that learned elsewhere, takes over; this one, which does not know, then fails to publish."""
        other = Writer(files, keep_deltas, seed=len(self.history))
        for _ in range(3):
            other.learn()
        other.seal()
        other.history, other.now_ms = {**self.history, self.log.version + 1: state_of(other.tables)}, self.now_ms
        other.log = DeltaLog.resume(files, "form", keep_deltas)
        cut = Cut(self.now_ms, self.now_ms, {}, b"dense of another", b"trainer of another")
        manifest = other.log.take_over({name: table.export() for name, table in other.tables.items()}, cut, "other")
        assert manifest.lineage == manifest.version == self.log.version + 1
        with pytest.raises(TakenOverError, match=f"{manifest.version}.json"):
            self.publish()
        return other


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


def calm(files: BreakableFiles) -> None:
    files.before = lambda operation, name: None
    files.hidden = set()
    files.damage = lambda name, data: data


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


def test_nothing_published_is_nothing_to_pull() -> None:
    follower = Follower(MemoryFiles(), replica_tables())
    assert follower.pull() is None
    assert follower.version == 0


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


def test_a_table_recovered_from_its_log_goes_on_to_the_same_bits() -> None:
    files = MemoryFiles()
    writer = Writer(files, 4, seed=8)
    for _ in range(10):
        writer.publish()
    recovered = {name: trained_table(name, seed=8) for name in DIMS}
    base = manifests.versions(files, base=True)[-1]
    manifest = manifests.read_manifest(files, base, base=True)
    later = [manifests.read_manifest(files, version, base=False) for version in range(base + 1, writer.log.version + 1)]
    assert later, "from a base and the deltas after it"
    for version in (manifest, *later):
        for name, part in read_shard(files, version.shards[0]).items():
            recovered[name].restore(part.rows)
    rng = np.random.default_rng(0)
    for name, table in writer.tables.items():
        known = table.export().ids
        gradients = rng.normal(size=(len(known) + 1, DIMS[name])).astype(np.float32)
        for one in (table, recovered[name]):
            one.apply(np.append(known, 10**9), gradients, writer.now_ms)  # the last id trains the default row
        for column in COLUMNS:
            ours, theirs = getattr(table.export(), column), getattr(recovered[name].export(), column)
            assert ours.tobytes() == theirs.tobytes(), (name, column)


Replayed = dict[str, dict[int | str, tuple[bytes, bytes, int, int, int]]]


def replay(deltas: list[dict[str, TableDelta]]) -> Replayed:
    """What deltas come to, one row at a time."""
    out: Replayed = {name: {} for name in DIMS}
    for delta in deltas:
        for name, part in delta.items():
            rows = part.rows
            for key in rows.expired.tolist():
                out[name].pop(key, None)
            for at, key in enumerate(rows.ids.tolist()):
                state = (rows.embeddings[at].tobytes(), rows.state[at].tobytes())
                out[name][key] = (*state, int(rows.last_seen_seconds[at]), int(rows.counts[at]), int(part.versions[at]))
            out[name]["default"] = (rows.default_embedding.tobytes(), rows.default_state.tobytes(), 0, 0, 0)
    return out


@given(st.integers(1, 12), st.integers(0, 2**32))
def test_folding_is_the_same_as_replaying(epochs: int, seed: int) -> None:
    writer = Writer(MemoryFiles(), 1000, seed)
    deltas = []
    for version in range(1, epochs + 1):
        writer.learn()
        epoch = writer.seal()
        delta = {name: TableDelta(rows, np.full(len(rows.ids), version)) for name, rows in epoch.items()}
        files = encode_rows(delta), encode_state(delta)
        deltas.append(decode("rows", files[0], "state", files[1]))
    folded = fold(deltas)
    assert replay([folded]) == replay(deltas)
    for part in folded.values():
        assert (np.diff(part.rows.ids) > 0).all(), "by ascending id, as a table exports them"
    assert replay([fold([fold(deltas[:at]), *deltas[at:]]) for at in [max(1, epochs // 2)]]) == replay(deltas)


def test_a_rows_file_reads_back_in_every_shape() -> None:
    delta = {
        "empty": TableDelta(make_rows([], [], dim=4), np.empty(0, np.int64)),
        "gone": TableDelta(make_rows([], [7, 8], dim=1), np.empty(0, np.int64)),
        "both": TableDelta(make_rows([-5, 2**62], [2**62], dim=3), np.array([1, 2])),
    }
    back = decode("rows", encode_rows(delta), "state", encode_state(delta))
    assert list(back) == list(delta)
    for name, part in delta.items():
        for column in (*COLUMNS, "expired"):
            ours, theirs = getattr(part.rows, column), getattr(back[name].rows, column)
            assert theirs.dtype == ours.dtype
            assert np.array_equal(theirs, ours), (name, column)
        assert np.array_equal(back[name].versions, part.versions)


def make_rows(ids: list[int], expired: list[int], dim: int) -> Rows:
    count = len(ids)
    return Rows(
        ids=np.array(ids, np.int64),
        embeddings=np.arange(count * dim, dtype=np.float32).reshape(count, dim),
        state=np.ones((count, 1), np.float32),
        last_seen_seconds=np.full(count, 2**32 - 1, np.uint32),
        counts=np.arange(count, dtype=np.uint32),
        expired=np.array(expired, np.int64),
        default_embedding=np.arange(dim, dtype=np.float32),
        default_state=np.full(1, 0.5, np.float32),
    )


def test_files_that_do_not_belong_together_are_refused() -> None:
    versions = np.array([1, 1])
    one = {"item": TableDelta(make_rows([1, 2], [], dim=2), versions)}
    other = {"user": TableDelta(make_rows([1, 2], [], dim=2), versions)}
    shorter = {"item": TableDelta(make_rows([1], [], dim=2), versions[:1])}
    wide = replace(make_rows([1, 2], [], dim=2), default_state=np.zeros(2, np.float32))
    for wrong in (other, shorter, {"item": TableDelta(wide, versions)}):
        with pytest.raises(BadFile, match="the-state"):
            decode("the-rows", encode_rows(one), "the-state", encode_state(wrong))
    with pytest.raises(BadFile, match="the-rows"):
        decode_rows("the-rows", encode_state(one))
    wide = replace(make_rows([1, 2], [], dim=2), default_embedding=np.zeros(3, np.float32))
    with pytest.raises(BadFile, match="a default row of 3 values, rows of 2"):
        decode_rows("the-rows", encode_rows({"item": TableDelta(wide, versions)}))
    with pytest.raises(BadFile, match="the-rows"):
        decode_rows("the-rows", b"nothing of the kind")


# Damage.


def published(versions: int, keep: int = 1000) -> tuple[MemoryFiles, Writer]:
    files = MemoryFiles()
    writer = Writer(files, keep, seed=9)
    for _ in range(versions):
        writer.publish()
    return files, writer


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def at_version(files: MemoryFiles, version: int) -> tuple[Follower, dict[str, Table]]:
    """A follower that has pulled up to ``version`` and then lost sight of what came after."""
    view = BreakableFiles(files)
    view.hidden = {manifests.manifest_name(later, base=False) for later in range(version + 1, version + 50)}
    tables = replica_tables()
    follower = Follower(view, tables)
    follower.pull()
    assert follower.version == version
    calm(view)
    return follower, tables


@pytest.mark.parametrize("damage", ["flip", "cut off", "longer", "empty"])
def test_a_damaged_rows_file_is_named_and_changes_nothing(damage: str) -> None:
    files, writer = published(4)
    follower, tables = at_version(files, 2)
    name = manifests.read_manifest(files, 3, base=False).shards[0].rows.name
    good = files.content[name]
    for at in range(0, len(good), 97):
        bad = {"flip": flipped(good, at), "cut off": good[:at], "longer": good + b"\0", "empty": b""}[damage]
        files.content[name] = bad
        with pytest.raises(BadFile, match=name):
            follower.pull()
        assert follower.version == 2
        assert state_of(tables) == writer.history[2]
    files.content[name] = good
    follower.pull()
    assert state_of(tables) == writer.history[4]


@pytest.mark.parametrize("at_base", [False, True])
def test_a_damaged_manifest_is_named_and_changes_nothing(at_base: bool) -> None:
    """Whatever byte it is: a wrong number in it would otherwise be followed."""
    files, writer = published(4, keep=4 if at_base else 1000)
    version = 4 if at_base else 3
    name = manifests.manifest_name(version, base=at_base)
    good = files.content[name]
    if at_base:
        for old in range(1, 4):
            files.delete(manifests.manifest_name(old, base=False))
    missed = []
    for at in range(len(good)):
        files.content[name] = good
        follower, tables = (Follower(files, replica_tables()), {}) if at_base else at_version(files, 2)
        files.content[name] = flipped(good, at)
        with patch.object(files, "read", at_most(50, files.read)):
            try:
                follower.pull()
                outcome = "went on"
            except BadFile as error:
                outcome = "refused" if name in str(error) else "another file named"
            except OSError:
                outcome = "another file missed"
            except TooOften:
                outcome = "no end"
        if outcome != "refused":
            missed.append((outcome, flipped(good, at)[max(0, at - 20) : at + 10]))
        elif not at_base:
            assert state_of(tables) == writer.history[2]
    outcomes = dict(missed)
    assert not missed, f"{len(missed)} of {len(good)} flips were not refused by name, such as {outcomes}"


class TooOften(Exception):
    """Something was done more often than it can be needed."""


def at_most(times: int, do: Callable[[str], bytes]) -> Callable[[str], bytes]:
    def counted(name: str) -> bytes:
        nonlocal times
        times -= 1
        if times < 0:
            raise TooOften(name)
        return do(name)

    return counted


def test_a_manifest_under_another_version_s_name_is_refused() -> None:
    files, _ = published(4)
    follower, _ = at_version(files, 2)
    files.content[manifests.manifest_name(3, base=False)] = files.content[manifests.manifest_name(4, base=False)]
    with pytest.raises(BadFile, match="manifest-000000000003"):
        follower.pull()
    assert follower.version == 2


def test_a_manifest_of_a_later_format_is_refused() -> None:
    files, writer = published(1)
    assert writer.log.newest is not None
    files.delete(manifests.manifest_name(1, base=False))
    manifests.write_manifest(files, msgspec.structs.replace(writer.log.newest, format=manifests.FORMAT + 1))
    with pytest.raises(BadFile, match=f"format {manifests.FORMAT + 1}"):
        Follower(files, replica_tables()).pull()


def test_a_newer_base_leads_past_a_damaged_delta() -> None:
    """`pull` raises only where no other way leads past the damage."""
    files, writer = published(4)
    follower, tables = at_version(files, 2)
    writer.log.fold()
    name = manifests.read_manifest(files, 3, base=False).shards[0].rows.name
    files.content[name] = flipped(files.content[name], 50)
    follower.pull()
    assert follower.version == 4
    assert state_of(tables) == writer.history[4]


def test_a_base_alone_is_enough_to_start_from() -> None:
    files, writer = published(4)
    writer.log.fold()
    for version in range(1, 5):
        files.delete(manifests.manifest_name(version, base=False))
    follower = Follower(files, tables := replica_tables())
    follower.pull()
    assert follower.version == 4
    assert state_of(tables) == writer.history[4]


def test_a_follower_of_other_tables_is_told_so() -> None:
    files, _ = published(2)
    wide = {"user": Table(8, name="user"), "item": Table(2, name="item")}
    with pytest.raises(BadFile, match="table user: rows of 3 values, this replica's have 8"):
        Follower(files, wide).pull()
    assert not len(wide["item"])
    partial = {"item": Table(2, name="item")}
    Follower(files, partial).pull()
    assert len(partial["item"]), "a replica may hold some of the tables only"


def test_a_replica_that_does_not_descend_from_the_parent_starts_over() -> None:
    """After a rollback the next version's parent is an older one."""
    files, _ = published(3)
    follower, tables = at_version(files, 3)
    rows = {name: make_rows([99], [], dim) for name, dim in DIMS.items()}
    delta = {name: TableDelta(part, np.array([4])) for name, part in rows.items()}
    names = {"rows": encode_rows(delta), "state": encode_state(delta)}
    refs = {}
    for kind, data in names.items():
        files.write(f"rolled.{kind}", data)
        refs[kind] = manifests.FileRef.of(f"rolled.{kind}", data)
    shard = manifests.Shard(rows=refs["rows"], state=refs["state"], changed=2, expired=0)
    for version, parent in ((4, -1), (4, 2)):
        manifests.write_manifest(
            files,
            Manifest(
                version=version,
                parent=parent,
                watermark=0,
                published_at=0,
                fingerprint="form",
                shards=[shard],
                offsets={},
            ),
        )
    follower.pull()
    assert follower.version == 4
    assert {name: table.export().ids.tolist() for name, table in tables.items()} == {"user": [99], "item": [99]}


# The folder stays bounded.


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


# Where files live.

FILE_OPERATIONS = st.tuples(
    st.sampled_from(["write", "write", "write", "delete", "read", "flush"]),
    st.sampled_from("abcd"),
    st.binary(max_size=20),
)


@settings(max_examples=150)
@given(st.lists(FILE_OPERATIONS, max_size=30), st.integers(0, 40))
def test_write_back_behaves_like_the_files_under_it(operations: list[tuple[str, str, bytes]], budget: int) -> None:
    plain, under = MemoryFiles(), MemoryFiles()
    back = WriteBack(under, budget)
    for operation, name, data in operations:
        if operation == "write":
            plain.write(name, data)
            back.write(name, data)
        elif operation == "delete":
            plain.delete(name)
            back.delete(name)
        elif operation == "flush":
            back.flush()
            assert under.content == plain.content
        assert sorted(back.names()) == sorted(plain.names())
        for known in "abcd":
            assert read_or_none(back, known) == read_or_none(plain, known)
        kept = sum(len(value) for key, value in plain.content.items() if under.content.get(key) != value)
        assert kept <= budget, "what is in memory alone stays within the budget"
    back.flush()
    assert under.content == plain.content


def read_or_none(files: Files, name: str) -> bytes | None:
    try:
        return files.read(name)
    except FileNotFoundError:
        return None


@settings(max_examples=20)
@given(st.lists(FILE_OPERATIONS, max_size=20), st.booleans())
def test_local_files_behave_like_files_in_memory(operations: list[tuple[str, str, bytes]], durable: bool) -> None:
    plain = MemoryFiles()
    with tempfile.TemporaryDirectory() as folder:
        local = LocalFiles(Path(folder, "new", "folder"), durable=durable)
        for operation, name, data in operations:
            if operation == "write":
                plain.write(name, data)
                local.write(name, data)
            elif operation == "delete":
                plain.delete(name)
                local.delete(name)
            assert sorted(local.names()) == sorted(plain.names())
            assert read_or_none(local, name) == read_or_none(plain, name)


def test_a_half_written_file_is_not_there(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path, durable=False)
    files.write("whole", b"1")
    (tmp_path / "half.tmp").write_bytes(b"2")
    assert files.names() == ["whole"]
    assert LocalFiles(tmp_path, durable=True).read("whole") == b"1"


def test_followers_of_write_back_see_every_version(tmp_path: Path) -> None:
    files = WriteBack(LocalFiles(tmp_path, durable=False), 3000)
    writer = Writer(files, 3, seed=4)
    tables = replica_tables()
    follower = Follower(files, tables)
    for _ in range(12):
        writer.publish()
        follower.pull()
        assert state_of(tables) == writer.history[follower.version]
    files.flush()
    late = replica_tables()
    Follower(LocalFiles(tmp_path, durable=False), late).pull()
    assert state_of(late) == state_of(writer.tables)


def test_of_two_writers_of_a_file_one_succeeds(tmp_path: Path) -> None:
    stores: list[Files] = [MemoryFiles(), LocalFiles(tmp_path / "a", durable=True)]
    stores.append(WriteBack(LocalFiles(tmp_path / "b", durable=False), 10))
    for files in stores:
        files.create("name", b"first, too long for ten bytes")
        with pytest.raises(FileExistsError):
            files.create("name", b"second")
        assert files.read("name") == b"first, too long for ten bytes"
        assert files.names() == ["name"]


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
