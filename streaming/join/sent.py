"""What a recovery finds among examples and dead letters, until a state that knows it all is on disk.

It is kept in the state's store, so memory is bounded whatever was sent.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from streaming.join.store import JoinStore
from streaming.records.examples import Published
from streaming.records.identity import example_prefix


def _emitted_key(version: int, name: str, served_at: int) -> bytes:
    """Return the key of an example, with the time: an id that is reused after it was dropped names another request."""
    kind = b"e" if version == 1 else b"e\xff"  # no text has that byte, so ids of version 1 stay apart
    return kind + name.encode() + served_at.to_bytes(8, "big")


def _refused_key(topic: str, offset: int) -> bytes:
    """Return the key of a refused record; no text has its second byte, so it is none of an example's."""
    return b"e\xfe" + topic.encode() + offset.to_bytes(8, "big")


class Sent:
    """How often examples were sent, and which records were refused. ``is_known`` says whether anything is noted."""

    def __init__(self, db: JoinStore) -> None:
        self._db = db
        cursor = db.iter()
        cursor.seek(b"e")
        cursor.status()
        self.is_known = cursor.valid() and cursor.key()[:1] == b"e"

    def note_emitted(self, published: Published) -> None:
        """Note what is in `examples`; call this in the order of the topic."""
        batch = self._db.batch()
        for name, served_at, revision in published.examples:
            batch.put(_emitted_key(published.version, name, served_at), bytes([revision + 1]))
            self.is_known = True
        self._db.write(batch)

    def emitted(self, request_id: str, served_at: int, impression_ids: Sequence[str]) -> bytearray:
        """Return how often each impression of a request served at ``served_at`` (ms) is in `examples`, by `note_emitted`."""
        if not self.is_known:
            return bytearray(len(impression_ids))
        prefix = example_prefix(request_id)
        keys = [_emitted_key(2, prefix + impression_id, served_at) for impression_id in impression_ids]
        keys += [_emitted_key(1, impression_id, served_at) for impression_id in impression_ids]
        found: Any = self._db.get(keys)
        times = [0 if value is None else value[0] for value in found]
        return bytearray(map(max, times[: len(impression_ids)], times[len(impression_ids) :]))

    def note_refused(self, places: Collection[tuple[str, int, str]]) -> None:
        """Note records, by topic and offset, that are among the dead letters, with the letters' texts."""
        batch = self._db.batch()
        for topic, offset, text in places:
            batch.put(_refused_key(topic, offset), text.encode())
            self.is_known = True
        self._db.write(batch)

    def refused(self, topic: str, offsets: Sequence[int]) -> dict[int, str]:
        """Return which of these records were refused, with the texts, by `note_refused`."""
        if not self.is_known:
            return {}
        found: Any = self._db.get([_refused_key(topic, offset) for offset in offsets])
        return {offset: bytes(text).decode() for offset, text in zip(offsets, found, strict=True) if text is not None}

    def forget(self) -> None:
        """Delete what `note_emitted` and `note_refused` noted, once it is in the entries."""
        if self.is_known:
            self._db.delete_range(b"e", b"f")
            self.is_known = False
