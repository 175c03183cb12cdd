"""What a recovery finds among examples and dead letters, until a state that knows it all is on disk.

It is kept in the state's store, so memory is bounded whatever was sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from streaming.join.store import JoinStore
from streaming.log import IMPRESSIONS
from streaming.records.events import DeadLetter
from streaming.records.examples import Published
from streaming.records.identity import example_prefix

_DETAIL = 1000
"""The characters that are kept of a letter's text."""


def _emitted_key(name: str, served_at: int) -> bytes:
    """Return the key of an example, with the time: an id that is reused after it was dropped names another request."""
    return b"e\xff" + name.encode() + served_at.to_bytes(8, "big")


def _letter_key(topic: str, offset: int) -> bytes:
    """Return the key of a record that has a dead letter."""
    return b"e\xfe" + topic.encode() + offset.to_bytes(8, "big")


class Sent:
    """How often examples were sent, and which records have dead letters. ``is_known`` says whether anything is noted."""

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
            batch.put(_emitted_key(name, served_at), bytes([revision + 1]))
            self.is_known = True
        self._db.write(batch)

    def emitted(self, request_id: str, served_at: int, impression_ids: Sequence[str]) -> bytearray:
        """Return how often each impression of a request served at ``served_at`` (ms) is in `examples`, by `note_emitted`."""
        if not self.is_known:
            return bytearray(len(impression_ids))
        prefix = example_prefix(request_id)
        found: Any = self._db.get([_emitted_key(prefix + impression_id, served_at) for impression_id in impression_ids])
        return bytearray(0 if value is None else value[0] for value in found)

    def note_letters(self, letters: Iterable[DeadLetter]) -> None:
        """Note dead letters about the inputs' records."""
        batch = self._db.batch()
        for letter in letters:
            text = (letter.detail or letter.reason)[:_DETAIL] if letter.topic == IMPRESSIONS and letter.accepted else ""
            batch.put(_letter_key(letter.topic, letter.offset), text.encode())
            self.is_known = True
        self._db.write(batch)

    def letters(self, topic: str, offsets: Sequence[int]) -> dict[int, str | None]:
        """Return which of these records have a dead letter, by `note_letters`: its text if the record was accepted before, None
        if it was refused."""
        if not self.is_known:
            return {}
        found: Any = self._db.get([_letter_key(topic, offset) for offset in offsets])
        return {
            offset: bytes(text).decode() or None
            for offset, text in zip(offsets, found, strict=True)
            if text is not None
        }

    def forget(self) -> None:
        """Delete what `note_emitted` and `note_letters` noted, once it is in the entries."""
        if self.is_known:
            self._db.delete_range(b"e", b"f")
            self.is_known = False
