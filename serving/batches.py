"""Requests that wait to be scored, in the batches in which they will be scored; a request that would wait too long is refused."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from serving.cost import BatchCost, Cost

T = TypeVar("T")

_TOGETHER = 512
_WAITING_BYTES = 64 << 20


class Batch(Generic[T]):
    """Requests that are scored together, their candidates, and the bytes that they hold."""

    def __init__(self) -> None:
        self.items: list[T] = []
        self.candidates = self.size_bytes = 0


class Batches(Generic[T]):
    """A queue of batches of up to 512 candidates, or of one larger request, in the order in which requests came.

    A request is refused only where the costs of batches say that its answer would take longer than ``budget_seconds``, or where
    what waits would exceed 64 MiB; never where nothing waits. So there is always something to score and to learn the costs from.
    Not thread-safe: callers lock.
    """

    def __init__(self, budget_seconds: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self._budget = budget_seconds
        self._clock = clock
        self._model = BatchCost()
        self._waiting: deque[Batch[T]] = deque()
        self._scoring: Batch[T] | None = None
        self._started = 0.0
        self._candidates = self._bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def candidates(self) -> int:
        """Candidates that wait or are being scored."""
        return self._candidates + (self._scoring.candidates if self._scoring else 0)

    @property
    def cost(self) -> Cost:
        """What batches cost lately."""
        return self._model.cost

    def admit(self, item: T, candidates: int, size_bytes: int) -> bool:
        """Put a request into the queue; whether it was let in."""
        joins = bool(self._waiting) and self._waiting[-1].candidates + candidates <= _TOGETHER
        if self._waiting:
            batches = len(self._waiting) + (not joins)
            wait = self._rest_seconds() + self.cost.of(batches, self._candidates + candidates)
            if wait > self._budget or self._bytes + size_bytes > _WAITING_BYTES:
                return False
        if not joins:
            self._waiting.append(Batch())
        last = self._waiting[-1]
        last.items.append(item)
        last.candidates += candidates
        last.size_bytes += size_bytes
        self._candidates += candidates
        self._bytes += size_bytes
        return True

    def _rest_seconds(self) -> float:
        """How much longer the batch that is being scored will take."""
        if self._scoring is None:
            return 0.0
        return max(0.0, self._started + self.cost.of(1, self._scoring.candidates) - self._clock())

    def take(self) -> Batch[T]:
        """The batch that is to be scored now; `IndexError` where none waits."""
        self._scoring, self._started = batch, _ = self._waiting.popleft(), self._clock()
        self._candidates -= batch.candidates
        self._bytes -= batch.size_bytes
        return batch

    def done(self, *, typical: bool) -> None:
        """The batch that was taken has been scored; ``typical`` where its time says what others will take."""
        assert self._scoring is not None
        if typical:
            self._model.observe(self._scoring.candidates, self._clock() - self._started)
        self._scoring = None
