"""Where published files live. A local folder here; what uses it takes any `Files`, so that a simulator can break them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol


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


class LocalFiles:
    """A local folder. ``durable`` syncs file and folder on every write; a replay, which can run again, does not."""

    _TEMPORARY = ".tmp"

    def __init__(self, folder: Path, *, durable: bool) -> None:
        self._folder = str(folder)
        self._durable = durable
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, name: str, data: bytes) -> None:
        """Put a file in place at once, replacing one of the same name."""
        os.replace(self._write_aside(name, data), f"{self._folder}/{name}")  # noqa: PTH105 - a Path costs more than the call
        if self._durable:
            self._sync_folder()

    def create(self, name: str, data: bytes) -> None:
        """Put a file in place at once; ``FileExistsError`` where one of the same name is there. Of two writers one succeeds."""
        aside = self._write_aside(name, data)
        try:
            os.link(aside, f"{self._folder}/{name}")
        finally:
            os.unlink(aside)  # noqa: PTH108 - as above
        if self._durable:
            self._sync_folder()

    def _write_aside(self, name: str, data: bytes) -> str:
        """Write a file under a name that is this process's alone."""
        path = f"{self._folder}/{name}.{os.getpid()}{self._TEMPORARY}"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            if self._durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return path

    def read(self, name: str) -> bytes:
        """The bytes of a file; ``FileNotFoundError`` where it is not."""
        with open(f"{self._folder}/{name}", "rb", buffering=0) as file:  # noqa: PTH123 - as above
            return file.readall()

    def names(self) -> list[str]:
        """The names of all files, in no order."""
        return [name for name in os.listdir(self._folder) if not name.endswith(self._TEMPORARY)]  # noqa: PTH208

    def delete(self, name: str) -> None:
        """Remove a file if it is there."""
        Path(self._folder, name).unlink(missing_ok=True)

    def _sync_folder(self) -> None:
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


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
