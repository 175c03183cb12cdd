"""One partition's joiner state that outlives its process: pending requests and offsets.

On disk is the whole state after one of the transactions: each write is one RocksDB batch with all changes since the last write. It
is not synced. A process that dies loses no write; a machine that dies comes back with an older state, from which recovery works
as well.

Keys and values: docs/state-format.md.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from streaming.join.head import STATE_VERSION, Head
from streaming.join.pending import ID_BYTES, OVERHEAD_BYTES, WAITING_BYTES, Pending
from streaming.join.sent import Sent
from streaming.join.store import Batch, JoinStore, RocksStore
from streaming.join.timers import Timers
from streaming.records.events import Request, encode


class _Changing(msgspec.Struct, array_like=True):
    """The part of a request that changes, or the marker that is left of it; see `Pending`."""

    wake_at: int
    served_at: int
    has_request: bool
    impression_ids: list[str]
    emitted: bytes
    events: dict[int, list[tuple[int, str, float]]]
    waiting: list[tuple[int, bytes]]
    offset: int
    outdated: str
    digest: int


class _Entry(msgspec.Struct, gc=False):
    pending: Pending
    payload: int
    """The bytes of its records."""
    fixed: int = 0
    """The bytes that stay when those records are released."""
    ids: int = -1
    """The number of ids in ``fixed``."""
    record: int = 0
    """Bytes of ``payload`` that are on disk and not written again: the request's."""
    unwritten: int = 0
    """The bytes of its next write; 0 if it has not changed."""
    stored_wake: int = -1
    """The time in its key on disk; -1 if it is not on disk."""
    request_stored: bool = False


class _Gone(NamedTuple):
    """What a dropped entry still has on disk."""

    stored_wake: int
    request_stored: bool


_log = logging.getLogger("minutely.join")
UNWRITTEN_BYTES = 64 << 20
_GONE_BYTES = 300
"""Memory of a dropped entry until the drop is written to disk."""

_changing = msgspec.msgpack.Decoder(_Changing)
_request = msgspec.msgpack.Decoder(Request)
_head = msgspec.msgpack.Decoder(Head)


