"""Waiting for brokers that are away: said once, and once more when they are back."""

from __future__ import annotations

import logging
import time

_LONGEST_SECONDS = 2.0


class Patience:
    """Counts failures of one thing in a row, and says how long to wait before the next try."""

    def __init__(self, log: logging.Logger, what: str) -> None:
        self._log = log
        self._what = what
        self._failures = 0
        self._not_before = 0.0

    @property
    def ready(self) -> bool:
        """Whether it is time for another try."""
        return time.monotonic() >= self._not_before

    def failed(self, error: Exception) -> None:
        """A try failed."""
        if not self._failures:
            self._log.warning("%s: waiting, since %s: %s", self._what, type(error).__name__, error)
        self._failures += 1
        self._not_before = time.monotonic() + min(0.1 * 2 ** min(self._failures, 8), _LONGEST_SECONDS)

    def worked(self) -> None:
        """A try went well."""
        if self._failures:
            self._log.warning("%s: goes on after %d tries", self._what, self._failures)
        self._failures = 0
        self._not_before = 0.0
