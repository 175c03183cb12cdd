"""One replica with all its parts, and the threads that pull and that send what was served."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt

from serving.access import Gate
from serving.freshness import STAGES, Freshness, Status
from serving.outbox import Outbox, Outgoing
from serving.pulling import Puller
from serving.ranking import Answer, Ranker, impressions_record
from serving.replica import Replica
from serving.requests import RankAsked, RequestReader
from serving.scoring import Scoring
from serving.settings import ServeSettings
from streaming.clock import Clock
from streaming.log import IMPRESSIONS

_log = logging.getLogger("minutely.serve")

_SEND_AT_ONCE = 500
_SEND_EVERY_SECONDS = 0.05
_LONGEST_WAIT_SECONDS = 0.25


@dataclass(frozen=True)
class ReplicaService:
    """What answers need. ``outbox`` is where served impressions and engagements wait for the log,
    which keeps them for ``log_retention_ms``; joiners that lost their state need the last ``log_needed_ms`` of it."""

    name: str
    model: str
    settings: ServeSettings
    clock: Clock
    replica: Replica
    ranker: Ranker
    reader: RequestReader
    scoring: Scoring
    puller: Puller
    freshness: Freshness
    outbox: Outbox
    gate: Gate
    max_future_ms: int
    log_retention_ms: int
    log_needed_ms: int

    def ready(self) -> tuple[bool, str]:
        """Whether it should get requests, and why it should not or what to know."""
        if not self.replica.whole:
            return False, self.puller.problem or "no whole version yet"
        state = self.freshness.state()
        if state == "stale" and self.settings.stale_is_unready:
            return False, f"stale: {self.freshness.age_seconds():.0f} s old"
        return True, state

    def status(self) -> Status:
        """What `minutely freshness` shows."""
        shares = (0.5, 0.99)
        fresh, pinned = self.freshness, self.puller.pinned
        return Status(
            replica=self.name,
            state=fresh.state(),
            sparse_version=self.replica.sparse_version,
            dense_version=self.replica.dense_version,
            pinned=pinned.version if pinned else None,
            pinned_by=pinned.by if pinned else None,
            freshness_seconds=fresh.age_seconds(),
            newest_behaviour_seconds=fresh.newest_behaviour_seconds(),
            event_to_servable_seconds=fresh.event_to_servable.quantiles(shares),
            decided_to_servable_seconds=fresh.decided_to_servable.quantiles(shares),
            stage_p50_seconds={
                stage: found["p50"] for stage in STAGES if (found := fresh.stages[stage].quantiles(shares[:1]))
            },
            rows=sum(map(len, self.replica.tables.values())),
            problem=self.puller.problem,
        )

    def served(self, asked: RankAsked, answer: Answer, order: npt.NDArray[np.int64]) -> None:
        """Note what was answered for the log; never waits."""
        if self.settings.log:
            make = partial(impressions_record, self.reader.features, asked, answer, order)
            self.outbox.offer(Outgoing(IMPRESSIONS, asked.request_id, make))


class Sink(Protocol):
    """Takes records to the log."""

    def send(self, records: Sequence[Outgoing]) -> None:
        """Send records, and count in the outbox what became of them; may wait. ``OSError`` or a client's error where it cannot."""

    def close(self) -> None:
        """Send what is left, in bounded time."""


class Worker:
    """A thread that does one thing again and again; ``step`` says how many seconds it may sleep."""

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


def pull_step(puller: Puller) -> float:
    """Pull if it is time; how long to sleep. Short, since clocks are set and pins come."""
    puller.step()
    return min(puller.wait_ms() / 1000, _LONGEST_WAIT_SECONDS)


def send_step(outbox: Outbox, sink: Sink) -> float:
    """Send what is waiting; how long to sleep."""
    records = outbox.take(_SEND_AT_ONCE)
    if records:
        sink.send(records)
    return 0.0 if len(records) == _SEND_AT_ONCE else _SEND_EVERY_SECONDS
