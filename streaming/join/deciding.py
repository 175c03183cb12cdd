"""Decides impressions by the events that count for them, and turns what is decided into output."""

from __future__ import annotations

from collections.abc import Sequence

from streaming.join.calibration import ServedCalibration
from streaming.join.counts import JoinCounts
from streaming.join.decided import Decided
from streaming.join.output import Output
from streaming.join.pending import DROPPED, Pending
from streaming.join.spec import JoinSpec
from streaming.join.timers import NEVER
from streaming.records.events import BadRecord, Request
from streaming.records.identity import example_prefix
from streaming.records.labels import Decision, Rule, decide


class Deciding:
    """Decisions of one joiner: negatives are sampled, and ``served`` compares scores with labels. Times in ms."""

    def __init__(self, spec: JoinSpec, output: Output, counts: JoinCounts, served: ServedCalibration | None) -> None:
        self.counts = counts
        self._rules = [Rule.of(label) for label in spec.labels.values()]
        self._negative = (0.0,) * len(spec.labels)
        self._negatives = spec.negatives
        self._settings = spec.settings
        self._output = output
        self._served = served

    def decide(self, served_at: int, events: Sequence[tuple[int, str, float]]) -> Decision:
        """Decide the labels of an impression by its events."""
        return decide(self._rules, served_at, events)

    def correct(self, pending: Pending, request_id: str, index: int, decision: Decision, watermark: int) -> None:
        """Emit an example again, decided now. One that sampling dropped cannot be corrected."""
        revision = pending.emitted[index]
        if self._settings.late == "dead_letter" or pending.request is None or revision >= DROPPED - 1:
            raise BadRecord("late", f"its example was decided by watermark {watermark} ms")
        pending.emitted[index] = revision + 1
        self.counts.corrected += 1
        decision = decision._replace(decided_at=max(decision.decided_at, watermark))
        decided = Decided(request_id, pending.request, (index,), decision, revision)
        self._output.add(decided, self._output.sizes(pending.request).bytes_of((index,)))

    def emit_due(self, request_id: str, pending: Pending, request: Request, closes_at: int, watermark: int) -> int:
        """Emit what is due of the open impressions. Return when (ms) to look at the others, or `NEVER`."""
        next_due, emitted, events = NEVER, pending.emitted, pending.events
        if 0 not in emitted:
            return NEVER  # a recovery may be here with columns that nobody has checked
        for index, happened in events.items():
            if not emitted[index]:
                decision = self.decide(pending.served_at, happened)
                if self._settings.emit == "window":
                    decision = decision._replace(decided_at=closes_at)
                if decision.decided_at < watermark and self._output.room > 0:
                    self._emit(request_id, pending, request, [index], decision)
                else:
                    next_due = min(next_due, decision.decided_at)
        if 0 in emitted:
            # Most impressions have no events: one decision, later than any other, serves them all.
            if closes_at < watermark and self._output.room > 0:
                without = [index for index, times in enumerate(emitted) if not times and index not in events]
                first = self._output.sizes(request).first(without, self._output.room)
                self._emit(request_id, pending, request, first, Decision(self._negative, closes_at, pending.served_at))
            if 0 in emitted:
                next_due = min(next_due, closes_at)
        return next_due

    def _emit(
        self, request_id: str, pending: Pending, request: Request, indices: Sequence[int], decision: Decision
    ) -> None:
        """Turn decided impressions into examples, except the negatives that are not kept."""
        self._compare(request, indices, decision)
        kept, emitted = self._sample(request_id, pending, indices, decision), pending.emitted
        if dropped := len(indices) - len(kept):
            self.counts.dropped += dropped
            for index in indices:
                emitted[index] = DROPPED
        for index in kept:
            emitted[index] = 1
        if kept:
            self._output.add(Decided(request_id, request, kept, decision), self._output.sizes(request).bytes_of(kept))

    def _sample(self, request_id: str, pending: Pending, indices: Sequence[int], decision: Decision) -> Sequence[int]:
        """Return which of these impressions, which share a decision, become examples: all but the negatives that are not kept."""
        if any(decision.values) or self._negatives.keep >= 1:
            return indices
        prefix, names = example_prefix(request_id), pending.impression_ids
        return [index for index in indices if self._negatives.keeps(prefix + names[index])]

    def _compare(self, request: Request, indices: Sequence[int], decision: Decision) -> None:
        """Compare the scores that a model served for these impressions with their labels, before negatives are dropped."""
        if self._served is None or not request.sparse_version:
            return
        if len(request.scores) == 4 * len(self._negative) * len(request.impression_ids):
            self._served.add(request.scores, indices, decision.values)
