"""The parts of a pipeline that a joiner depends on, as one value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from streaming.features.kinds import Feature
from streaming.join.limits import Limits
from streaming.join.negatives import Negatives
from streaming.join.settings import JoinSettings
from streaming.live.spec import LiveSpec
from streaming.records.events import MIN_TIME_MS
from streaming.records.labels import Label, action_windows
from streaming.records.schema import Schema


class LiveOutput(NamedTuple):
    """What joiners write for live features: what counts, and how many partitions share the keys."""

    spec: LiveSpec
    partitions: int


class JoinSpec(NamedTuple):
    """Features and labels by name, and how they are joined; ``earliest_ms`` is the earliest time that an event may have."""

    features: Mapping[str, Feature]
    labels: Mapping[str, Label]
    settings: JoinSettings = JoinSettings()
    negatives: Negatives = Negatives()
    earliest_ms: int = MIN_TIME_MS
    limits: Limits = Limits()
    live: LiveOutput | None = None
    """None where nobody keeps live features of what is joined: in replays, which compute them ahead."""

    @property
    def schema(self) -> Schema:
        """The schema under which requests are taken."""
        return Schema.of(self.features, self.labels)

    @property
    def window_ms(self) -> int:
        """The longest window of a label."""
        return max(label.window for label in self.labels.values())

    @property
    def action_windows(self) -> dict[str, int]:
        """How long after the serving (ms) each action counts that a label or a live feature uses."""
        return {**(self.live.spec.windows if self.live else {}), **action_windows(self.labels)}

    @property
    def wait_ms(self) -> int:
        """How long after its serving a request is known, and an engagement waits for its request."""
        return self.window_ms + self.settings.lateness
