"""Where published files live: in a folder, or in memory until they are pushed out."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramserver import manifest as manifests
from paramserver.files import Files, LocalFiles, WriteBack, remove_half_written
from paramserver.follower import Follower
from paramserver.manifest import Manifest, TakenOverError
from tests.paramserver.published import MemoryFiles, Writer, replica_tables, state_of

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


KILLED = """
import os, sys, time
from pathlib import Path
from paramserver.files import LocalFiles

class Slow:
    def __getattr__(self, name):
        return getattr(os, name)
    def fsync(self, descriptor):
        print("half", flush=True)
        time.sleep(60)

LocalFiles(Path(sys.argv[1]), durable=True, system=Slow()).write("version", b"rows" * 1000)
"""


def test_what_a_killed_writer_left_goes_when_it_is_old(tmp_path: Path) -> None:
    long_ago = time.time() - 2 * 3600
    LocalFiles(tmp_path, durable=True).write("whole", b"1")
    stays = {"whole", "mine.tmp", f"notes.{'a0' * 8}.tmp.txt", "notes.txt.tmp"}
    for name in stays:
        (tmp_path / name).write_bytes(b"2")
        os.utime(tmp_path / name, (long_ago, long_ago))
    with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "half\n"
        (half,) = tmp_path.glob("version.*.tmp")
        writer.kill()
    remove_half_written(tmp_path)
    assert half.exists(), "its writer might be alive elsewhere"
    os.utime(half, (long_ago, long_ago))
    remove_half_written(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == stays


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


class FirstInItsContainer:
    """The system's calls as process number 1 makes them; ``before`` is told of each."""

    def __init__(self) -> None:
        self.before: Callable[[str], None] = lambda call: None

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            self.before(name)
            return 1 if name == "getpid" else getattr(os, name)(*arguments, **named)

        return call


@pytest.mark.parametrize("at", range(12))
def test_of_two_writers_in_containers_one_publishes_whenever_the_other_comes(tmp_path: Path, at: int) -> None:
    """Both are process number 1, as the first one of every container is."""
    system = FirstInItsContainer()
    ours = LocalFiles(tmp_path, durable=True, system=system)
    theirs = LocalFiles(tmp_path, durable=True, system=FirstInItsContainer())
    left, published = at, []

    def publish(files: LocalFiles, watermark: int) -> None:
        with suppress(TakenOverError):
            manifests.write_manifest(files, manifest_with(watermark))
            published.append(watermark)

    def before(call: str) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            publish(theirs, 2)

    system.before = before
    publish(ours, 1)
    if left > 0:
        publish(theirs, 2)
    assert len(published) == 1
    assert manifests.read_manifest(ours, 1, base=False).watermark == published[0]
    assert ours.names() == [path.name for path in tmp_path.iterdir()], "nothing half written stays"


def manifest_with(watermark: int) -> Manifest:
    return Manifest(version=1, parent=0, watermark=watermark, published_at=0, fingerprint="form", shards=[], offsets={})


def test_a_store_that_refuses_two_writes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """S3 answers 409 then, which its client takes for a file that is there: published the next time, and said why not before."""
    files = MemoryFiles()
    writer = Writer(files, keep_deltas=3)
    writer.learn()
    epoch, cut = writer.seal(), writer.cut()

    def refuse(name: str, data: bytes) -> None:
        raise FileExistsError(name)

    with monkeypatch.context() as patch:
        patch.setattr(files, "create", refuse)
        with pytest.raises(OSError, match=r"manifest-0+1\.json: the store refused it because of another write"):
            writer.log.publish(epoch, cut)
    assert writer.log.publish(epoch, cut).version == 1
