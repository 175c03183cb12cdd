"""One partition's joiner state that outlives its process: pending requests, how far it read, and what it has not sent yet.

Everything that one batch of input changes is one RocksDB write batch. It is not synced: a process that dies loses
nothing by that, and a machine that dies comes back with an older sequence, which is noticed and rebuilt.

Keys: ``h`` the head, ``o`` the outbox, ``p<request>`` what changes of a request, ``r<request>`` its record, written once,
``t<time><request>`` when to look at it, ``e<impression>`` an emitted impression, only while state is rebuilt.
"""

from __future__ import annotations

import heapq
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from streaming.events import Request, encode
from streaming.join_store import Batch, JoinStore, RocksStore
from streaming.pending import NEVER, OVERHEAD_BYTES, Pending


class Cut(NamedTuple):
    """A point in the inputs: no record before these offsets has an event time after ``newest`` (ms)."""

    newest: int
    impressions: int
    engagements: int
    examples: int


class Head(msgspec.Struct, array_like=True):
    """What the state is of. ``sequence`` grows by one with every write batch; times in ms of event time.

    ``told`` is the watermark up to which everything is in `examples`; ``watermark`` is ahead of it while more is due than one batch
    takes. ``pending`` counts requests.
    """

    state_id: str
    sequence: int
    watermark: int
    told: int
    offsets: dict[str, int]
    newest: dict[str, int]
    cuts: list[Cut]
    pending: int = 0


class Outgoing(msgspec.Struct, array_like=True):
    """A record to send."""

    topic: str
    value: bytes


class _Small(msgspec.Struct, array_like=True):
    """What changes of a request, and the marker that is left of it; see `Pending`."""

    wake_at: int
    served_at: int
    has_request: bool
    impression_ids: list[str]
    emitted: bytes
    events: dict[int, list[tuple[int, str, float]]]
    waiting: list[tuple[int, bytes]]


class _Entry(msgspec.Struct, gc=False):
    pending: Pending
    size: int
    stored_wake: int = -1
    """The time that its key on disk has; -1 where it is not on disk."""
    request_stored: bool = False


_small = msgspec.msgpack.Decoder(_Small)
_request = msgspec.msgpack.Decoder(Request)
_head = msgspec.msgpack.Decoder(Head)
_outbox = msgspec.msgpack.Decoder(list[Outgoing])


