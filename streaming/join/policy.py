"""Living or recovered input: what the joiner does with records that nobody has joined yet, and with those it reads again.

After a crash, records of transactions that are committed are taken once more to make the state good. What they led to is in
`examples` already, so nothing of it may be published again or judged by how late it is now.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Protocol

from streaming.clock import Clock
from streaming.join.calibration import ServedCalibration
from streaming.join.pending import Pending
from streaming.join.spec import JoinSpec
from streaming.join.state import JoinState, TakenUnder
from streaming.log import IMPRESSIONS
from streaming.records.events import Request
from streaming.records.identity import example_prefix
from streaming.records.labels import Decision


class Sent(Protocol):
    """What is in `examples` and among the dead letters, where that may be more than entries say."""

    def of(self, request_id: str, served_at: int, impression_ids: Sequence[str]) -> bytearray:
        """How often each impression of a new request, served then (ms), is in `examples`."""

    def refresh(self, request_id: str, pending: Pending) -> None:
        """Tell an entry what was sent since its state was written."""

    def refusal(self, topic: str, offset: int) -> str | None:
        """Whether a record is among the dead letters already: what that of a request that was taken before says, else an empty
        text; None where it is not."""


class NothingSent:
    """Entries say all: what the joiner sends, it notes in them."""

    def of(self, request_id: str, served_at: int, impression_ids: Sequence[str]) -> bytearray:
        """None of them was sent."""
        return bytearray(len(impression_ids))

    def refresh(self, request_id: str, pending: Pending) -> None:
        """There is nothing to add."""

    def refusal(self, topic: str, offset: int) -> str | None:
        """No entry holds what was refused."""
        return None


NOTHING_SENT = NothingSent()


class SentAsTold:
    """What `examples` and `dead-letters` were found to hold when they were read again."""

    def __init__(self, state: JoinState) -> None:
        self._state = state

    def of(self, request_id: str, served_at: int, impression_ids: Sequence[str]) -> bytearray:
        """How often each is in `examples`."""
        return self._state.known_emitted(request_id, served_at, impression_ids)

    def refresh(self, request_id: str, pending: Pending) -> None:
        """An entry may be older than what was found."""
        known = self._state.known_emitted(request_id, pending.served_at, pending.impression_ids)
        pending.emitted = bytearray(map(max, pending.emitted, known))

    def refusal(self, topic: str, offset: int) -> str | None:
        """Whether it was found there."""
        return self._state.known_refused(topic, [offset]).get(offset)


class InputPolicy(Protocol):
    """What differs between living and recovered input; times in ms."""

    @property
    def sent(self) -> Sent:
        """What may be in `examples` besides what entries say."""

    @property
    def is_living(self) -> bool:
        """Whether what comes of records is to be told: examples, corrections, dead letters; of recovered ones, it was."""

    def latest_ms(self) -> int:
        """The latest event time that is taken."""

    def is_forgotten(self, forgotten_at: int, watermark: int) -> bool:
        """Whether a request comes too late, of which nothing is kept after ``forgotten_at``."""

    def taken_under(self, offset: int) -> TakenUnder | None:
        """What the request at this offset was taken under, where that was another schema than the config's."""

    def outdated(self, offset: int) -> str:
        """What the dead letter `schema` of the request at this offset says; empty where there is none."""

    def publish(self, request_id: str, pending: Pending, places: Sequence[int], decision: Decision) -> Sequence[int]:
        """Which of a request's impressions become examples, of those that one decision is made for."""


class Living:
    """Records that nobody has joined: their negatives are sampled, and ``served`` is told what came of scores."""

    is_living = True

    def __init__(
        self, spec: JoinSpec, clock: Clock, sent: Sent = NOTHING_SENT, served: ServedCalibration | None = None
    ) -> None:
        self.sent = sent
        self._clock = clock
        self._max_future = spec.settings.max_future
        self._negatives = spec.negatives
        self._served = served
        self._labels = len(spec.labels)

    def latest_ms(self) -> int:
        """So far ahead of the clock as ``max_future`` allows."""
        return self._clock.now_ms() + self._max_future

    def is_forgotten(self, forgotten_at: int, watermark: int) -> bool:
        """When the watermark has passed that time."""
        return forgotten_at < watermark

    def taken_under(self, offset: int) -> TakenUnder | None:
        """It is taken now."""
        return None

    def outdated(self, offset: int) -> str:
        """It is new."""
        return ""

    def publish(self, request_id: str, pending: Pending, places: Sequence[int], decision: Decision) -> Sequence[int]:
        """All but the negatives that are not kept."""
        if self._served is not None:
            self._judge(self._served, pending.request, places, decision.values)
        if any(decision.values) or self._negatives.keep >= 1:
            return places
        prefix, names = example_prefix(request_id), pending.impression_ids
        return [place for place in places if self._negatives.keeps(prefix + names[place])]

    def _judge(
        self, served: ServedCalibration, request: Request | None, places: Sequence[int], values: tuple[float, ...]
    ) -> None:
        """Compare what a model said with what came of it, dropped negatives included."""
        if request is None or not request.sparse_version:
            return
        if len(request.scores) == 4 * self._labels * len(request.impression_ids):
            served.add(request.scores, places, values)


class Recovered:
    """Records of transactions that are over, none later than ``newest_ms``: what is due by now was sent, or dropped by sampling."""

    is_living = False

    def __init__(
        self, spec: JoinSpec, clock: Clock, sent: Sent, newest_ms: int, taken: Sequence[TakenUnder] = ()
    ) -> None:
        self.sent = sent
        self._living = Living(spec, clock)
        self._newest_ms = newest_ms
        self._taken = taken
        self._fingerprint = spec.schema.fingerprint

    def latest_ms(self) -> int:
        """What was taken once is taken again, though the clock was set back since."""
        return max(self._living.latest_ms(), self._newest_ms)

    def is_forgotten(self, forgotten_at: int, watermark: int) -> bool:
        """Never: requests that were forgotten since still have their engagements read again."""
        return False

    def taken_under(self, offset: int) -> TakenUnder | None:
        """By what was committed; before that was said, all were taken under the config's own."""
        at = bisect_right(self._taken, offset, key=lambda each: each.impressions) - 1
        return self._taken[at] if at >= 0 and self._taken[at].fingerprint != self._fingerprint else None

    def outdated(self, offset: int) -> str:
        """What was found among the dead letters."""
        return self.sent.refusal(IMPRESSIONS, offset) or ""

    def publish(self, request_id: str, pending: Pending, places: Sequence[int], decision: Decision) -> Sequence[int]:
        """Nothing."""
        return ()
