"""One replica with all its parts, and the threads that pull and that send what was served."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from serving.access import Gate
from serving.freshness import STAGES, Freshness
from serving.inputs import BadRequest
from serving.live import LiveValues
from serving.outbox import Outbox, Outgoing
from serving.pulling import Puller
from serving.ranking import Ranker, Ranking, impressions_record
from serving.replica import Replica
from serving.requests import RankQuery, RequestReader
from serving.scoring import Scoring
from serving.settings import ServeSettings
from serving.shadow import Shadowing
from serving.sides import Sides
from serving.status import Status
from streaming.clock import Clock
from streaming.log import ENGAGEMENTS, IMPRESSIONS
from streaming.records.events import MAX_RECORD_BYTES, Engagement, encode

_log = logging.getLogger("minutely.serve")

_SEND_BYTES = 1 << 20
_SEND_EVERY_SECONDS = 0.05
_LONGEST_WAIT_SECONDS = 0.25


@dataclass(frozen=True)
class ReplicaService:
    """What answers need. ``outbox`` is where served impressions and engagements wait for the log. ``actions`` are those that labels
    look at; engagements may be as early as ``earliest_ms``, and ``max_future_ms`` ahead. ``schema`` is the fingerprint of features
    and labels. ``live`` is None where no feature is live."""

    name: str
    model: str
    settings: ServeSettings
    clock: Clock
    replica: Replica
    ranker: Ranker
    reader: RequestReader
    sides: Sides
    live: LiveValues | None
    scoring: Scoring
    puller: Puller
    shadowing: Shadowing
    freshness: Freshness
    outbox: Outbox
    gate: Gate
    actions: frozenset[str]
    schema: str
    earliest_ms: int
    max_future_ms: int
    draining: threading.Event = field(default_factory=threading.Event)
    """Set when it is about to end: it answers what comes, and says that nothing more should."""

    @property
    def answers(self) -> bool:
        """Whether requests are answered, though they may have to wait for another model, whose files are sound as far as known."""
        return self.replica.whole or (self.replica.loaded and not self.puller.problem)

    def ready(self) -> tuple[bool, str]:
        """Whether it should get requests, and why it should not or what to know."""
        if self.draining.is_set():
            return False, "ending"
        if not self.answers:
            return False, self.puller.problem or "no whole version yet"
        if self.live is not None and not self.live.is_there:
            return False, self.live.problem or "live features are being read"
        if not self.replica.whole:
            return True, "another model takes over: requests wait for it"
        state = self.freshness.state()
        held = self.puller.held
        if held is not None:
            return True, f"held at version {held.version} by {held.by}: {state}"
        if state == "stale" and self.settings.stale_is_unready:
            return False, f"stale: {self.freshness.age_seconds():.0f} s old"
        return True, state

    def status(self) -> Status:
        """What `minutely freshness` shows."""
        shares = (0.5, 0.99)
        fresh, pinned, shadow = self.freshness, self.puller.pinned, self.shadowing.current
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
            problem=self.puller.problem or self.sides.problem or (self.live.problem if self.live else None),
            shadow=shadow.status() if shadow else None,
        )

    def served(self, asked: RankQuery, answer: Ranking, order: npt.NDArray[np.int64]) -> None:
        """Note what is to be answered, for the log and for a shadow; never waits. `BadRequest` where no joiner would take
        its record: then it must not be answered."""
        if self.settings.log:
            record = impressions_record(self.reader.features, self.schema, asked, answer, order)
            if len(record) > MAX_RECORD_BYTES:
                said = f"a record of {len(record)} bytes for the log; allowed: {MAX_RECORD_BYTES}"
                raise BadRequest(f"{said}, so give limit, or fewer candidates than {asked.count}", 413)
            # A copy: the encoder's own bytes keep the room that they grew into.
            self.outbox.offer(Outgoing(IMPRESSIONS, asked.request_id, bytes(memoryview(record))))
        shadow = self.shadowing.current
        if shadow is not None:
            shadow.served(asked, answer, order)

    def engaged(self, engagements: Sequence[Engagement]) -> bool:
        """Note what users did, for the log and for a shadow; never waits. False where the log has no room for all: then none is
        noted."""
        if not self.outbox.offer_all([Outgoing(ENGAGEMENTS, each.request_id, encode(each)) for each in engagements]):
            return False
        shadow = self.shadowing.current
        if shadow is not None:
            for engagement in engagements:
                shadow.engaged(engagement)
        return True


class Sink(Protocol):
    """Takes records to the log."""

    def send(self, records: Sequence[Outgoing]) -> None:
        """Send records, and count in the outbox what became of these and of earlier ones; may wait.

        ``OSError`` or a client's error where it cannot.
        """

    def close(self) -> None:
        """Send what is left, in bounded time."""


def pull_step(puller: Puller) -> float:
    """Pull if it is time; how long to sleep. Short, since clocks are set and pins come."""
    puller.step()
    return min(puller.wait_ms() / 1000, _LONGEST_WAIT_SECONDS)


def send_step(outbox: Outbox, sink: Sink) -> float:
    """Send what is waiting; how long to sleep."""
    sink.send(outbox.take(_SEND_BYTES))
    return 0.0 if len(outbox) else _SEND_EVERY_SECONDS