class JoinState:
    """`PendingRequests` over RocksDB: up to ``memory_bytes`` of requests also stay in memory.

    What the joiner changes is in memory until `write` puts it on disk, whole. ``head`` is None in a new folder.
    """

    def __init__(self, folder: Path, memory_bytes: int, open_store: Callable[[Path], JoinStore] = RocksStore) -> None:
        self._memory_bytes = memory_bytes
        self._db = open_store(folder)
        self._clear()
        packed: Any = self._db.get(b"h")
        self.head: Head | None = None if packed is None else _head.decode(packed)
        self._on_disk = self.head.pending if self.head else 0

    def _clear(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._dropped: dict[str, _Entry] = {}
        self._dirty: set[str] = set()
        self._bytes = 0
        self._timers: list[tuple[int, str]] = []
        self._passed = b"t"
        self._on_disk = 0

    def __len__(self) -> int:
        return len(self._entries) + self._on_disk

    @property
    def outbox(self) -> list[Outgoing]:
        """What the last write batch wanted sent."""
        packed: Any = self._db.get(b"o")
        return [] if packed is None else _outbox.decode(packed)

    def get(self, request_id: str) -> Pending | None:
        """The entry, brought into memory."""
        entry = self._entries.get(request_id)
        if entry is not None:
            return entry.pending
        if not self._on_disk or request_id in self._dropped:
            return None
        packed: Any = self._db.get(b"p" + request_id.encode())
        return None if packed is None else self._load(request_id, packed)

    def add(self, request_id: str, pending: Pending, grown_bytes: int) -> None:
        """Put in an entry, or tell that one which is there grew by ``grown_bytes`` of payload."""
        entry = self._entries.pop(request_id, None)
        if entry is None:
            entry = _Entry(pending, OVERHEAD_BYTES)
            self._bytes += OVERHEAD_BYTES
        entry.size += grown_bytes
        self._bytes += grown_bytes
        self._entries[request_id] = entry
        self._dirty.add(request_id)

    def shrink(self, request_id: str) -> None:
        """Tell that an entry gave its payload away."""
        entry = self._entries[request_id]
        self._bytes -= entry.size - OVERHEAD_BYTES
        entry.size = OVERHEAD_BYTES
        self._dirty.add(request_id)

    def wake(self, request_id: str, pending: Pending, at: int) -> None:
        """Make `due` return the entry when ``at`` has passed, or earlier where that was asked for before."""
        if at < pending.wake_at:
            pending.wake_at = at
            heapq.heappush(self._timers, (at, request_id))
            self._dirty.add(request_id)

    def due(self, before: int, limit: int) -> list[str]:
        """Up to ``limit`` ids whose time is before ``before``; `get` each and `wake` it anew."""
        ready: list[str] = []
        while self._timers and self._timers[0][0] < before and len(ready) < limit:
            timer = heapq.heappop(self._timers)
            if self._is_live(timer):
                self._entries[timer[1]].pending.wake_at = NEVER
                ready.append(timer[1])
        if self._on_disk and len(ready) < limit:
            cursor = self._db.iter()
            cursor.seek(self._passed)
            end = b"t" + struct.pack(">Q", max(before, 0))
            while cursor.valid() and (key := cursor.key()) < end and len(ready) < limit:
                self._passed = key + b"\0"
                request_id = key[9:].decode()
                # What is in memory has its timer there, and what was dropped leaves the disk with the next write.
                if request_id not in self._entries and request_id not in self._dropped:
                    ready.append(request_id)
                cursor.next()
        return ready

    def next_due(self) -> int:
        """The earliest time (ms) that `due` waits for, or `NEVER`."""
        while self._timers and not self._is_live(self._timers[0]):
            heapq.heappop(self._timers)
        earliest = self._timers[0][0] if self._timers else NEVER
        if self._on_disk:
            cursor = self._db.iter()
            cursor.seek(self._passed)
            if cursor.valid() and cursor.key()[:1] == b"t":
                earliest = min(earliest, struct.unpack(">Q", cursor.key()[1:9])[0])
        return earliest

    def drop(self, request_id: str) -> None:
        """Forget an entry that `get` returned."""
        entry = self._entries.pop(request_id)
        self._bytes -= entry.size
        self._dirty.discard(request_id)
        if entry.stored_wake >= 0:
            self._dropped[request_id] = entry

    def write(self, head: Head, outbox: Sequence[Outgoing]) -> None:
        """Put everything that changed since the last write on disk, with the head and the outbox, at once."""
        batch = self._db.batch()
        for request_id, entry in self._dropped.items():
            key = request_id.encode()
            batch.delete(b"p" + key)
            batch.delete(_timer_key(entry.stored_wake, key))
            if entry.request_stored:
                batch.delete(b"r" + key)
        for request_id in self._dirty:
            found = self._entries.get(request_id)
            if found is not None:
                self._store(batch, request_id.encode(), found)
        head.pending = len(self)
        batch.put(b"h", encode(head))
        batch.put(b"o", encode(outbox))
        self._db.write(batch)
        self.head = head
        self._dropped.clear()
        self._dirty.clear()
        if self._bytes > self._memory_bytes:
            self._evict()

    def note_emitted(self, impression_ids: Sequence[str]) -> None:
        """While state is rebuilt: these impressions are in `examples`."""
        batch = self._db.batch()
        for impression_id in impression_ids:
            batch.put(b"e" + impression_id.encode(), b"")
        self._db.write(batch)

    def known_emitted(self, impression_ids: list[str]) -> bytearray:
        """Which of these `note_emitted` was told of, 1 or 0 each."""
        found: Any = self._db.get([b"e" + impression_id.encode() for impression_id in impression_ids])
        return bytearray(value is not None for value in found)

    def forget_emitted(self) -> None:
        """The state is rebuilt."""
        self._db.delete_range(b"e", b"f")

    def discard(self) -> None:
        """Begin anew with an empty folder."""
        self._db.clear()
        self._clear()
        self.head = None

    def close(self) -> None:
        """Close the folder; what was not written is gone."""
        self._db.close()

    def _is_live(self, timer: tuple[int, str]) -> bool:
        entry = self._entries.get(timer[1])
        return entry is not None and entry.pending.wake_at == timer[0]

    def _store(self, batch: Batch, key: bytes, entry: _Entry) -> None:
        pending = entry.pending
        request = pending.request
        small = _Small(
            pending.wake_at,
            pending.served_at,
            request is not None,
            [] if request is not None else pending.impression_ids,
            bytes(pending.emitted),
            pending.events,
            pending.waiting,
        )
        batch.put(b"p" + key, encode(small))
        if entry.stored_wake != pending.wake_at:
            if entry.stored_wake >= 0:
                batch.delete(_timer_key(entry.stored_wake, key))
            timer = _timer_key(pending.wake_at, key)
            batch.put(timer, b"")
            self._passed = min(self._passed, timer)
            entry.stored_wake = pending.wake_at
        if request is not None and not entry.request_stored:
            batch.put(b"r" + key, encode(request))
            entry.request_stored = True
        elif request is None and entry.request_stored:
            batch.delete(b"r" + key)
            entry.request_stored = False

    def _load(self, request_id: str, packed: bytes) -> Pending:
        small = _small.decode(packed)
        record: Any = self._db.get(b"r" + request_id.encode()) if small.has_request else None
        request = None if record is None else _request.decode(record)
        pending = Pending(
            wake_at=small.wake_at,
            served_at=small.served_at,
            request=request,
            impression_ids=small.impression_ids if request is None else request.impression_ids,
            emitted=bytearray(small.emitted),
            events=small.events,
            waiting=small.waiting,
        )
        size = OVERHEAD_BYTES + len(packed) + len(record or b"")
        self._entries[request_id] = _Entry(pending, size, small.wake_at, small.has_request)
        self._bytes += size
        self._on_disk -= 1
        heapq.heappush(self._timers, (pending.wake_at, request_id))
        return pending

    def _evict(self) -> None:
        """Let the half of memory that was touched first be on disk only; everything is there after a write."""
        for request_id in list(self._entries):
            if self._bytes <= self._memory_bytes // 2:
                break
            self._bytes -= self._entries.pop(request_id).size
            self._on_disk += 1
        live = self._entries
        self._timers = [timer for timer in self._timers if timer[1] in live]
        heapq.heapify(self._timers)


def _timer_key(at: int, request_id: bytes) -> bytes:
    return b"t" + struct.pack(">Q", at) + request_id
