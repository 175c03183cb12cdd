"""A joiner's folder opens, or starts empty if its files are damaged; a closed state releases its memory."""

from __future__ import annotations

import gc
import resource
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from basis.open_files import ALLOWED
from basis.problems import Problems
from streaming.join import store as join_store
from streaming.join.pending import Pending
from streaming.join.state import Head, JoinState
from streaming.join.store import RocksStore
from tests.commands import ROOT

HEAD = Head(state_id="id", sequence=1, published=0, offsets={}, rebuild_points=[])


def open_state(folder: Path) -> JoinState:
    return JoinState(folder, 1 << 20)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a state that was written and closed."""
    state = open_state(tmp_path / "0")
    state.write(HEAD)
    state.close()
    return tmp_path / "0"


def remove(pattern: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        for path in folder.glob(pattern):
            path.unlink()

    return damage


def cut(pattern: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        for path in folder.glob(pattern):
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return damage


def flip(folder: Path) -> None:
    """Flip a bit of the block before the footer."""
    for path in folder.glob("*.sst"):
        content = bytearray(path.read_bytes())
        content[-60] ^= 1
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (remove("CURRENT"), "wal_dir contains existing log file"),
        (remove("MANIFEST-*"), "No such file or directory"),
        (remove("*.sst"), "No such file or directory"),
        (cut("CURRENT"), "CURRENT file does not end with newline"),
        (cut("MANIFEST-*"), "entry in MANIFEST"),
        (cut("*.sst"), "Sst file size mismatch"),
        (flip, "block checksum mismatch"),
    ],
)
def test_a_folder_with_damaged_or_missing_files_begins_anew(
    damage: Callable[[Path], None], said: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage(folder)
    state = open_state(folder)
    assert state.head is None
    assert str(folder) in caplog.text
    assert said in caplog.text
    assert list(folder.parent.iterdir()) == [folder]
    state.write(HEAD)
    state.close()
    state = open_state(folder)
    assert state.head == HEAD
    state.close()


def test_damage_that_the_log_cannot_mend_is_an_error(folder: Path) -> None:
    remove("MANIFEST-*")(folder)
    with pytest.raises(Exception, match="No such file or directory"):
        RocksStore(folder, can_rebuild=False)


def test_a_damaged_block_is_no_end(tmp_path: Path) -> None:
    """RocksDB's cursor stops at a damaged block as at its last key: requests after it would never be decided."""
    folder, count = tmp_path / "0", 10_000
    state = open_state(folder)
    for number in range(count):
        pending = Pending()
        state.wake(f"r{number}", pending, number)
        state.add(f"r{number}", pending, 0)
    state.write(HEAD)
    state.close()
    state = open_state(folder)
    assert len(state.take_due(count, count)) == count
    state.close()
    (path,) = folder.glob("*.sst")
    content = bytearray(path.read_bytes())
    content[len(content) * 3 // 4] ^= 1  # among the timers, which come last
    path.write_bytes(content)
    state = open_state(folder)
    with pytest.raises(Exception, match="Corruption: block checksum mismatch"):
        state.take_due(count, count)
    state.close()


def rewritten(state: JoinState, requests: int) -> None:
    """Write every request again; with small write buffers, RocksDB compacts meanwhile."""
    for number in range(requests):
        pending = Pending()
        state.wake(f"r{number}", pending, number)
        state.add(f"r{number}", pending, 0)
    state.write(HEAD)


def test_a_state_whose_damage_is_found_by_compaction_is_discarded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After that, RocksDB refuses to write, and closing fails too."""
    monkeypatch.setattr(join_store, "_WRITE_BUFFER_BYTES", 64 << 10)
    folder = tmp_path / "0"
    state = open_state(folder)
    rewritten(state, 2000)
    state.close()
    for path in folder.glob("*.sst"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    state = open_state(folder)
    with pytest.raises(Exception, match="Corruption: block checksum mismatch"):
        for _ in range(200):
            rewritten(state, 2000)
    state.discard()
    assert state.head is None
    rewritten(state, 10)
    state.close()
    state = open_state(folder)
    assert len(state) == 10
    state.close()


def test_a_folder_that_was_removed_beneath_a_joiner_is_made_again(folder: Path) -> None:
    state = open_state(folder)
    rewritten(state, 10)
    shutil.rmtree(folder)
    state.discard()
    rewritten(state, 20)
    state.close()
    state = open_state(folder)
    assert len(state) == 20
    state.close()


def test_a_damaged_folder_begins_anew_though_one_discarded_before_is_left(folder: Path) -> None:
    left = folder.with_name("0.discarded")
    left.mkdir()
    (left / "000004.log").touch()
    remove("CURRENT")(folder)
    state = open_state(folder)
    assert state.head is None
    assert list(folder.parent.iterdir()) == [folder]
    state.close()


@pytest.mark.parametrize(
    "error",
    [
        "IO error: while open a file for lock: state/0/LOCK: Permission denied",
        "IO error: While opening a file for sequentially reading: state/0/MANIFEST-000005: Permission denied",
        "IO error: No space left on device: While appending to file: state/0/MANIFEST-000039: No space left on device",
        "IO error: While open a file for random read: state/0/000009.sst: Too many open files",
        "No space left on device (os error 28)",
        "Too many open files (os error 24)",
    ],
)
def test_what_passes_ends_the_joiner_and_leaves_its_state(
    error: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The errors are those of rocksdict. Real ones are not an option: root, who may run the tests, has every permission."""

    def refused(*_: object) -> None:
        raise Exception(error)

    with monkeypatch.context() as patched:
        patched.setattr(join_store, "Rdict", refused)
        with pytest.raises(Problems) as raised:
            open_state(folder)
    allowed = ALLOWED if "open files" in error else "allowed: a folder that can be written, on a disk with room"
    assert str(raised.value).startswith(f"{folder}: --state: {error.rpartition(': ')[2]}; {allowed}; the next start")
    state = open_state(folder)
    assert state.head == HEAD
    state.close()


def test_a_full_disk_is_named_once_and_nothing_is_lost(folder: Path) -> None:
    """A limit on files stands in for it. After the write, closing fails too, and does not say why."""
    state = open_state(folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (32 << 10, hard))
    try:
        with pytest.raises(Problems, match=f"^{folder}: --state: File too large; allowed: .*, on a disk with room"):
            rewritten(state, 2000)
        state.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    state = open_state(folder)
    assert state.head is not None and len(state) == 0, "the write before that one is there"
    rewritten(state, 2000)
    state.close()


def test_a_folder_that_another_uses_stays(folder: Path) -> None:
    state = open_state(folder)
    with pytest.raises(Problems, match="another joiner uses this folder"):
        open_state(folder)
    program = (
        f"from pathlib import Path; from streaming.join.store import RocksStore; RocksStore(Path({str(folder)!r}))"
    )
    other = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert "another joiner uses this folder" in other.stderr
    state.reload()
    assert state.head == HEAD
    state.close()


def test_logs_of_rocksdb_are_bounded_in_size_and_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each begins with the options, some 20 KB."""
    monkeypatch.setattr(join_store, "_OWN_LOG_BYTES", 30_000)
    monkeypatch.setattr(join_store, "_WRITE_BUFFER_BYTES", 64 << 10)
    for _ in range(6):
        state = open_state(tmp_path / "0")
        for _ in range(20):
            rewritten(state, 2000)
        state.close()
        logs = [path.stat().st_size for path in (tmp_path / "0").glob("LOG*")]
    assert len(logs) == 5 and max(logs) < 40_000


def test_a_closed_state_gives_its_memory_back_without_a_search_for_cycles(tmp_path: Path) -> None:
    state = open_state(tmp_path / "0")
    pending = Pending()
    held = sys.getrefcount(pending)
    state.wake("r", pending, 5)
    state.add("r", pending, 100)
    gone = weakref.ref(state)
    gc.disable()
    try:
        state.close()
        assert sys.getrefcount(pending) == held, "a closed state still holds requests"
        del state
        assert gone() is None
    finally:
        gc.enable()
