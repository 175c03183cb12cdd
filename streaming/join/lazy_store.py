"""A state store for one run, whose state mostly fits in memory: nothing is on disk until something has to be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from streaming.join.store import Cursor, JoinStore


class LazyStore:
    """`JoinStore` that is empty until the first batch, which ``open_store`` opens an empty one for."""

    def __init__(self, open_store: Callable[[], JoinStore]) -> None:
        self._open_store = open_store
        self._store: JoinStore | None = None

    def get(self, key: Any) -> Any:
        """The value of a key or None; of a list of keys, a list."""
        if self._store is None:
            return [None] * len(key) if isinstance(key, list) else None
        return self._store.get(key)

    def batch(self) -> Any:
        """An empty `Batch`, for `write`."""
        if self._store is None:
            self._store = self._open_store()
        return self._store.batch()

    def write(self, batch: Any) -> None:
        """Make the changes of a batch."""
        assert self._store is not None, "a batch comes from `batch`"
        self._store.write(batch)

    def iter(self) -> Cursor:
        """A cursor over what was written so far."""
        return _NoKeys() if self._store is None else self._store.iter()

    def delete_range(self, begin: bytes, end: bytes) -> None:
        """Remove the keys from ``begin`` to before ``end``."""
        if self._store is not None:
            self._store.delete_range(begin, end)

    def clear(self) -> None:
        """Begin anew, empty."""
        if self._store is not None:
            self._store.clear()

    def close(self) -> None:
        """Close what was opened."""
        if self._store is not None:
            self._store.close()

    def is_damage(self, error: Exception) -> bool:
        """Never: a run's log keeps nothing that was joined, so what is lost ends the run."""
        return False


class _NoKeys:
    """`Cursor` over nothing."""

    def seek(self, key: bytes) -> None:
        """There is nowhere to go."""

    def valid(self) -> bool:
        """There is no key."""
        return False

    def key(self) -> Any:
        """Not to be asked for."""
        raise AssertionError("there is no key")

    def next(self) -> None:
        """There is nowhere to go."""

    def status(self) -> None:
        """Nothing is damaged."""
