"""The joiner's service in the test's own process, run until something holds."""

from __future__ import annotations

import time
from collections.abc import Callable

from streaming.join.service import JoinService

MINUTE = 60_000


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def run_until(service: JoinService, done: Callable[[JoinService], bool], seconds: float = 60) -> None:
    """Run a service until something holds; it is closed then."""
    until = time.monotonic() + seconds
    held = False

    def stop() -> bool:
        nonlocal held
        held = done(service)
        return held or time.monotonic() > until

    service.run(stop)
    assert held, f"not done in {seconds} s"


def joined_through(at_ms: int, partitions: int) -> Callable[[JoinService], bool]:
    """Whether every partition told a watermark past ``at_ms``."""
    return lambda service: (
        len(service.members) == partitions and all(member.work.published > at_ms for member in service.members.values())
    )


class StoppedAt:
    """A clock that says one time, while time passes."""

    def __init__(self, at_ms: int) -> None:
        self._at_ms = at_ms

    def now_ms(self) -> int:
        return self._at_ms

    def elapsed_ms(self) -> int:
        return now_ms()


class Tomorrow:
    """A clock by which every window is closed."""

    def now_ms(self) -> int:
        return now_ms() + 24 * 60 * MINUTE

    def elapsed_ms(self) -> int:
        return self.now_ms()
