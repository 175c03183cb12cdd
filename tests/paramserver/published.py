"""A trainer that learns at random and what it publishes, and places to publish to, for tests of the delta log."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import pytest

from paramserver import manifest as manifests
from paramserver.delta_log import Cut, DeltaLog
from paramserver.files import Files
from paramserver.follower import Follower
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
    """Users have a row at once, items at their second occurrence."""
    return Table(
        DIMS[name],
        optimizer=Adagrad(learning_rate=0.1, initial_accumulator=0.1, per_element=name == "user"),
        initializer=Normal(0, 0.1),
        seed=seed,
        name=name,
        expire_after_seconds=2 * 3600,
        admit_after=2 if name == "item" else 1,
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
        self.tables["item"].apply_default_row(self.rng.normal(size=DIMS["item"]).astype(np.float32))
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


def calm(files: BreakableFiles) -> None:
    files.before = lambda operation, name: None
    files.hidden = set()
    files.damage = lambda name, data: data


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


def published(versions: int, keep: int = 1000) -> tuple[MemoryFiles, Writer]:
    files = MemoryFiles()
    writer = Writer(files, keep, seed=9)
    for _ in range(versions):
        writer.publish()
    return files, writer


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def up_to(files: Files, version: int) -> BreakableFiles:
    """The files as who has not yet seen what came after ``version`` sees them."""
    view = BreakableFiles(files)
    for base in (False, True):
        later = (at for at in manifests.versions(files, base=base) if at > version)
        view.hidden |= {manifests.manifest_name(at, base=base) for at in later}
    return view


def at_version(files: MemoryFiles, version: int) -> tuple[Follower, dict[str, Table]]:
    """A follower that has pulled up to ``version`` and then lost sight of what came after."""
    view = up_to(files, version)
    tables = replica_tables()
    follower = Follower(view, tables)
    follower.pull()
    assert follower.version == version
    calm(view)
    return follower, tables
