"""A state store for one run, whose state mostly fits in memory: nothing is on disk before the first write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from streaming.join.store import Cursor, JoinStore


class LazyStore:
    """`JoinStore` that opens an empty store with ``open_store`` at the first `batch`."""

    def __init__(self, open_store: Callable[[], JoinStore]) -> None:
        self._open_store = open_store
        self._store: JoinStore | None = None

    def get(self, key: Any) -> Any:
        """Return the value of a key or None; for a list of keys, a list."""
        if self._store is None:
            return [None] * len(key) if isinstance(key, list) else None
        return self._store.get(key)

    def batch(self) -> Any:
        """Return an empty `Batch`, for `write`."""
        if self._store is None:
            self._store = self._open_store()
        return self._store.batch()

    def write(self, batch: Any) -> None:
        """Apply a batch."""
        assert self._store is not None, "a batch comes from `batch`"
        self._store.write(batch)

    def iter(self) -> Cursor:
        """Return a cursor over what was written so far."""
        return _NoKeys() if self._store is None else self._store.iter()

    def delete_range(self, begin: bytes, end: bytes) -> None:
        """Remove the keys from ``begin`` to before ``end``."""
        if self._store is not None:
            self._store.delete_range(begin, end)

    def clear(self) -> None:
        """Start over, empty."""
        if self._store is not None:
            self._store.clear()

    def close(self) -> None:
        """Close the store, if it was opened."""
        if self._store is not None:
            self._store.close()

    def is_damage(self, error: Exception) -> bool:
        """Return False: a run's log keeps no joined records to rebuild a state from, so damage ends the run."""
        return False


class _NoKeys:
    """`Cursor` over nothing."""

    def seek(self, key: bytes) -> None:
        """Do nothing."""

    def valid(self) -> bool:
        """Return False."""
        return False

    def key(self) -> Any:
        """Raise ``AssertionError``."""
        raise AssertionError("there is no key")

    def next(self) -> None:
        """Do nothing."""

    def status(self) -> None:
        """Raise nothing."""
