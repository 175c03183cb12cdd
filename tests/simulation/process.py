"""Processes that can die, or be suspended, between any two steps that are visible to others."""

from __future__ import annotations

from collections.abc import Callable


class Crash(BaseException):
    """The process died: nothing of it may run any more, neither handlers nor clean-up."""


class Process:
    """One life of a component, which calls ``touch`` before every read or write outside its own memory.

    ``crash_in`` and ``suspend_in`` count such steps; ``suspended`` runs the other processes meanwhile.
    """

    def __init__(self, name: str, suspended: Callable[[Process], None]) -> None:
        self.name = name
        self.alive = True
        self.crash_in = 0
        self.suspend_in = 0
        self.last = ""
        """The step that it is about to take."""
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
