"""A thread that does one thing again and again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

_log = logging.getLogger("minutely.serve")


class Worker:
    """Calls ``step``, which says how many seconds it may sleep."""

    def __init__(self, name: str, step: Callable[[], float]) -> None:
        self._step = step
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wake(self) -> None:
        """Do it now."""
        self._wake.set()

    def stop(self, within_seconds: float) -> bool:
        """End after the step that is being taken; whether it has, in time."""
        self._stopping = True
        self._wake.set()
        self._thread.join(within_seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stopping:
            try:
                seconds = self._step()
            except Exception:  # the thread must go on: without it the replica would age for ever
                _log.exception("%s", self._thread.name)
                seconds = 1.0
            self._wake.wait(seconds)
            self._wake.clear()