class JoinState:
    """Pending requests over RocksDB: up to ``memory_bytes`` of requests also stay in memory.

    Changes are in memory until `write` puts all of them on disk, which is due after ``unwritten_bytes``. ``head`` is that of the
    last write, None in a new folder.
    """

    def __init__(
        self,
        folder: Path,
        memory_bytes: int,
        open_store: Callable[[Path], JoinStore] = RocksStore,
        unwritten_bytes: int = UNWRITTEN_BYTES,
    ) -> None:
        self.memory_bytes = memory_bytes
        """May change at any time; the next `write` drops what is too much from memory."""
        self._unwritten_bytes = unwritten_bytes
        self._db = open_store(folder)
        try:
            self.reload()
        except Exception as error:  # rocksdict raises no narrower kind
            if not self.is_damage(error):
                raise
            _log.warning("%s is damaged, rebuilding it from the log: %s", folder, error)
            error.__traceback__ = None  # its frames hold a cursor, with which the files could not be reopened
            self.discard()

    def reload(self) -> None:
        """Go back to the last write."""
        packed: Any = self._db.get(b"head")
        self.head: Head | None = None if packed is None else _head_in(packed)
        self._entries: dict[str, _Entry] = {}
        self._dropped: dict[str, _Gone] = {}
        self._dirty: set[str] = set()
        self._bytes = self._unwritten = 0
        self._timers = Timers(self._wakes_at)
        self._on_disk = self.head.pending if self.head else 0
        self.sent = Sent(self._db)

    def __len__(self) -> int:
        return len(self._entries) + self._on_disk

    @property
    def must_write(self) -> bool:
        """Whether to call `write`: memory is used up, or there is enough to write."""
        return self.memory_is_full or self._unwritten > self._unwritten_bytes

    @property
    def memory_is_full(self) -> bool:
        """Whether memory is used up, which only `write` frees."""
        return self._bytes > self.memory_bytes

    def get(self, request_id: str) -> Pending | None:
        """Return the entry, after loading it into memory. Changes to it are kept once another method is called for
        it."""
        entry = self._entries.get(request_id)
        if entry is not None:
            return entry.pending
        if not self._on_disk or request_id in self._dropped:
            return None
        packed: Any = self._db.get(b"p" + request_id.encode())
        return None if packed is None else self._load(request_id, packed)

    def add(self, request_id: str, pending: Pending, grown_bytes: int) -> None:
        """Insert an entry, or note that an entry grew by ``grown_bytes`` of payload."""
        entry = self._entries.pop(request_id, None)
        if entry is None:
            entry = _Entry(pending, 0)
        if entry.ids != len(pending.impression_ids):
            self._bytes += _set_fixed(entry)
        entry.payload += grown_bytes
        self._bytes += grown_bytes
        self._entries[request_id] = entry
        self._changed(request_id, entry)

    def changed(self, request_id: str) -> None:
        """Note that an entry changed, and did not grow."""
        self._changed(request_id, self._entries[request_id])

    def outdate(self, request_id: str, problem: str) -> None:
        """Reduce a request to its marker, with the engagements that counted, since its schema is no longer taken."""
        pending = self._entries[request_id].pending
        pending.close()
        pending.request, pending.outdated = None, problem
        self.release_payload(request_id)

    def release_payload(self, request_id: str) -> None:
        """Note that an entry released its payload."""
        entry = self._entries[request_id]
        self._release_payload(entry)
        self._changed(request_id, entry)

    def wake(self, request_id: str, pending: Pending, at: int) -> None:
        """Make `take_due` return the entry when ``at`` (ms) has passed, or earlier if an earlier call asked for that."""
        if at < pending.wake_at:
            pending.wake_at = at
            self._timers.push(at, request_id)
            entry = self._entries.get(request_id)
            if entry is not None:  # else `add` comes next
                self._changed(request_id, entry)

    def take_due(self, before: int, limit: int) -> list[str]:
        """Return up to ``limit`` ids whose time is before ``before`` (ms); `get` each, and `wake` it again."""
        return self._timers.take_due(before, limit, self._db if self._on_disk else None)

    def next_due(self) -> int:
        """Return the earliest time (ms) that `take_due` waits for, or `NEVER`."""
        return self._timers.next_due(self._db if self._on_disk else None)

    def drop(self, request_id: str) -> None:
        """Forget an entry that `get` returned."""
        entry = self._entries.pop(request_id)
        self._release_payload(entry)
        self._bytes -= entry.fixed
        self._dirty.discard(request_id)
        if entry.stored_wake >= 0:
            self._dropped[request_id] = _Gone(entry.stored_wake, entry.request_stored)
            self._bytes += _GONE_BYTES

    def _release_payload(self, entry: _Entry) -> None:
        """Release an entry's payload."""
        self._bytes -= entry.payload
        self._unwritten -= entry.unwritten
        entry.payload = entry.record = entry.unwritten = 0

    def _changed(self, request_id: str, entry: _Entry) -> None:
        """Note a change. The next write takes the whole entry, except a request that is on disk already."""
        self._dirty.add(request_id)
        takes = entry.payload - entry.record
        if entry.pending.request is None:  # its ids are in no record on disk
            takes += entry.fixed - OVERHEAD_BYTES
        self._unwritten += takes - entry.unwritten
        entry.unwritten = takes

    def write(self, head: Head) -> None:
        """Write everything that changed since the last write, and the head, at once."""
        batch = self._db.batch()
        for request_id, gone in self._dropped.items():
            key = request_id.encode()
            batch.delete(b"p" + key)
            batch.delete(Timers.key(gone.stored_wake, key))
            if gone.request_stored:
                batch.delete(b"r" + key)
        for request_id in self._dirty:
            found = self._entries.get(request_id)
            if found is not None:
                self._store(batch, request_id.encode(), found)
        head.pending = len(self)
        batch.put(b"head", encode(head))
        self._db.write(batch)
        self.head = head
        self._bytes -= _GONE_BYTES * len(self._dropped)
        self._unwritten = 0
        self._dropped.clear()
        self._dirty.clear()
        if self._bytes > self.memory_bytes:
            self._evict()

    def is_damage(self, error: Exception) -> bool:
        """Whether an error means that the state is damaged and can be rebuilt."""
        return self._db.is_damage(error)

    def discard(self) -> None:
        """Start over with an empty folder."""
        self._db.clear()
        self.reload()

    def close(self) -> None:
        """Close the folder; what was not written is lost."""
        # Timers and state refer to each other: without this, they would stay until Python collects cycles, which is rare here.
        self._entries, self._dropped, self._dirty = {}, {}, set()
        self._timers = Timers(lambda request_id: None)
        self._db.close()

    def _wakes_at(self, request_id: str) -> int | None:
        entry = self._entries.get(request_id)
        if entry is not None:
            return entry.pending.wake_at
        return -1 if request_id in self._dropped else None

    def _store(self, batch: Batch, key: bytes, entry: _Entry) -> None:
        pending = entry.pending
        request = pending.request
        changing = _Changing(
            pending.wake_at,
            pending.served_at,
            request is not None,
            [] if request is not None else pending.impression_ids,
            bytes(pending.emitted),
            pending.events,
            pending.waiting,
            pending.offset,
            pending.outdated,
            pending.digest,
        )
        batch.put(b"p" + key, encode(changing))
        timer = Timers.key(pending.wake_at, key)
        if entry.stored_wake != pending.wake_at:
            if entry.stored_wake >= 0:
                batch.delete(Timers.key(entry.stored_wake, key))
            batch.put(timer, b"")
            entry.stored_wake = pending.wake_at
        self._timers.stored(timer)  # a timer that was due, and still is, has been passed
        entry.unwritten = 0
        if request is not None and not entry.request_stored:
            record = encode(request)
            batch.put(b"r" + key, record)
            entry.request_stored = True
            entry.record = min(len(record), entry.payload)
        elif request is None and entry.request_stored:
            batch.delete(b"r" + key)
            entry.request_stored = False

    def _load(self, request_id: str, packed: bytes) -> Pending:
        changing = _changing.decode(packed)
        record: Any = self._db.get(b"r" + request_id.encode()) if changing.has_request else None
        request = None if record is None else _request.decode(record)
        pending = Pending(
            wake_at=changing.wake_at,
            served_at=changing.served_at,
            request=request,
            impression_ids=changing.impression_ids if request is None else request.impression_ids,
            emitted=bytearray(changing.emitted),
            events=changing.events,
            waiting=changing.waiting,
            waiting_bytes=sum(len(payload) for _, payload in changing.waiting),
            event_count=sum(map(len, changing.events.values())),
            offset=changing.offset,
            outdated=changing.outdated,
            digest=changing.digest,
        )
        stored = len(record or b"")
        payload = len(packed) + stored + WAITING_BYTES * len(changing.waiting)
        entry = _Entry(
            pending, payload, record=stored, stored_wake=changing.wake_at, request_stored=changing.has_request
        )
        self._entries[request_id] = entry
        self._bytes += payload + _set_fixed(entry)
        self._on_disk -= 1
        self._timers.push(pending.wake_at, request_id)
        return pending

    def _evict(self) -> None:
        """Drop the half of memory that changed longest ago; after a write, all of it is on disk."""
        for request_id in list(self._entries):
            if self._bytes <= self.memory_bytes // 2:
                break
            entry = self._entries.pop(request_id)
            self._bytes -= entry.payload + entry.fixed
            self._on_disk += 1
        self._timers.evicted()


def _head_in(packed: bytes) -> Head | None:
    """Return a head; None, and say so, if another version of Minutely wrote it."""
    try:
        head = _head.decode(packed)
        if head.version == STATE_VERSION:
            return head
        why = f"version {head.version}; allowed: {STATE_VERSION}"
    except msgspec.MsgspecError as error:
        why = str(error)
    _log.warning("another version of Minutely wrote this state, it has to be rebuilt from the log: %s", why)
    return None


def _set_fixed(entry: _Entry) -> int:
    """Update the fixed size of an entry and its ids; return by how much it grew."""
    ids, before = entry.pending.impression_ids, entry.fixed
    entry.ids = len(ids)
    entry.fixed = OVERHEAD_BYTES
    if len(ids) > 1:
        entry.fixed += (len(ids) - 1) * ID_BYTES + len("".join(ids))
    return entry.fixed - before
