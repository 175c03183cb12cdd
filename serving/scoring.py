"""The thread that scores: takes what is waiting, scores it together, and hands the answers back to the event loop."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from starlette.requests import ClientDisconnect

from serving.batches import Batch, Batches
from serving.gone import Gone, never
from serving.ranking import Ranker, Ranking
from serving.requests import Query
from streaming.features.columns import columns_bytes

_log = logging.getLogger("minutely.serve")

_AGAIN_SECONDS = 0.002
_REQUEST_BYTES = 4096


class Busy(RuntimeError):
    """A request would not be answered in time; nothing was done about it."""


class _Waiting(NamedTuple):
    asked: Query
    future: asyncio.Future[Ranking]
    loop: asyncio.AbstractEventLoop
    gone: Gone

    @property
    def left(self) -> bool:
        """Whether the client left, or its request timed out."""
        return self.future.done() or self.gone()


class Scoring:
    """Scores requests that wait together (`Batches`); nothing waits for others to come."""

    def __init__(self, ranker: Ranker, budget_seconds: float) -> None:
        self._ranker = ranker
        self._batches: Batches[_Waiting] = Batches(budget_seconds)
        self._changed = threading.Condition()
        self._stopping = False
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
        return self._batches.candidates

    async def score(self, asked: Query, gone: Gone = never) -> Ranking:
        """The answer to a request; `Busy` where that would take too long, ``ClientDisconnect`` where the client left meanwhile."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Ranking] = loop.create_future()
        size_bytes = _REQUEST_BYTES + columns_bytes(asked.columns)
        with self._changed:
            waiting = _Waiting(asked, future, loop, gone)
            if self._stopping or not self._batches.admit(waiting, asked.count, size_bytes):
                raise Busy(f"{self.waiting} candidates are waiting")
            self._changed.notify()
        return await future

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._batches and not self._stopping:
                    self._changed.wait()
                if not self._batches:
                    return
                batch = self._batches.take()
            typical = self._score(batch)
            with self._changed:
                self._batches.done(typical=typical)

    def _score(self, batch: Batch[_Waiting]) -> bool:
        """Score a batch, without requests whose clients left; whether that took no longer than scoring takes."""
        waiting, left = _apart(batch.items)
        if left:
            _tell(left, None, ClientDisconnect())
        if not waiting:
            return False
        answers: Sequence[Ranking] | None = None
        failed: Exception = Busy("no whole version yet")
        typical = True
        asked = [each.asked for each in waiting]
        batch.candidates = candidates = sum(each.count for each in asked)  # its time is theirs
        try:
            # What is waited for is a takeover: rows of one model never meet weights of another. All replicas take it at once, so
            # no request is sent to another replica, and the client waits up to its request's timeout.
            while (answers := self._ranker.answer(asked)) is None and self._is_worth_waiting(waiting):
                typical = False
                time.sleep(_AGAIN_SECONDS)
        except Exception as error:
            _log.exception("could not score %d candidates", candidates)
            failed, typical = error, False
        self.batches += 1
        self.scored += candidates
        _tell(waiting, answers, failed)
        return typical

    def _is_worth_waiting(self, waiting: Sequence[_Waiting]) -> bool:
        return self._ranker.loaded and not self._stopping and not all(each.left for each in waiting)


def _apart(items: Sequence[_Waiting]) -> tuple[list[_Waiting], list[_Waiting]]:
    """The requests still waited for, and those whose clients left."""
    waiting: list[_Waiting] = []
    left: list[_Waiting] = []
    for each in items:
        (left if each.left else waiting).append(each)
    return waiting, left


def _tell(asked: list[_Waiting], answers: Sequence[Ranking] | None, failed: Exception) -> None:
    with suppress(RuntimeError):  # the loop has ended, and the requests with it
        asked[0].loop.call_soon_threadsafe(_deliver, asked, answers, failed)


def _deliver(asked: list[_Waiting], answers: Sequence[Ranking] | None, failed: Exception) -> None:
    for at, each in enumerate(asked):
        if each.future.done():  # the client has left
            continue
        if answers is None:
            each.future.set_exception(failed)
        else:
            each.future.set_result(answers[at])
