"""Clocks. Components take the time from the clock they are given, so that a replay or a simulator can move it."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """The time as a component sees it."""

    def now_ms(self) -> int:
        """Milliseconds since 1970, UTC. It may be set back: measure durations with `elapsed_ms`."""

    def elapsed_ms(self) -> int:
        """Milliseconds since an arbitrary moment; never goes back. Only differences within one process mean anything."""


class WallClock:
    """The machine's time."""

    def elapsed_ms(self) -> int:
        """Milliseconds since an arbitrary moment, even if the machine's time is set."""
        return time.monotonic_ns() // 1_000_000

    def now_ms(self) -> int:
        """Milliseconds since 1970, UTC."""
        return time.time_ns() // 1_000_000


class EventClock:
    """The time of the events that are being replayed. The replay moves it forward."""

    def __init__(self, now_ms: int = 0) -> None:
        self._now_ms = now_ms

    def now_ms(self) -> int:
        """Milliseconds since 1970, UTC, in event time."""
        return self._now_ms

    def elapsed_ms(self) -> int:
        """The event time, which never goes back."""
        return self._now_ms

    def move_to(self, now_ms: int) -> None:
        """Set the time, unless that would move it back."""
        self._now_ms = max(self._now_ms, now_ms)
