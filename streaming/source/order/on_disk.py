"""Columns on disk that are used like columns in memory: written a piece at a time, then mapped.

The files are unlinked once they are mapped, so that nothing is left of them when the process ends, however it does.
"""

from __future__ import annotations

import contextlib
import mmap
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from streaming.features.columns import Column, Ids, Ragged

_NOTHING = np.zeros(1, np.int64)


class Mapped:
    """The mappings of one log. Only what is mapped holds a file open."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._maps: list[mmap.mmap] = []
        self._count = 0

    def create(self) -> Path:
        """Return the path of a new file."""
        self._count += 1
        return self._folder / f"column{self._count}"

    def map(self, path: Path) -> memoryview:
        """Return the contents of a file, and unlink it."""
        if not path.exists():
            return memoryview(b"")
        with path.open("rb") as file:
            path.unlink()
            # Nothing writes to it; but libraries warn of arrays that cannot be written to.
            found = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._maps.append(found)
        return memoryview(found)

    def release(self) -> None:
        """Give back the memory of what was read: whatever is used again is read again."""
        for each in self._maps:
            with contextlib.suppress(OSError):  # a system without it keeps the pages until it needs the room
                each.madvise(mmap.MADV_DONTNEED)


def _append(path: Path, values: Any) -> None:
    if len(values):
        with path.open("ab") as file:
            file.write(values)


class Array:
    """An array whose rows have one width, written in pieces."""

    def __init__(self, mapped: Mapped) -> None:
        self._mapped = mapped
        self._path = mapped.create()
        self._like: npt.NDArray[Any] = np.zeros(0, np.int64)

    def append(self, values: npt.NDArray[Any]) -> None:
        """Write rows behind those written before, which have the same type and width."""
        self._like = values[:0]
        _append(self._path, np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)

    def finish(self) -> npt.NDArray[Any]:
        """Return all rows."""
        found = np.frombuffer(self._mapped.map(self._path), self._like.dtype)
        return found.reshape(-1, *self._like.shape[1:])


class Texts:
    """Texts that are never null, written in pieces."""

    def __init__(self, mapped: Mapped) -> None:
        self._mapped = mapped
        self._offsets = Array(mapped)
        self._offsets.append(_NOTHING)
        self._values = mapped.create()
        self._count = self._end = 0

    def append(self, texts: pa.Array) -> None:
        """Write texts behind those written before."""
        texts = texts.cast(pa.large_string())
        _, offsets, values = texts.buffers()
        found = np.frombuffer(offsets, np.int64)[texts.offset : texts.offset + len(texts) + 1]
        self._offsets.append(found[1:] - found[0] + self._end)
        if values is not None:
            _append(self._values, memoryview(values)[found[0] : found[-1]])
        self._count += len(texts)
        self._end += int(found[-1] - found[0])

    def finish(self) -> pa.Array:
        """Return all texts."""
        offsets, values = self._offsets.finish(), self._mapped.map(self._values)
        return pa.LargeStringArray.from_buffers(self._count, pa.py_buffer(offsets), pa.py_buffer(values))


class FeatureColumn:
    """A feature's column, written in pieces."""

    def __init__(self, mapped: Mapped) -> None:
        self._values = Array(mapped)
        self._offsets = Array(mapped)
        self._end: int | None = None

    def append(self, column: Column) -> None:
        """Write the values of more impressions."""
        if not isinstance(column, Ragged):
            self._values.append(column)
            return
        if self._end is None:
            self._end = 0
            self._offsets.append(_NOTHING)
        self._offsets.append(column.offsets[1:] - column.offsets[0] + self._end)
        self._values.append(column.values[column.offsets[0] : column.offsets[-1]])
        self._end += int(column.offsets[-1] - column.offsets[0])

    def finish(self) -> Column:
        """Return all values."""
        values: Ids = self._values.finish()
        offsets: Ids = self._offsets.finish()
        return values if self._end is None else Ragged(offsets, values)
