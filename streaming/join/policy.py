"""How the joiner treats new records, and records that it re-reads in recovery.

After a crash, the joiner re-reads records of committed transactions to restore its state. What they led to is in `examples`
already, so it must not be published again, and records must not be judged by how late they are now.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from streaming.join.calibration import ServedCalibration
from streaming.join.pending import Pending
from streaming.join.spec import JoinSpec
from streaming.join.state import JoinState
from streaming.join.taken import TakenUnder, at_offset, forgotten_before, was_due
from streaming.log import IMPRESSIONS
from streaming.records.events import MAX_TIME_MS, MIN_TIME_MS, Request
from streaming.records.identity import example_prefix
from streaming.records.labels import Decision


class Sent(Protocol):
    """What is in `examples` and among the dead letters, which may be more than entries say."""

    def of(self, request_id: str, served_at: int, impression_ids: Sequence[str]) -> bytearray:
        """Return how often each impression of a new request, served at ``served_at`` (ms), is in `examples`."""

    def refresh(self, request_id: str, pending: Pending) -> None:
        """Update an entry with what was sent since its state was written."""

    def refusal(self, topic: str, offset: int) -> str | None:
        """Return None if a record is not among the dead letters; else the letter's text if it is a request that had been taken
        before, or an empty text."""


class NothingSent:
    """Entries are complete: the joiner notes in them what it sends."""

    def of(self, request_id: str, served_at: int, impression_ids: Sequence[str]) -> bytearray:
        """Return zeros: none of them was sent."""
        return bytearray(len(impression_ids))

    def refresh(self, request_id: str, pending: Pending) -> None:
        """Do nothing."""

    def refusal(self, topic: str, offset: int) -> str | None:
        """Return None: entries do not hold refused records."""
        return None


NOTHING_SENT = NothingSent()


class SentAsTold:
    """What recovery found in `examples` and `dead-letters`."""

    def __init__(self, state: JoinState) -> None:
        self._state = state

    def of(self, request_id: str, served_at: int, impression_ids: Sequence[str]) -> bytearray:
        """Return how often each is in `examples`."""
        return self._state.known_emitted(request_id, served_at, impression_ids)

    def refresh(self, request_id: str, pending: Pending) -> None:
        """Raise the counts of an entry that is older than what was found."""
        known = self._state.known_emitted(request_id, pending.served_at, pending.impression_ids)
        pending.emitted = bytearray(map(max, pending.emitted, known))

    def refusal(self, topic: str, offset: int) -> str | None:
        """Return what was found in `dead-letters`."""
        return self._state.known_refused(topic, [offset]).get(offset)


class InputPolicy(Protocol):
    """What differs between new and re-read records; times in ms."""

    @property
    def sent(self) -> Sent:
        """What `examples` may hold beyond what entries say."""

    @property
    def is_living(self) -> bool:
        """Whether to publish examples, corrections and dead letters; for re-read records, that was done before."""

    @property
    def earliest_ms(self) -> int:
        """The earliest event time of a record."""

    def latest_ms(self, appended_at: int) -> int:
        """Return the latest event time of a record that its broker took at ``appended_at``."""

    def is_forgotten(self, forgotten_at: int, watermark: int) -> bool:
        """Whether a request whose entry is dropped at ``forgotten_at`` comes too late."""

    def forgotten_before(self, watermark: int) -> int:
        """Return until when (ms) engagements happened that do not wait for their requests any more."""

    def taken_under(self, offset: int) -> TakenUnder | None:
        """Return what the request at this offset was taken under, if its schema is not the config's."""

    def was_due(self, offset: int, served_at: int, watermark: int) -> bool:
        """Whether the window of the request at this offset closed before ``watermark``, so that it was decided."""

    def outdated(self, offset: int) -> str:
        """Return the text of the dead letter `schema` of the request at this offset; empty if there is none."""

    def publish(self, request_id: str, pending: Pending, places: Sequence[int], decision: Decision) -> Sequence[int]:
        """Return which of the impressions at ``places``, which share a decision, become examples."""


