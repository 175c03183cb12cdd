"""The joiner's state: one record a request, in memory up to a budget and in RocksDB beyond it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import msgspec
from rocksdict import Rdict, WriteBatch

from streaming.join.timers import NEVER, Timers
from streaming.records.events import Request

OVERHEAD_BYTES = 1024
"""What a pending request costs in memory besides its features, measured with one impression of 11 features."""


DROPPED = 255
"""In ``emitted``: a negative that sampling dropped."""


class Pending(msgspec.Struct, array_like=True, gc=False):
    """What is known of one request; times in ms of event time.

    Before the request itself has arrived, ``served_at`` is -1 and ``waiting`` holds its engagements as they came
    (offset, payload). ``emitted`` holds a byte an impression: 0 while it is open, else how often it is in `examples`, which
    is its last revision plus 1, or `DROPPED`. Once every impression is emitted, ``request`` is None, unless late events correct
    examples, and the rest stays as the marker that repeated and late events are recognised by.
    """

    wake_at: int = NEVER
    served_at: int = -1
    request: Request | None = None
    impression_ids: list[str] = []
    emitted: bytearray = msgspec.field(default_factory=bytearray)
    events: dict[int, list[tuple[int, str, float]]] = {}
    waiting: list[tuple[int, bytes]] = []


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Pending).decode


class PendingRequests(Protocol):
    """What the joiner needs of its state."""

    def get(self, request_id: str) -> Pending | None:
        """The entry; changes made to it stay, once `add`, `wake` or `shrink` told of them."""

    def add(self, request_id: str, pending: Pending, grown_bytes: int) -> None:
        """Put in an entry, or tell that one which is there grew by ``grown_bytes`` of payload."""

    def shrink(self, request_id: str) -> None:
        """Tell that an entry gave its payload away."""

    def wake(self, request_id: str, pending: Pending, at: int) -> None:
        """Make `due` return the entry when ``at`` (ms) has passed, or earlier where that was asked for before."""

    def due(self, before: int, limit: int) -> list[str]:
        """Up to ``limit`` ids whose time is before ``before`` (ms); `get` each and `wake` it anew."""

    def next_due(self) -> int:
        """The earliest time (ms) that `due` waits for, or `NEVER`."""

    def drop(self, request_id: str) -> None:
        """Forget an entry that `get` returned."""


class PendingStore:
    """Pending requests by id, with the times at which they want to be looked at.

    ``open_db`` opens the RocksDB that takes what ``memory_bytes`` does not hold, in raw mode; it is called at the first
    spill. Every entry lives in exactly one of the two.
    """

    def __init__(self, memory_bytes: int, open_db: Callable[[], Rdict]) -> None:
        self._memory_bytes = memory_bytes
        self._open_db = open_db
        self._db: Rdict | None = None
        self._entries: dict[str, tuple[Pending, int]] = {}
        self._bytes = 0
        self._timers = Timers(self._wakes_at)
        self.spilled = 0

    def __len__(self) -> int:
        return len(self._entries) + self.spilled

    def get(self, request_id: str) -> Pending | None:
        """The entry, brought into memory; changes made to it stay."""
        entry = self._entries.get(request_id)
        if entry is not None:
            return entry[0]
        if self._db is None or not self.spilled:
            return None
        packed = self._db.get(b"p" + request_id.encode())
        return None if packed is None else self._load(request_id, packed)

    def add(self, request_id: str, pending: Pending, grown_bytes: int) -> None:
        """Put in an entry, or tell that one which is there grew by ``grown_bytes`` of payload."""
        old = self._entries.pop(request_id, None)
        size = grown_bytes + (old[1] if old else OVERHEAD_BYTES)
        self._entries[request_id] = (pending, size)
        self._bytes += size - (old[1] if old else 0)
        if self._bytes > self._memory_bytes:
            self._spill()

    def shrink(self, request_id: str) -> None:
        """Tell that an entry in memory gave its payload away."""
        pending, size = self._entries[request_id]
        self._entries[request_id] = (pending, OVERHEAD_BYTES)
        self._bytes -= size - OVERHEAD_BYTES

    def wake(self, request_id: str, pending: Pending, at: int) -> None:
        """Make `due` return the entry when ``at`` has passed, or earlier where that was asked for before."""
        if at < pending.wake_at:
            pending.wake_at = at
            self._timers.push(at, request_id)

    def due(self, before: int, limit: int) -> list[str]:
        """Up to ``limit`` ids whose time is before ``before``, in order of time; `get` each and `wake` it anew."""
        return self._timers.due(before, limit, self._db if self.spilled else None)

    def next_due(self) -> int:
        """The earliest time (ms) that `due` waits for, or `NEVER`."""
        return self._timers.next_due(self._db if self.spilled else None)

    def _wakes_at(self, request_id: str) -> int | None:
        entry = self._entries.get(request_id)
        return None if entry is None else entry[0].wake_at

    def drop(self, request_id: str) -> None:
        """Forget an entry that `get` or `due` returned."""
        self._bytes -= self._entries.pop(request_id)[1]

    def close(self) -> None:
        """Close the database, if one was opened."""
        if self._db is not None:
            self._db.close()

    def _spill(self) -> None:
        """Move the half of memory that was touched first to the database, in one batch; the timers go along."""
        if self._db is None:
            self._db = self._open_db()
        batch = WriteBatch(raw_mode=True)
        moved = 0
        for request_id in list(self._entries):
            if self._bytes <= self._memory_bytes // 2 or len(self._entries) == 1:
                break
            pending, size = self._entries.pop(request_id)
            self._bytes -= size
            key = request_id.encode()
            batch.put(b"p" + key, _encode(pending))
            timer = Timers.key(pending.wake_at, key)
            self._timers.stored(timer)
            batch.put(timer, b"")
            moved += 1
        self._db.write(batch)
        self.spilled += moved
        self._timers.evicted()

    def _load(self, request_id: str, packed: Any) -> Pending:
        assert self._db is not None
        pending = _decode(packed)
        key = request_id.encode()
        batch = WriteBatch(raw_mode=True)
        batch.delete(b"p" + key)
        batch.delete(Timers.key(pending.wake_at, key))
        self._db.write(batch)
        self.spilled -= 1
        self._timers.push(pending.wake_at, request_id)
        self.add(request_id, pending, len(packed))
        return pending
