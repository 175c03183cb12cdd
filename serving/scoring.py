"""The thread that scores: takes what is waiting, scores it together, and hands the answers back to the event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from serving.ranking import Answer, Ranker
from serving.requests import Asked

_log = logging.getLogger("minutely.serve")

_TOGETHER = 512
_WAITING = 4096
_AGAIN_SECONDS = 0.002
_FIRST_GUESS_SECONDS = 1e-5
_MEMORY = 0.1


class Busy(RuntimeError):
    """A request would not be answered in time; nothing was done about it."""


class _Waiting(NamedTuple):
    asked: Asked
    future: asyncio.Future[Answer]
    loop: asyncio.AbstractEventLoop


class Scoring:
    """Scores requests that wait together in one batch of up to 512 candidates, or of one larger request.

    Nothing waits for others to come. A request is refused where those before it would keep it waiting longer than
    ``budget_seconds``, by the time that a candidate took lately.
    """

    def __init__(self, ranker: Ranker, budget_seconds: float) -> None:
        self._ranker = ranker
        self._budget = budget_seconds
        self._queue: deque[_Waiting] = deque()
        self._candidates = 0
        self._changed = threading.Condition()
        self._stopping = False
        self._each_seconds = _FIRST_GUESS_SECONDS
        self._thread = threading.Thread(target=self._run, name="scoring", daemon=True)
        self.batches = self.scored = 0

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Answer what is waiting, and end."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    @property
    def waiting(self) -> int:
        """Candidates that wait or are being scored."""
        return self._candidates

    async def score(self, asked: Asked) -> Answer:
        """The answer to a request; `Busy` where that would take too long."""
        with self._changed:
            wait = self._candidates * self._each_seconds
            if self._stopping or len(self._queue) >= _WAITING or wait > self._budget:
                raise Busy(f"{self._candidates} candidates are waiting")
            loop = asyncio.get_running_loop()
            future: asyncio.Future[Answer] = loop.create_future()
            self._queue.append(_Waiting(asked, future, loop))
            self._candidates += asked.count
            self._changed.notify()
        return await future

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._stopping:
                    self._changed.wait()
                if not self._queue:
                    return
                batch = [self._queue.popleft()]
                total = batch[0].asked.count
                while self._queue and total + self._queue[0].asked.count <= _TOGETHER:
                    batch.append(self._queue.popleft())
                    total += batch[-1].asked.count
            self._score(batch, total)
            with self._changed:
                self._candidates -= total

    def _score(self, batch: list[_Waiting], total: int) -> None:
        started = time.perf_counter()
        answers: Sequence[Answer] | None = None
        failed: Exception = Busy("another model takes over")
        try:
            # What is waited for is a takeover: rows of one model never meet weights of another.
            while answers is None and time.perf_counter() - started < self._budget:
                answers = self._ranker.answer([each.asked for each in batch])
                if answers is None:
                    time.sleep(_AGAIN_SECONDS)
        except Exception as error:
            _log.exception("could not score %d candidates", total)
            failed = error
        took = (time.perf_counter() - started) / total
        self._each_seconds += _MEMORY * (took - self._each_seconds)
        self.batches += 1
        self.scored += total
        try:
            batch[0].loop.call_soon_threadsafe(_deliver, batch, answers, failed)
        except RuntimeError:  # the loop has ended, and with it those who asked
            return


def _deliver(batch: list[_Waiting], answers: Sequence[Answer] | None, failed: Exception) -> None:
    for at, each in enumerate(batch):
        if each.future.done():  # who asked has gone
            continue
        if answers is None:
            each.future.set_exception(failed)
        else:
            each.future.set_result(answers[at])
