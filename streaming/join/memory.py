"""Divides a joiner's memory: a quarter for the stores' buffers, the rest for the requests of the partitions that it owns."""

from __future__ import annotations

from pathlib import Path
from weakref import WeakSet

from streaming.join.state import JoinState
from streaming.join.store import RocksStore, StoreMemory


class MemoryShare:
    """``memory_bytes`` for all partitions that one joiner owns, however many those are.

    A partition whose share shrinks drops what is too much from memory when it writes its state after the next transaction.
    """

    def __init__(self, memory_bytes: int) -> None:
        buffers = memory_bytes // 4
        self._stores = StoreMemory(buffers)
        self._unwritten_bytes = buffers // 2  # a write is one batch in the write buffers
        self._entries = memory_bytes - buffers
        self._states = WeakSet[JoinState]()
        self._partitions = 1

    def divide(self, partitions: int) -> None:
        """Divide the memory among this many partitions."""
        self._partitions = max(1, partitions)
        for state in self._states:
            state.memory_bytes = self._entries // self._partitions

    def open(self, folder: Path) -> JoinState:
        """Open the state in a folder, with its share of memory."""
        state = JoinState(
            folder,
            self._entries // self._partitions,
            lambda folder: RocksStore(folder, self._stores),
            self._unwritten_bytes,
        )
        self._states.add(state)
        return state
