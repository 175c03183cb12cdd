"""When the joiner looks at each request again: a heap for requests in memory, keys in RocksDB for those on disk."""

from __future__ import annotations

import heapq
import struct
from collections.abc import Callable

from streaming.join.store import JoinStore

NEVER = 2**62


class Timers:
    """Times (ms) at which requests are due. ``wakes_at`` returns that of a request in memory, -1 if gone, None if on disk.

    On disk, a timer is the key that `key` returns. The store writes and deletes it together with its request.
    """

    def __init__(self, wakes_at: Callable[[str], int | None]) -> None:
        self._wakes_at = wakes_at
        self._heap: list[tuple[int, str]] = []
        self._passed = b"t"
        """Where timers on disk begin. Before it are only deleted ones, which would slow down a search."""

    @staticmethod
    def key(at: int, request_id: bytes) -> bytes:
        """Return the key of a timer on disk."""
        return b"t" + struct.pack(">Q", at) + request_id

    def push(self, at: int, request_id: str) -> None:
        """Set the time of a request in memory. Its timers from earlier calls are void if ``wakes_at`` differs."""
        heapq.heappush(self._heap, (at, request_id))

    def stored(self, key: bytes) -> None:
        """Note that a timer was put on disk."""
        self._passed = min(self._passed, key)

    def evicted(self) -> None:
        """Drop the timers of requests that are now only on disk."""
        self._heap = [timer for timer in self._heap if self._is_live(timer)]
        heapq.heapify(self._heap)

    def take_due(self, before: int, limit: int, db: JoinStore | None) -> list[str]:
        """Return up to ``limit`` ids whose time is before ``before``, each once, including those in ``db`` if given."""
        ready: dict[str, None] = {}  # a request that came back from disk may be in the heap more than once
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
                # A request in memory has its timer there; one that is gone leaves the disk with the next write.
                if self._wakes_at(request_id) is None:
                    ready[request_id] = None
                cursor.next()
            cursor.status()
        return list(ready)

    def next_due(self, db: JoinStore | None) -> int:
        """Return the earliest time (ms) that `take_due` waits for, or `NEVER`."""
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
