"""When to look at which request: a heap for those in memory, keys in RocksDB for those on disk."""

from __future__ import annotations

import heapq
import struct
from collections.abc import Callable
from typing import Protocol

from streaming.join.store import Cursor

NEVER = 2**62


class Ordered(Protocol):
    """Where keys are in order."""

    def iter(self) -> Cursor:
        """A cursor over them."""


class Timers:
    """Times (ms) and request ids. ``wakes_at`` gives the time of one in memory, -1 where it is gone, None where it is on disk.

    On disk a timer is the key `key` gives; the store writes and deletes it together with what it wakes.
    """

    def __init__(self, wakes_at: Callable[[str], int | None]) -> None:
        self._wakes_at = wakes_at
        self._heap: list[tuple[int, str]] = []
        self._passed = b"t"
        """Where timers on disk begin; before it there are only those that went, which a search would wade through."""

    @staticmethod
    def key(at: int, request_id: bytes) -> bytes:
        """The key of a timer on disk."""
        return b"t" + struct.pack(">Q", at) + request_id

    def push(self, at: int, request_id: str) -> None:
        """One in memory is to be woken at ``at``; earlier calls for it are void where ``wakes_at`` differs."""
        heapq.heappush(self._heap, (at, request_id))

    def stored(self, key: bytes) -> None:
        """A timer was put on disk."""
        self._passed = min(self._passed, key)

    def evicted(self) -> None:
        """Some are on disk only now."""
        self._heap = [timer for timer in self._heap if self._is_live(timer)]
        heapq.heapify(self._heap)

    def due(self, before: int, limit: int, db: Ordered | None) -> list[str]:
        """Up to ``limit`` ids whose time is before ``before``, each once; those of ``db`` where there is one."""
        ready: dict[str, None] = {}  # one that came back from disk may stand in the heap twice
        while self._heap and self._heap[0][0] < before and len(ready) < limit:
            timer = heapq.heappop(self._heap)
            if self._is_live(timer):
                ready[timer[1]] = None
        if db is not None and len(ready) < limit:
            cursor = db.iter()
            cursor.seek(self._passed)
            end = self.key(max(before, 0), b"")
            while cursor.valid() and (key := cursor.key()) < end and len(ready) < limit:
                self._passed = key + b"\0"
                request_id = key[9:].decode()
                # What is in memory has its timer there, and what is gone leaves the disk with the next write.
                if self._wakes_at(request_id) is None:
                    ready[request_id] = None
                cursor.next()
            cursor.status()
        return list(ready)

    def next_due(self, db: Ordered | None) -> int:
        """The earliest time (ms) that `due` waits for, or `NEVER`."""
        while self._heap and not self._is_live(self._heap[0]):
            heapq.heappop(self._heap)
        earliest = self._heap[0][0] if self._heap else NEVER
        if db is not None:
            cursor = db.iter()
            cursor.seek(self._passed)
            while cursor.valid() and (key := cursor.key())[:1] == b"t":
                if self._wakes_at(key[9:].decode()) is None:
                    earliest = min(earliest, struct.unpack(">Q", key[1:9])[0])
                    break
                cursor.next()
            cursor.status()
        return earliest

    def _is_live(self, timer: tuple[int, str]) -> bool:
        return self._wakes_at(timer[1]) == timer[0]
