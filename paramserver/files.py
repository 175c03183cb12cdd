"""Where published files live. A local folder here; what uses it takes any `Files`, so that a simulator can break them."""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

_TEMPORARY = ".tmp"
_TOKEN_BYTES = 8
_HALF_WRITTEN = re.compile(rf"\.[0-9a-f]{{{2 * _TOKEN_BYTES}}}\.tmp$")
_HALF_WRITTEN_SECONDS = 3600


class Files(Protocol):
    """A flat folder of whole files: one that can be read was written to its end."""

    def write(self, name: str, data: bytes) -> None:
        """Put a file in place at once, replacing one of the same name."""

    def create(self, name: str, data: bytes) -> None:
        """Put a file in place at once; ``FileExistsError`` where one of the same name is there. Of two writers one succeeds."""

    def read(self, name: str) -> bytes:
        """The bytes of a file; ``FileNotFoundError`` where it is not."""

    def names(self) -> list[str]:
        """The names of all files, in no order."""

    def delete(self, name: str) -> None:
        """Remove a file if it is there."""


class System(Protocol):
    """The calls of `os` that a local folder consists of; a simulator has its own, and loses what they did not make durable."""

    def makedirs(self, name: str, *, exist_ok: bool) -> None: ...  # noqa: D102
    def listdir(self, path: str) -> list[str]: ...  # noqa: D102
    def open(self, path: str, flags: int, mode: int = ...) -> int: ...  # noqa: D102
    def read(self, fd: int, length: int, /) -> bytes: ...  # noqa: D102
    def write(self, fd: int, data: memoryview, /) -> int: ...  # noqa: D102
    def fstat(self, fd: int) -> Any: ...  # noqa: D102
    def fsync(self, fd: int) -> None: ...  # noqa: D102
    def close(self, fd: int) -> None: ...  # noqa: D102
    def replace(self, src: str, dst: str) -> None: ...  # noqa: D102
    def link(self, src: str, dst: str) -> None: ...  # noqa: D102
    def unlink(self, path: str) -> None: ...  # noqa: D102
    def urandom(self, size: int, /) -> bytes: ...  # noqa: D102


class LocalFiles:
    """A local folder. ``durable`` syncs file and folder on every write; a replay, which can run again, does not.

    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> from paramserver.files import LocalFiles
    >>> with TemporaryDirectory() as folder:
    ...     files = LocalFiles(Path(folder), durable=True)
    ...     files.create("version-1", b"whole or absent")
    ...     files.names(), files.read("version-1")
    (['version-1'], b'whole or absent')
    """

    def __init__(self, folder: Path, *, durable: bool, system: System = os) -> None:
        self._folder = str(folder)
        self._durable = durable
        self._os = system
        system.makedirs(self._folder, exist_ok=True)

    def write(self, name: str, data: bytes) -> None:
        """Put a file in place at once, replacing one of the same name."""
        aside = self._write_aside(name, data)
        try:
            self._os.replace(aside, f"{self._folder}/{name}")
        except OSError:
            with suppress(OSError):
                self._os.unlink(aside)
            raise
        if self._durable:
            self._sync_folder()

    def create(self, name: str, data: bytes) -> None:
        """Put a file in place at once; ``FileExistsError`` where one of the same name is there. Of two writers one succeeds."""
        aside = self._write_aside(name, data)
        try:
            self._os.link(aside, f"{self._folder}/{name}")
        finally:
            self._os.unlink(aside)
        if self._durable:
            self._sync_folder()

    def _write_aside(self, name: str, data: bytes) -> str:
        """Write a file under a name that is this call's alone: in two containers both processes may be number 1."""
        path = f"{self._folder}/{name}.{self._os.urandom(_TOKEN_BYTES).hex()}{_TEMPORARY}"
        descriptor = self._os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            view = memoryview(data)
            while view:
                view = view[self._os.write(descriptor, view) :]
            if self._durable:
                self._os.fsync(descriptor)
        except OSError:  # a disk that is full needs the room
            with suppress(OSError):
                self._os.unlink(path)
            raise
        finally:
            self._os.close(descriptor)
        return path

    def read(self, name: str) -> bytes:
        """The bytes of a file; ``FileNotFoundError`` where it is not."""
        descriptor = self._os.open(f"{self._folder}/{name}", os.O_RDONLY)
        try:
            size = self._os.fstat(descriptor).st_size
            data = self._os.read(descriptor, size)
            while len(data) < size and (more := self._os.read(descriptor, size - len(data))):  # beyond 2 GiB
                data += more
            return data
        finally:
            self._os.close(descriptor)

    def names(self) -> list[str]:
        """The names of all files, in no order."""
        return [name for name in self._os.listdir(self._folder) if not name.endswith(_TEMPORARY)]

    def delete(self, name: str) -> None:
        """Remove a file if it is there."""
        with suppress(FileNotFoundError):
            self._os.unlink(f"{self._folder}/{name}")

    def _sync_folder(self) -> None:
        descriptor = self._os.open(self._folder, os.O_RDONLY)
        try:
            self._os.fsync(descriptor)
        finally:
            self._os.close(descriptor)


def remove_half_written(folder: Path) -> None:
    """Remove what writers in a folder of `LocalFiles` left half written when they were killed, once it is an hour old.

    For the owner of the folder. Others may be writing in it, perhaps from a machine whose processes we cannot see.
    """
    for path in folder.iterdir():
        with suppress(FileNotFoundError):
            if _HALF_WRITTEN.search(path.name) and time.time() - path.stat().st_mtime > _HALF_WRITTEN_SECONDS:
                path.unlink()


class WriteBack:
    """Keeps the newest files in memory and writes them when they are pushed out, or at `flush`; what is deleted before never is.

    For a replay, whose deltas are folded into a base soon: creating three files a version takes longer than training on it.
    """

    def __init__(self, files: Files, budget_bytes: int) -> None:
        self._files = files
        self._budget_bytes = budget_bytes
        self._kept: dict[str, bytes] = {}
        self._written = set(files.names())
        self._bytes = 0

    def write(self, name: str, data: bytes) -> None:
        """Put a file in place at once, replacing one of the same name."""
        self._bytes += len(data) - len(self._kept.pop(name, b""))
        self._kept[name] = data
        while self._bytes > self._budget_bytes:
            self._push_out()

    def create(self, name: str, data: bytes) -> None:
        """Put a file in place at once; ``FileExistsError`` where one of the same name is there."""
        if name in self._kept or name in self._written:
            raise FileExistsError(name)
        self.write(name, data)

    def read(self, name: str) -> bytes:
        """The bytes of a file; ``FileNotFoundError`` where it is not."""
        kept = self._kept.get(name)
        if kept is not None:
            return kept
        if name not in self._written:  # a follower asks for the next version until it is not there
            raise FileNotFoundError(name)
        return self._files.read(name)

    def names(self) -> list[str]:
        """The names of all files, in no order."""
        return list({*self._written, *self._kept})

    def delete(self, name: str) -> None:
        """Remove a file if it is there."""
        self._bytes -= len(self._kept.pop(name, b""))
        if name in self._written:
            self._files.delete(name)
            self._written.discard(name)

    def flush(self) -> None:
        """Write what is still in memory, in the order in which it came."""
        while self._kept:
            self._push_out()

    def _push_out(self) -> None:
        name, data = next(iter(self._kept.items()))
        self._files.write(name, data)
        self._written.add(name)
        del self._kept[name]
        self._bytes -= len(data)
