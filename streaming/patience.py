"""Patience with what fails for now: said once, tried again after growing pauses, and said once more when it works again."""

from __future__ import annotations

import logging

from streaming.clock import Clock
from streaming.log import BrokerError

_LONGEST_MS = 2000
_FIRST_MS = 200
_REFUSALS = tuple(f"{what}_AUTHORIZATION_FAILED" for what in ("TOPIC", "GROUP", "TRANSACTIONAL_ID", "CLUSTER"))


def reason(error: Exception) -> str:
    """What went wrong; a `BrokerError` begins with the client's name for it."""
    return str(error) if isinstance(error, BrokerError) else f"{type(error).__name__}: {error}"


class Patience:
    """Counts failures of one thing in a row, logs each kind of them once, and says how long to wait before the next try.

    ``asked`` names who does not answer where it fails.
    """

    def __init__(self, log: logging.Logger, what: str, clock: Clock, asked: str | None = None) -> None:
        self._log = log
        self._what = what
        self._clock = clock
        self._asked = f"; asked {asked}" if asked else ""
        self._failures = 0
        self._said = set[tuple[type[Exception], str]]()
        self.not_before_ms = 0
        """When it is time for another try, in the clock's elapsed time."""

    @property
    def ready(self) -> bool:
        """Whether it is time for another try."""
        return self._clock.elapsed_ms() >= self.not_before_ms

    def failed(self, error: Exception) -> None:
        """A try failed."""
        what = reason(error)
        kind = (type(error), what if what.startswith(_REFUSALS) else "")
        if kind not in self._said:  # of another kind is what only people can end, after brokers that were away
            self._said.add(kind)
            self._log.warning("%s: waiting, since %s%s", self._what, what, self._asked)
        self._failures += 1
        pause_ms = min(_FIRST_MS << min(self._failures - 1, 8), _LONGEST_MS)
        self.not_before_ms = self._clock.elapsed_ms() + pause_ms

    def worked(self) -> None:
        """A try went well."""
        if self._failures:
            self._log.warning("%s: goes on after %d tries", self._what, self._failures)
        self._failures = 0
        self._said.clear()
        self.not_before_ms = 0
