"""A machine's clocks for tests."""

from __future__ import annotations


class SetClock:
    """People set the time of day: ``ahead`` ms of the time that has passed since the machine's start, ``elapsed``."""

    def __init__(self, elapsed: int, ahead: int) -> None:
        self.elapsed, self.ahead = elapsed, ahead

    def now_ms(self) -> int:
        return self.elapsed + self.ahead

    def elapsed_ms(self) -> int:
        return self.elapsed
