"""How a joiner's memory is divided: a quarter to the store's buffers, the rest to the requests of the partitions that it has."""

from __future__ import annotations

from pathlib import Path
from weakref import WeakSet

from streaming.join.state import JoinState
from streaming.join.store import RocksStore, StoreMemory


class MemoryShare:
    """``memory_bytes`` for all partitions that one joiner has, however many those are.

    One that gets a smaller share writes what is too much, and lets go of it, with its next transaction.
    """

    def __init__(self, memory_bytes: int) -> None:
        buffers = memory_bytes // 4
        self._stores = StoreMemory(buffers)
        self._unwritten_bytes = buffers // 2  # a write is a batch in the buffers for writing
        self._entries = memory_bytes - buffers
        self._states = WeakSet[JoinState]()
        self._partitions = 1

    def divide(self, partitions: int) -> None:
        """Share it among so many."""
        self._partitions = max(1, partitions)
        for state in self._states:
            state.memory_bytes = self._entries // self._partitions

    def open(self, folder: Path) -> JoinState:
        """The state in a folder, with its share."""
        state = JoinState(
            folder,
            self._entries // self._partitions,
            lambda folder: RocksStore(folder, self._stores),
            self._unwritten_bytes,
        )
        self._states.add(state)
        return state
