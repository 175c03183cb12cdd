"""A buffer of what is done later, bounded in bytes."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

_log = logging.getLogger("minutely.serve")


class Sized(Protocol):
    """Something that knows how much memory it holds."""

    @property
    def size_bytes(self) -> int:
        """Its memory."""


T = TypeVar("T", bound=Sized)


class Buffer(Generic[T]):
    """Holds at most ``limit_bytes`` of ``what``, oldest first. What was taken counts until `done` releases it.

    Any thread may offer while others take. That something did not fit is logged once, and again only after the buffer was empty.
    """

    def __init__(self, what: str, limit_bytes: int) -> None:
        self._what = what
        self._limit_bytes = limit_bytes
        self._waiting: deque[T] = deque()
        self._lock = threading.Lock()
        self._said = False
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def offer(self, *items: T) -> bool:
        """Take all of ``items`` or, where there is no room for all, none; whether they were taken."""
        size_bytes = sum(item.size_bytes for item in items)
        with self._lock:
            fits = self.size_bytes + size_bytes <= self._limit_bytes
            if fits:
                self._waiting.extend(items)
                self.size_bytes += size_bytes
            say, self._said = not (fits or self._said), self._said or not fits
        if say:
            _log.warning("%s: %d MiB are full; what does not fit is dropped", self._what, self._limit_bytes >> 20)
        return fits

    def take(self, size_bytes: int) -> Sequence[T]:
        """The oldest items, of ``size_bytes`` together at most, but one at least where there is any."""
        taken: list[T] = []
        with self._lock:
            while self._waiting and (not taken or self._waiting[0].size_bytes <= size_bytes):
                taken.append(self._waiting.popleft())
                size_bytes -= taken[-1].size_bytes
        return taken

    def done(self, size_bytes: int) -> None:
        """So much of what was taken takes no memory any more."""
        with self._lock:
            self.size_bytes -= size_bytes
            self._said = self._said and self.size_bytes > 0
