"""Reading large requests beside the event loop, one at a time; a request that would wait too long is refused at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

from starlette.requests import ClientDisconnect

from serving.cost import BatchCost
from serving.gone import Gone, never
from serving.scoring import Busy
from serving.worker import aside

T = TypeVar("T")

_LARGE_BYTES = 64 << 10
_WAITING_KIB = 64 << 10


class Reading:
    """Makes of bodies what they ask for. Those of up to 64 KiB are read at once, in a few milliseconds at most; larger ones by a
    thread, one after the other, so that the event loop is never blocked.

    What a KiB costs is learned as for batches. A body is refused where by that it would not be read within ``budget_seconds``, or
    where what waits would exceed 64 MiB, and never where none is being read: so there is always one to learn from.
    """

    def __init__(self, budget_seconds: float) -> None:
        self._budget_seconds = budget_seconds
        self._model = BatchCost()
        self._turn = asyncio.Lock()
        self._bodies = self._kib = 0

    async def read(self, size_bytes: int, read: Callable[[], T], gone: Gone = never) -> T:
        """What ``read`` returns or raises, of a body of that size; `Busy` where that would take too long,
        ``ClientDisconnect`` where the client left before its turn."""
        if size_bytes <= _LARGE_BYTES:
            return read()
        kib = size_bytes >> 10
        bodies, all_kib = self._bodies + 1, self._kib + kib
        if self._bodies and (all_kib > _WAITING_KIB or self._model.cost.of(bodies, all_kib) > self._budget_seconds):
            raise Busy(f"{self._kib} KiB of requests are being read")
        self._bodies += 1
        self._kib += kib
        # A thread cannot be stopped: where the asker's time is over, its turn and its counts last as long as the thread.
        over = False
        reading = asyncio.ensure_future(self._in_turn(kib, read, lambda: over or gone()))
        try:
            return await asyncio.shield(reading)
        except asyncio.CancelledError:
            over = True
            reading.add_done_callback(lambda task: task.cancelled() or task.exception())  # nothing awaits it any more
            raise

    async def _in_turn(self, kib: int, read: Callable[[], T], gone: Gone) -> T:
        try:
            async with self._turn:
                if gone():
                    raise ClientDisconnect
                started = time.perf_counter()
                try:
                    return await aside(read)
                finally:
                    self._model.observe(kib, time.perf_counter() - started)
        finally:
            self._bodies -= 1
            self._kib -= kib
