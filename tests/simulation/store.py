"""The joiner's store in memory: what a process wrote stays when it dies; a machine that loses power forgets the newest batches."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections import deque
from typing import Any

from tests.simulation.process import Process

_LOST_AT_MOST = 6
_LARGEST = 14_000
"""Bytes of a value: the largest request has 10,000, and 6,000 of engagements may wait for one."""


class StoreFolder:
    """What is on disk."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.undo: deque[dict[bytes, bytes | None]] = deque(maxlen=_LOST_AT_MOST)
        self.order: list[bytes] | None = None

    def apply(self, changes: dict[bytes, bytes | None]) -> None:
        undo = {key: self.values.get(key) for key in changes}
        for key, value in changes.items():
            if value is None:
                self.values.pop(key, None)
            else:
                self.values[key] = value
        self.undo.append(undo)
        self.order = None

    def lose_power(self, rng: random.Random) -> None:
        for _ in range(rng.randint(0, len(self.undo))):
            undo = self.undo.pop()
            self.apply(undo)
            self.undo.pop()


class _Batch:
    def __init__(self) -> None:
        self.changes: dict[bytes, bytes | None] = {}

    def put(self, key: bytes, value: bytes) -> None:
        self.changes[key] = value

    def delete(self, key: bytes) -> None:
        self.changes[key] = None


class _Cursor:
    def __init__(self, order: list[bytes]) -> None:
        self._order = order
        self._at = 0

    def seek(self, key: bytes) -> None:
        self._at = bisect_left(self._order, key)

    def valid(self) -> bool:
        return self._at < len(self._order)

    def key(self) -> bytes:
        return self._order[self._at]

    def next(self) -> None:
        self._at += 1

    def status(self) -> None: ...


class Store:
    """`JoinStore` as one process has it open."""

    def __init__(self, folder: StoreFolder, process: Process) -> None:
        self._folder = folder
        self._process = process

    def get(self, key: Any) -> Any:
        values = self._folder.values
        return [values.get(one) for one in key] if isinstance(key, list) else values.get(key)

    def batch(self) -> _Batch:
        return _Batch()

    def write(self, batch: _Batch) -> None:
        self._process.touch("write the state")
        size = max((len(value or b"") for value in batch.changes.values()), default=0)
        assert size <= _LARGEST, f"a value of {size} bytes; allowed: {_LARGEST}"
        self._folder.apply(batch.changes)

    def iter(self) -> _Cursor:
        if self._folder.order is None:
            self._folder.order = sorted(self._folder.values)
        return _Cursor(self._folder.order)

    def delete_range(self, begin: bytes, end: bytes) -> None:
        self._process.touch("forget what was emitted")
        self._folder.apply({key: None for key in self._folder.values if begin <= key < end})

    def clear(self) -> None:
        self._process.touch("discard the state")
        self._folder.__init__()  # type: ignore[misc]

    def close(self) -> None:
        pass

    def is_damage(self, error: Exception) -> bool:
        return False
