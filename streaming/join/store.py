"""The store of a joiner's state: RocksDB. A simulator has a store of its own, which loses what a crash would."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from rocksdict import BlockBasedOptions, Cache, DBCompressionType, Options, Rdict, WriteBatch, WriteBufferManager

from basis import open_files
from basis.problems import Problem, Problems

_log = logging.getLogger("minutely.join")
_WRITE_BUFFER_BYTES = 32 << 20
_OWN_BYTES = 64 << 20
_OWN_LOGS, _OWN_LOG_BYTES = 5, 4 << 20
"""How many logs of its own RocksDB keeps, and their size: without these, a thousand of any size."""
_IN_USE = ("IO error: While lock file: ", "IO error: lock hold by current process")
_DAMAGED = ("Corruption: ", "IO error: No such file or directory: ")
"""How RocksDB's errors begin if files are damaged or missing."""
_FAILED, _FAILED_IN_RUST = "IO error: ", " (os error "
"""How they begin, or what those of its binding contain, if the system refuses something else, such as more room."""


class Batch(Protocol):
    """Changes that are applied together or not at all."""

    def put(self, key: bytes, value: bytes) -> None:
        """Set a key."""

    def delete(self, key: bytes) -> None:
        """Remove a key."""


class Cursor(Protocol):
    """A position among the keys, in their order."""

    def seek(self, key: bytes) -> None:
        """Go to the first key that is not before this one."""

    def valid(self) -> bool:
        """Whether there is a key."""

    def key(self) -> Any:
        """Return the key."""

    def next(self) -> None:
        """Go to the next key."""

    def status(self) -> None:
        """Raise the error that made the cursor invalid, if it was one."""


class JoinStore(Protocol):
    """Keys in order. A write is atomic and survives the process, but not always the machine."""

    def get(self, key: Any) -> Any:
        """Return the value of a key or None; for a list of keys, a list."""

    def batch(self) -> Any:
        """Return an empty `Batch`, for `write`."""

    def write(self, batch: Any) -> None:
        """Apply a batch."""

    def iter(self) -> Cursor:
        """Return a cursor over what was written so far."""

    def delete_range(self, begin: bytes, end: bytes) -> None:
        """Remove the keys from ``begin`` to before ``end``."""

    def clear(self) -> None:
        """Start over, empty."""

    def close(self) -> None:
        """Close the store."""

    def is_damage(self, error: Exception) -> bool:
        """Whether an error means that written data is lost and can be rebuilt from the log."""


def is_damage(error: Exception) -> bool:
    """Whether files turned out to be damaged or missing; not for a full disk or a missing permission."""
    return str(error).startswith(_DAMAGED)


class StoreMemory:
    """Memory that several stores share: half of ``memory_bytes`` for reading, half for writing.

    The half for writing may be exceeded while flushes run: writers do not wait, since the memory may be held by a store that is
    not written to.
    """

    def __init__(self, memory_bytes: int) -> None:
        half = memory_bytes // 2
        self.cache = Cache(half)
        self.buffers = WriteBufferManager(half, False)
        self.buffer_bytes = min(half, _WRITE_BUFFER_BYTES)


class RocksStore:
    """A store in a folder of its own; `Problems` if another joiner uses it, or its disk is full. With damaged or missing
    files, it starts empty.

    Stores share ``memory``; without it, a store has 64 MiB of its own. Without ``can_rebuild``, the log keeps too little to rebuild
    what is lost: damage is an error like any other.
    """

    def __init__(self, folder: Path, memory: StoreMemory | None = None, *, can_rebuild: bool = True) -> None:
        self._memory = memory or StoreMemory(_OWN_BYTES)
        self._can_rebuild = can_rebuild
        folder.parent.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._discarded = folder.with_name(f"{folder.name}.discarded")
        self._begin()

    def _begin(self) -> None:
        try:
            db = _open(self._folder, self._memory)
        except Exception as error:  # rocksdict raises no narrower kind
            if not self.is_damage(error):
                raise
            _log.warning("%s does not open, rebuilding it from the log: %s", self._folder, error)
            self._discard()
            db = _open(self._folder, self._memory)
        self._db, self._closed, self._failed = db, False, False
        self.get = db.get
        self.iter = db.iter
        self._remove_discarded()

    def _discard(self) -> None:
        # Rename first: a folder that was half removed when its process was killed does not open.
        self._remove_discarded()
        if self._folder.exists():
            self._folder.rename(self._discarded)

    def _remove_discarded(self) -> None:
        if self._discarded.exists():
            shutil.rmtree(self._discarded)

    def batch(self) -> WriteBatch:
        """Return an empty batch, for `write`."""
        return WriteBatch(raw_mode=True)

    def write(self, batch: WriteBatch) -> None:
        """Apply a batch; `Problems` if the disk is full."""
        with self._writing():
            self._db.write(batch)

    def delete_range(self, begin: bytes, end: bytes) -> None:
        """Remove the keys from ``begin`` to before ``end``; `Problems` if the disk is full."""
        with self._writing():
            self._db.delete_range(begin, end)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # rocksdict raises no narrower kind
            named = _named(self._folder, error)
            self._failed = named is not error
            raise named from None

    def clear(self) -> None:
        """Start over with an empty folder."""
        self.close()
        self._discard()
        self._begin()

    def close(self) -> None:
        """Close the folder. Damage is only logged: the next open finds it. After a write that failed, this fails silently."""
        if self._closed:
            return
        self._closed = True
        try:
            self._db.close()
        except Exception as error:  # rocksdict raises no narrower kind
            if self._failed:
                return
            if not is_damage(error):
                raise _named(self._folder, error) from None
            _log.warning("%s: damage found while closing: %s", self._folder, error)

    def is_damage(self, error: Exception) -> bool:
        """Whether an error means that files are damaged or missing, and the log can rebuild them."""
        return self._can_rebuild and is_damage(error)


def _open(folder: Path, memory: StoreMemory) -> Rdict:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_write_buffer_size(memory.buffer_bytes)
    options.set_max_write_buffer_number(2)
    options.set_write_buffer_manager(memory.buffers)
    options.set_keep_log_file_num(_OWN_LOGS)
    options.set_max_log_file_size(_OWN_LOG_BYTES)
    options.set_compression_type(DBCompressionType.lz4())
    table = BlockBasedOptions()
    table.set_bloom_filter(10, False)
    table.set_block_cache(memory.cache)
    table.set_cache_index_and_filter_blocks(True)
    options.set_block_based_table_factory(table)
    try:
        return Rdict(str(folder), options)
    except Exception as error:  # rocksdict raises no narrower kind
        if str(error).startswith(_IN_USE):
            allowed = "another joiner uses this folder; allowed: a folder of its own for each"
            raise Problems([Problem(str(folder), "--state", "", allowed)]) from None
        raise _named(folder, error) from None


def _named(folder: Path, error: Exception) -> Exception:
    """Return an error of the system, such as a full disk, with the folder and what is allowed; others, and damage, as they are."""
    text = str(error)
    if is_damage(error) or not (text.startswith(_FAILED) or _FAILED_IN_RUST in text):
        return error
    said = text.rpartition(": ")[2]
    allowed = "allowed: a folder that can be written, on a disk with room"
    if said.startswith(open_files.TOO_MANY):
        allowed = open_files.ALLOWED
    return Problems([Problem(str(folder), "--state", said, f"{allowed}; the next start continues with what is there")])
