"""Retries with growing pauses. The first failure of a kind is logged, and so is the recovery."""

from __future__ import annotations

import logging

from streaming.clock import Clock
from streaming.log import BrokerError

_LONGEST_MS = 2000
_FIRST_MS = 200
_REFUSALS = frozenset(f"{what}_AUTHORIZATION_FAILED" for what in ("TOPIC", "GROUP", "TRANSACTIONAL_ID", "CLUSTER"))
"""Errors that only a person can end, by the client's names."""


class Retry:
    """Counts consecutive failures of one thing, logs each kind of failure once, and says when the next try is due.

    ``asked`` names the brokers that were asked, for the log line.
    """

    def __init__(self, log: logging.Logger, what: str, clock: Clock, asked: str | None = None) -> None:
        self._log = log
        self._what = what
        self._clock = clock
        self._asked = f"; asked {asked}" if asked else ""
        self._failures = 0
        self._said = set[tuple[type[Exception], str]]()
        self.not_before_ms = 0
        """When the next try is due, in the clock's elapsed time."""

    @property
    def ready(self) -> bool:
        """Whether the next try is due."""
        return self._clock.elapsed_ms() >= self.not_before_ms

    @property
    def failing(self) -> bool:
        """Whether tries failed, and none worked since."""
        return self._failures > 0

    def failed(self, error: Exception) -> None:
        """Record a failed try; the pause before the next one grows."""
        name = error.name if isinstance(error, BrokerError) else ""
        kind = (type(error), name if name in _REFUSALS else "")
        if kind not in self._said:  # a refusal after an outage is logged too
            what = error if isinstance(error, BrokerError) else f"{type(error).__name__}: {error}"
            self._said.add(kind)
            self._log.warning("%s: %s; retrying in up to %d s%s", self._what, what, _LONGEST_MS // 1000, self._asked)
        self._failures += 1
        pause_ms = min(_FIRST_MS << min(self._failures - 1, 8), _LONGEST_MS)
        self.not_before_ms = self._clock.elapsed_ms() + pause_ms

    def worked(self) -> None:
        """Record a successful try, and log it if tries failed before."""
        if self._failures:
            self._log.warning("%s: back after %d tries", self._what, self._failures)
        self._failures = 0
        self._said.clear()
        self.not_before_ms = 0
