"""A simulated disk with one folder, below `LocalFiles`: what is not synced is lost or torn when the machine goes down.

Changes of names survive in their order, as in a file system's journal. Bytes do not: a file that was renamed before it was synced
may come back empty or cut off.
"""

from __future__ import annotations

import errno
import os
import random
from types import SimpleNamespace
from typing import Any

from tests.simulation.process import Process


class _Inode:
    def __init__(self) -> None:
        self.data = bytearray()
        self.synced: bytes | None = None


class Disk:
    """A disk; ``full`` makes writes fail, some of them after a part of the bytes."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.names: dict[str, _Inode] = {}
        self._durable: dict[str, _Inode] = {}
        self._unsynced: list[tuple[str, _Inode | None]] = []
        self.full = False
        self.tokens = random.Random(0)

    def set(self, name: str, inode: _Inode | None) -> None:
        if inode is None:
            del self.names[name]
        else:
            self.names[name] = inode
        self._unsynced.append((name, inode))

    def sync_names(self) -> None:
        self._apply(len(self._unsynced))

    def _apply(self, count: int) -> None:
        for name, inode in self._unsynced[:count]:
            if inode is None:
                self._durable.pop(name, None)
            else:
                self._durable[name] = inode
        self._unsynced = []

    def lose_power(self) -> None:
        self._apply(self.rng.randint(0, len(self._unsynced)))
        self.names = dict(self._durable)
        for inode in self.names.values():
            if inode.synced is None or len(inode.synced) < len(inode.data):
                kept = self.rng.randint(len(inode.synced or b""), len(inode.data))
                inode.data = inode.data[: self.rng.choice([0, kept, kept])]
            inode.synced = bytes(inode.data)


class DiskOf:
    """`System` as one process sees it; ``flaky`` is the chance that a read fails or comes short."""

    def __init__(self, disk: Disk, process: Process) -> None:
        self._disk = disk
        self._process = process
        self._files: dict[int, tuple[_Inode | None, int]] = {}
        self._next = 3
        self.flaky = 0.0
        self.failed = False
        """Whether a read failed or came short since this was last set."""

    def makedirs(self, name: str, *, exist_ok: bool) -> None:
        self._process.touch("makedirs")

    def listdir(self, path: str) -> list[str]:
        self._process.touch("list the folder")
        names = list(self._disk.names)
        return names if self._disk.rng.random() < 0.5 else names[::-1]

    def open(self, path: str, flags: int, mode: int = 0o777) -> int:
        name = _name(path)
        self._process.touch(f"open {name}")
        if flags & os.O_CREAT:
            self._fail_if_full(0.1)
            inode = self._disk.names.get(name)
            if inode is None:
                inode = _Inode()
                self._disk.set(name, inode)
            elif flags & os.O_EXCL:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        elif name == "":
            inode = None
        else:
            inode = self._disk.names.get(name)
            if inode is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        self._next += 1
        self._files[self._next] = (inode, 0)
        return self._next

    def fstat(self, fd: int) -> Any:
        inode, _ = self._files[fd]
        assert inode is not None
        return SimpleNamespace(st_size=len(inode.data))

    def read(self, fd: int, length: int, /) -> bytes:
        self._process.touch("read")
        inode, at = self._files[fd]
        assert inode is not None
        if self.flaky and self._disk.rng.random() < self.flaky:
            self.failed = True
            if self._disk.rng.random() < 0.5:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            length = 0
        self._files[fd] = (inode, at + length)
        return bytes(inode.data[at : at + length])

    def write(self, fd: int, data: memoryview, /) -> int:
        self._process.touch("write")
        inode, _ = self._files[fd]
        assert inode is not None
        rng = self._disk.rng
        if self._disk.full:
            if len(data) > 1 and rng.random() < 0.5:
                part = data[: rng.randrange(1, len(data))]
                inode.data += part
                return len(part)
            self._fail_if_full(1)
        if len(data) > 1 and rng.random() < 0.02:
            data = data[: rng.randrange(1, len(data))]
        inode.data += data
        return len(data)

    def fsync(self, fd: int) -> None:
        self._process.touch("sync")
        inode, _ = self._files[fd]
        if inode is None:
            self._disk.sync_names()
        else:
            inode.synced = bytes(inode.data)

    def close(self, fd: int) -> None:
        del self._files[fd]

    def replace(self, src: str, dst: str) -> None:
        self._process.touch(f"rename to {_name(dst)}")
        inode = self._disk.names[_name(src)]
        self._disk.set(_name(src), None)
        self._disk.set(_name(dst), inode)

    def link(self, src: str, dst: str) -> None:
        self._process.touch(f"link {_name(dst)}")
        if _name(dst) in self._disk.names:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), dst)
        self._fail_if_full(0.2)
        self._disk.set(_name(dst), self._disk.names[_name(src)])

    def unlink(self, path: str) -> None:
        self._process.touch(f"delete {_name(path)}")
        if _name(path) not in self._disk.names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        self._disk.set(_name(path), None)

    def urandom(self, size: int, /) -> bytes:
        return self._disk.tokens.randbytes(size)

    def _fail_if_full(self, chance: float) -> None:
        if self._disk.full and self._disk.rng.random() < chance:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _name(path: str) -> str:
    return path.partition("/")[2]
