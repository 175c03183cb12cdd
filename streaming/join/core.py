"""The joiner's core: requests and engagements in, in any order; examples and dead letters out, each once.

It is synchronous and single-threaded, joins one partition, and does no I/O: the caller passes records as bytes with their offsets,
moves the watermark with `advance`, and takes the output with `drain`. Labels are decided in event time
(`streaming.records.labels`), and an example is emitted only once the watermark has passed its decision. So the result does not
depend on the order of arrival.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from xxhash import xxh3_64_intdigest

from streaming.join.calibration import ServedCalibration
from streaming.join.configs import ConfigSince
from streaming.join.counts import JoinCounts
from streaming.join.deciding import Deciding
from streaming.join.output import JoinOutput, Output
from streaming.join.pending import DROPPED, WAITING_BYTES, Pending
from streaming.join.policy import Living
from streaming.join.spec import JoinSpec
from streaming.join.state import JoinState
from streaming.join.timers import NEVER
from streaming.join.upgrades import Upgrades
from streaming.join.watermark import Reached
from streaming.log import ENGAGEMENTS, IMPRESSIONS, Record
from streaming.records.events import (
    MAX_TIME_MS,
    BadRecord,
    DeadLetter,
    Engagement,
    Request,
    decode_engagement,
    decode_request,
    encode,
    is_json,
)
from streaming.records.json_records import pack_request

_DUE_AT_ONCE = 32
"""Few, since each request is loaded into memory, whatever its size."""


class Joiner:
    """Joins engagements with impressions; ``served`` compares scores with labels."""

    def __init__(
        self, spec: JoinSpec, state: JoinState, partition: int = 0, served: ServedCalibration | None = None
    ) -> None:
        self.upgrades = Upgrades(spec)
        """Checks requests, and takes over those of other configs."""
        self._action_window = spec.action_windows
        self._settings = spec.settings
        self._limits = spec.limits
        self._window = spec.window_ms
        self._wait = spec.wait_ms
        self._state = state
        self.policy = Living(spec)
        """How to treat records: as new ones, or as records that recovery re-reads."""
        self._partition = partition
        self._output = Output(spec, partition)
        self._keeps_requests = spec.settings.late == "correct" or spec.live is not None
        """Whether requests are kept until nothing more can happen to them, rather than until they are decided."""
        self.format = self._output.format
        self.watermark = 0
        self.reached = Reached(spec.settings)
        self._forgotten_before = 0
        """What is from before this (ms) was forgotten under an earlier config: a request without a marker may be a repeat."""
        self.counts = JoinCounts()
        self._deciding = Deciding(spec, self._output, self.counts, served)

    def follow(self, configs: Sequence[ConfigSince]) -> None:
        """Take what was in force up to now, ours last, as what pending requests were taken under."""
        self._forgotten_before = configs[-1].forgotten_ms
        self.upgrades.configs = configs

    def resume(self, policy: Living, watermark: int, refused: Counter[str] | None = None) -> None:
        """Go on from a watermark (ms) with another policy. Counts begin again, with what recovery itself ``refused``."""
        self.policy, self.watermark = policy, watermark
        self.counts = self._deciding.counts = JoinCounts(refused=Counter(refused or {}))

    @property
    def output_is_full(self) -> bool:
        """Whether the output fills a transaction: call `drain` before anything else."""
        return self._output.is_full

    def take(self, topic: str, records: Sequence[Record]) -> int:
        """Take records of an input, in order, until `output_is_full`. Return how many were taken."""
        output = self._output
        for count, record in enumerate(records):
            if output.is_full:
                return count
            self.add(topic, record)
        return len(records)

    def add(self, topic: str, record: Record) -> None:
        """Take one record of an input."""
        self.counts.records[topic] += 1
        try:
            if topic == IMPRESSIONS:
                self._request(record)
            else:
                self._engagement(record)
        except BadRecord as bad:
            self._refuse(topic, record.offset, record.value, bad)

    def advance(self, watermark: int, at_most: int | None = None) -> bool:
        """Move the watermark (ms): as far as ``lateness`` promises, every event before it has arrived. Emit what that decides.

        Look at no more than ``at_most`` requests, and stop if `output_is_full`. Return whether all due requests were looked at; if
        not, take no further records until they are.
        """
        self.watermark = max(self.watermark, watermark)
        left = NEVER if at_most is None else at_most
        while left > 0 and not self.output_is_full:
            due = self._state.take_due(self.watermark, min(left, _DUE_AT_ONCE))
            if not due:
                return True
            left -= len(due)
            for request_id in due:
                pending = self._state.get(request_id)
                assert pending is not None, request_id
                if self.output_is_full:
                    at, pending.wake_at = pending.wake_at, NEVER
                    self._state.wake(request_id, pending, at)
                else:
                    self._look_at(request_id, pending)
        return False

    def next_due(self) -> int:
        """Return the next event time (ms) at which `advance` may have something to do."""
        return self._state.next_due()

    def drain(self) -> JoinOutput:
        """Return the output so far, and forget it."""
        output = self._output.drain()
        self.counts.examples += sum(batch.num_rows for batch in output.examples)
        return output

    def _refuse(self, topic: str, offset: int, payload: bytes, bad: BadRecord, *, accepted: bool = False) -> None:
        if self._state.sent.letters(topic, [offset]):
            return
        self.counts.refused[bad.reason] += 1
        letter = DeadLetter(
            topic=topic,
            partition=self._partition,
            offset=offset,
            reason=bad.reason,
            detail=str(bad),
            payload=payload,
            accepted=accepted,
        )
        self._output.refuse(letter)

    def _request(self, record: Record) -> None:
        offset, payload = record.offset, record.value
        earlier = self.policy.earlier(offset)
        packed = payload
        if is_json(payload):
            of_other = earlier is not None and earlier.config is not None
            packed = pack_request(payload, self.upgrades.features(earlier), may_lack=of_other)
        request = decode_request(packed, self.policy.latest_ms(record.appended_at), self.policy.earliest_ms)
        made_under = request.schema
        self.upgrades.accept(request, earlier)
        forgotten_at = request.served_at + self._wait
        if self.policy.is_late(forgotten_at, self.watermark):
            raise BadRecord("late", f"served at {request.served_at} ms, watermark {self.watermark} ms: window closed")
        pending, digest = self._state.get(request.request_id) or Pending(), xxh3_64_intdigest(payload)
        if pending.served_at < 0 and request.served_at < self._forgotten_before:
            raise BadRecord("late", f"served at {request.served_at} ms: window closed under an earlier config")
        if pending.served_at >= 0 and not (made_under and self._comes_again(pending, request, offset)):
            if pending.digest == digest:
                self.counts.repeated += 1
                return
            self.policy.check_unused(request, pending)
            self._state.drop(request.request_id)
            pending = Pending()
        self.reached.take(IMPRESSIONS, request.served_at, record.appended_at)
        if pending.served_at < 0 and self.policy.decides():
            self._output.served(request)
        pending.served_at = request.served_at
        pending.digest = digest
        pending.impression_ids = request.impression_ids
        pending.request = request
        pending.offset = offset
        sent = self._state.sent.emitted(request.request_id, request.served_at, request.impression_ids)
        pending.emitted = bytearray(map(max, sent, pending.emitted)) if pending.emitted else sent
        self._close_if_due(pending)
        waiting, pending.waiting, pending.waiting_bytes = pending.waiting, [], 0
        for at, engagement in waiting:
            try:
                found = decode_engagement(engagement, MAX_TIME_MS)
                if found.action in self._action_window:  # else only a removed label used it
                    self._attribute(pending, found)
                else:
                    self.counts.unused += 1
            except BadRecord as bad:
                self._refuse(ENGAGEMENTS, at, engagement, bad)
        self._state.wake(request.request_id, pending, request.served_at + self._window)
        self._state.add(request.request_id, pending, len(packed))
        if earlier is not None and earlier.outdated:
            self._state.outdate(request.request_id, earlier.outdated)
        elif problem := self.upgrades.engaged_before(self.reached.bounded(request.served_at, record.appended_at)):
            self._give_up(request.request_id, pending, request, problem)

    def _engagement(self, record: Record) -> None:
        payload = record.value
        engagement = decode_engagement(payload, self.policy.latest_ms(record.appended_at), self.policy.earliest_ms)
        self.reached.take(ENGAGEMENTS, engagement.happened_at, record.appended_at)
        if engagement.action not in self._action_window:
            self.counts.unused += 1
            return
        pending = self._state.get(engagement.request_id)
        if pending is not None and pending.served_at >= 0:
            self._attribute(pending, engagement)
            self._state.add(engagement.request_id, pending, len(payload))
            return
        self._check_matched(engagement)
        pending = pending or Pending()
        self._check_waiting(engagement.request_id, pending, len(payload))
        pending.wait(record.offset, payload)
        self._state.wake(engagement.request_id, pending, max(engagement.happened_at + self._wait, self.watermark))
        self._state.add(engagement.request_id, pending, len(payload) + WAITING_BYTES)

    def _check_matched(self, engagement: Engagement) -> None:
        if engagement.happened_at < max(self._forgotten_before, self.policy.waited_before(self.watermark)):
            raise BadRecord("unmatched", f"no impression {engagement.impression_id} of request {engagement.request_id}")

    def _check_waiting(self, request_id: str, pending: Pending, size: int) -> None:
        count, limits = len(pending.waiting), self._limits
        if count and (count >= limits.waiting or pending.waiting_bytes + size > limits.waiting_bytes):
            raise BadRecord(
                "too_many",
                f"{count} engagements of {pending.waiting_bytes} bytes wait for request {request_id} already; "
                f"allowed: {limits.waiting} of {limits.waiting_bytes} bytes. Is its id what the product served it under?",
            )

    def _attribute(self, pending: Pending, engagement: Engagement) -> None:
        """Count an engagement towards its impression's labels."""
        at, request_id = engagement.happened_at, engagement.request_id
        if self.policy.decides():
            self._take_over(request_id, pending)
        self.policy.check_schema(pending)
        try:
            index = pending.impression_ids.index(engagement.impression_id)
        except ValueError:
            raise BadRecord("unmatched", f"request {request_id} has no impression {engagement.impression_id}") from None
        if at < pending.served_at:
            raise BadRecord(
                "before_served", f"happened at {at} ms, its impression was served at {pending.served_at} ms"
            )
        if self.policy.is_late(pending.served_at + self._action_window[engagement.action], at):
            raise BadRecord("late", f"happened {at - pending.served_at} ms after the serving: window closed")
        events = pending.events.setdefault(index, [])
        event = (at, engagement.action, engagement.value)
        if event in events:
            self.counts.repeated += 1
            return
        if len(events) >= self._limits.impression_events:
            raise BadRecord("too_many", f"impression {engagement.impression_id} has {len(events)} engagements already")
        if pending.event_count >= self._limits.request_events:
            raise BadRecord("too_many", f"request {request_id} has {pending.event_count} engagements already")
        if pending.emitted[index] and self.policy.decides():
            before, after = (self._deciding.decide(pending.served_at, each) for each in (events, [*events, event]))
            if before.values == after.values:
                self.counts.redundant += 1
            else:
                self._deciding.correct(pending, request_id, index, after, self.watermark)
        is_first = all(action != engagement.action for _, action, _ in events)
        if is_first and pending.request is not None and self.policy.decides():
            self._output.acted(pending.request, index, engagement.action, at)
        events.append(event)
        pending.event_count += 1
        if self._settings.emit == "decided" and not pending.emitted[index]:
            self._state.wake(request_id, pending, self._deciding.decide(pending.served_at, events).decided_at)

    def _look_at(self, request_id: str, pending: Pending) -> None:
        """Emit what is due of a request; drop its entry once late events need no marker any more."""
        pending.wake_at = NEVER
        if pending.served_at < 0:
            self._drop_unmatched(request_id, pending)
            return
        if self.policy.decides():
            self._take_over(request_id, pending)
        else:
            self._close_if_due(pending)
            if 0 in pending.emitted:  # decide after the recovery: only this config may take it for due
                self._state.wake(request_id, pending, self.watermark)
                return
        closes_at = pending.served_at + self._window
        if pending.request is not None:
            next_due = self._deciding.emit_due(request_id, pending, pending.request, closes_at, self.watermark)
            if next_due != NEVER:
                self._state.wake(request_id, pending, next_due)
                return
            if not self._keeps_requests:
                pending.request = None
                self._state.release_payload(request_id)
        forget_at = closes_at + self._settings.lateness
        if forget_at < self.watermark:
            self._state.drop(request_id)
        else:
            # Nobody waits for markers to be dropped, so drop them in groups, at multiples of the window.
            self._state.wake(request_id, pending, -(-forget_at // self._window) * self._window)

    def _comes_again(self, pending: Pending, request: Request, offset: int) -> bool:
        """Whether a request is its dead letter sent again, which the config can now take; if so, reopen its impressions.

        The caller has seen that it names its schema, as letters do: a product that sends a request twice does not."""
        is_same = (pending.served_at, pending.impression_ids) == (request.served_at, request.impression_ids)
        if not pending.outdated or offset <= pending.offset or not is_same:
            return False
        pending.outdated = ""
        pending.emitted = bytearray(0 if times == DROPPED else times for times in pending.emitted)
        return True

    def _close_if_due(self, pending: Pending) -> None:
        """Drop the open impressions of a re-read request whose window closed before: sampling dropped them then."""
        if self.policy.was_due(pending.offset, pending.served_at, self.watermark):
            pending.close()

    def _take_over(self, request_id: str, pending: Pending) -> None:
        """Convert a request to our schema if it is still in the form of another, or give it up."""
        request = pending.request
        if request is None or self.upgrades.is_ours(request, pending.offset):
            return
        if (problem := self.upgrades.take_over(request, pending.offset)) is not None:
            self._give_up(request_id, pending, request, problem)

    def _give_up(self, request_id: str, pending: Pending, request: Request, problem: str) -> None:
        """Make a request a dead letter if impressions of it are open, since its labels or features are of another config."""
        if 0 in pending.emitted:
            self._refuse(IMPRESSIONS, pending.offset, encode(request), BadRecord("schema", problem), accepted=True)
        self._state.outdate(request_id, problem)

    def _drop_unmatched(self, request_id: str, pending: Pending) -> None:
        waiting, pending.waiting, pending.waiting_bytes = pending.waiting, [], 0
        for offset, payload in waiting:
            try:
                engagement = decode_engagement(payload, MAX_TIME_MS)
                self._check_matched(engagement)
            except BadRecord as bad:
                self._refuse(ENGAGEMENTS, offset, payload, bad)
                continue
            pending.wait(offset, payload)
            self._state.wake(request_id, pending, max(engagement.happened_at + self._wait, self.watermark))
        if not pending.waiting:
            self._state.drop(request_id)
