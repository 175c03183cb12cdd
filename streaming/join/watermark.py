"""A joiner's watermark: how far the records of its inputs allow it to move, and by how much one record may move it."""

from __future__ import annotations

from collections.abc import Mapping

from streaming.join.settings import JoinSettings
from streaming.log import ENGAGEMENTS, IMPRESSIONS


class Reached:
    """How far the records taken of each input let the watermark move. Times in ms."""

    def __init__(self, settings: JoinSettings) -> None:
        self._max_ahead = settings.max_ahead
        self._lateness = settings.lateness
        self.inputs = {IMPRESSIONS: 0, ENGAGEMENTS: 0}
        self.newest = 0
        """The newest event time that any record claims."""

    def resume(self, inputs: Mapping[str, int], newest: int) -> None:
        """Go on from what a state says."""
        self.inputs.update(inputs)
        self.newest = newest

    def take(self, topic: str, claimed_ms: int, appended_at: int) -> None:
        """Take the event time that a record claims: it counts up to ``max_ahead`` beyond the time its broker took the record, so a
        fast clock does no more harm in a backlog than live."""
        self.inputs[topic] = max(self.inputs[topic], self.bounded(claimed_ms, appended_at))
        self.newest = max(self.newest, claimed_ms)

    def bounded(self, claimed_ms: int, appended_at: int) -> int:
        """Return how far the record that claims a time may move the watermark."""
        return min(claimed_ms, appended_at + self._max_ahead)

    def watermark(self, ended: Mapping[str, bool], as_of_ms: int) -> int:
        """Return the smaller time that the inputs reached, less ``lateness``.

        An input that was read to its end as of a time counts with that time: its missing events happen later.
        """
        return min(as_of_ms if ended[topic] else reached for topic, reached in self.inputs.items()) - self._lateness
