"""Threads: one that repeats a step, and one that makes a single call beside the event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

_log = logging.getLogger("minutely.serve")

T = TypeVar("T")


async def aside(call: Callable[[], T]) -> T:
    """What ``call`` returns or raises, from a thread of its own: one that never returns holds up neither the loop nor the end."""
    future: Future[T] = Future()

    def run() -> None:
        future.set_running_or_notify_cancel()
        try:
            future.set_result(call())
        except Exception as error:  # raised where it is awaited
            future.set_exception(error)

    threading.Thread(target=run, name="aside", daemon=True).start()
    return await asyncio.wrap_future(future)


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
        """Take the next step now."""
        self._wake.set()

    def stop(self, within_seconds: float) -> bool:
        """Stop after the current step; whether the thread ended within ``within_seconds``."""
        self._stopping = True
        self._wake.set()
        self._thread.join(within_seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stopping:
            try:
                seconds = self._step()
            except Exception:  # the thread must survive: without it the replica would never be updated again
                _log.exception("%s", self._thread.name)
                seconds = 1.0
            self._wake.wait(seconds)
            self._wake.clear()