class Living:
    """The policy for new records: negatives are sampled, and ``served`` compares scores with labels."""

    is_living = True

    def __init__(self, spec: JoinSpec, sent: Sent = NOTHING_SENT, served: ServedCalibration | None = None) -> None:
        self.sent = sent
        self.earliest_ms = spec.earliest_ms
        self._wait_ms = spec.window_ms + spec.settings.lateness
        self._max_future = spec.settings.max_future
        self._negatives = spec.negatives
        self._served = served
        self._labels = len(spec.labels)

    def latest_ms(self, appended_at: int) -> int:
        """Return the time that is ``max_future`` after the append, whenever the record is read."""
        return appended_at + self._max_future

    def is_forgotten(self, forgotten_at: int, watermark: int) -> bool:
        """Whether the watermark has passed that time."""
        return forgotten_at < watermark

    def forgotten_before(self, watermark: int) -> int:
        """Return the time from which their wait would end now."""
        return watermark - self._wait_ms

    def taken_under(self, offset: int) -> TakenUnder | None:
        """Return None: new requests are taken under the config's own schema."""
        return None

    def was_due(self, offset: int, served_at: int, watermark: int) -> bool:
        """Return False: a new request is still to be decided."""
        return False

    def outdated(self, offset: int) -> str:
        """Return an empty text: a new request has no dead letter."""
        return ""

    def publish(self, request_id: str, pending: Pending, places: Sequence[int], decision: Decision) -> Sequence[int]:
        """Return all but the negatives that are not kept."""
        if self._served is not None:
            self._judge(self._served, pending.request, places, decision.values)
        if any(decision.values) or self._negatives.keep >= 1:
            return places
        prefix, names = example_prefix(request_id), pending.impression_ids
        return [place for place in places if self._negatives.keeps(prefix + names[place])]

    def _judge(
        self, served: ServedCalibration, request: Request | None, places: Sequence[int], values: tuple[float, ...]
    ) -> None:
        """Compare a model's scores with the labels, dropped negatives included."""
        if request is None or not request.sparse_version:
            return
        if len(request.scores) == 4 * self._labels * len(request.impression_ids):
            served.add(request.scores, places, values)


class Recovered:
    """The policy for re-read records. Where a window closed under the config of its time, what is not in `examples` was dropped
    by sampling; all else stays open. ``earliest_ms`` is as early as can be: what was accepted once is accepted again."""

    is_living = False
    earliest_ms = MIN_TIME_MS

    def __init__(self, spec: JoinSpec, sent: Sent, taken: Sequence[TakenUnder] = ()) -> None:
        self.sent = sent
        self._spec = spec
        self._taken = taken
        self._ours = TakenUnder.of(spec)

    def latest_ms(self, appended_at: int) -> int:
        """Accept any time: what was accepted once is accepted again, even if ``max_future`` is shorter now."""
        return MAX_TIME_MS

    def is_forgotten(self, forgotten_at: int, watermark: int) -> bool:
        """Return False: engagements of requests that were dropped since are re-read, too."""
        return False

    def forgotten_before(self, watermark: int) -> int:
        """Return the latest such time under any config of then."""
        return forgotten_before(self._taken or [self._ours], self._spec, watermark)

    def taken_under(self, offset: int) -> TakenUnder | None:
        """Look it up in the commit."""
        taken = at_offset(self._taken, self._spec, offset)[0]
        return None if taken.fingerprint == self._ours.fingerprint else taken

    def was_due(self, offset: int, served_at: int, watermark: int) -> bool:
        """Go by the configs since it was taken."""
        return was_due(at_offset(self._taken, self._spec, offset), served_at, watermark)

    def outdated(self, offset: int) -> str:
        """Return what was found among the dead letters."""
        return self.sent.refusal(IMPRESSIONS, offset) or ""

    def publish(self, request_id: str, pending: Pending, places: Sequence[int], decision: Decision) -> Sequence[int]:
        """Return nothing: it was published before."""
        return ()
