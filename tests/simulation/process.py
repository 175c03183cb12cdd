"""Processes that can die or be suspended between any two of their steps that others can see."""

from __future__ import annotations

from collections.abc import Callable


class Crash(BaseException):
    """The process is gone: nothing of it runs on, no handler and nothing that tidies up."""


class Process:
    """One life of a component. ``touch`` comes before everything that it reads or writes outside of its own memory.

    ``crash_in`` and ``suspend_in`` count such steps; ``suspended`` runs the others meanwhile.
    """

    def __init__(self, name: str, suspended: Callable[[Process], None]) -> None:
        self.name = name
        self.alive = True
        self.crash_in = 0
        self.suspend_in = 0
        self.last = ""
        """The step before which it stands."""
        self._suspended = suspended

    def touch(self, step: str) -> None:
        if not self.alive:
            raise Crash
        self.last = step
        if self.crash_in:
            self.crash_in -= 1
            if not self.crash_in:
                self.alive = False
                raise Crash
        if self.suspend_in:
            self.suspend_in -= 1
            if not self.suspend_in:
                self._suspended(self)
                if not self.alive:
                    raise Crash
