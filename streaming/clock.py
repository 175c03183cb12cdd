"""Clocks: components are told the time, so that a replay or a simulator can move it."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """The time that a component goes by."""

    def now_ms(self) -> int:
        """Milliseconds since 1970, UTC. It may be set, also back: how long something took, or is to wait, is not its to say."""

    def elapsed_ms(self) -> int:
        """Milliseconds since some moment; never goes back. Only differences within one process mean anything."""


class WallClock:
    """The machine's time."""

    def elapsed_ms(self) -> int:
        """Milliseconds since some moment, whatever people set the machine's time to."""
        return time.monotonic_ns() // 1_000_000

    def now_ms(self) -> int:
        """Milliseconds since 1970, UTC."""
        return time.time_ns() // 1_000_000


class EventClock:
    """The time of the events that are being replayed; whoever replays them moves it forward."""

    def __init__(self, now_ms: int = 0) -> None:
        self._now_ms = now_ms

    def now_ms(self) -> int:
        """Milliseconds since 1970, UTC, in event time."""
        return self._now_ms

    def elapsed_ms(self) -> int:
        """The event time: it never goes back."""
        return self._now_ms

    def move_to(self, now_ms: int) -> None:
        """Set the time; it never goes back."""
        self._now_ms = max(self._now_ms, now_ms)
