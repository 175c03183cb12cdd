"""Clocks: components are told the time, so that a replay or a simulator can move it."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """The time that a component goes by."""

    def now_ms(self) -> int:
        """Milliseconds since 1970, UTC."""


class WallClock:
    """The machine's time."""

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

    def move_to(self, now_ms: int) -> None:
        """Set the time; it never goes back."""
        self._now_ms = max(self._now_ms, now_ms)
