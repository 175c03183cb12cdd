"""Waiting for brokers that are away: said once, and once more when they are back."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from confluent_kafka import KafkaError, KafkaException

from basis.problems import NoAnswerError

T = TypeVar("T")

PERSON_SECONDS = 60.0
"""How long commands that a person begins wait for brokers at their start."""
_LONGEST_SECONDS = 2.0
_REFUSALS = tuple(f"{what}_AUTHORIZATION_FAILED" for what in ("TOPIC", "GROUP", "TRANSACTIONAL_ID", "CLUSTER"))
_PAUSE_SECONDS = 0.1


def reason(error: Exception) -> str:
    """What went wrong, without the client's punctuation."""
    cause = error.args[0] if error.args else None
    if isinstance(cause, KafkaError):
        return f"{cause.name().strip('_')}: {cause.str()}"
    return f"{type(error).__name__}: {error}"


class Patience:
    """Counts failures of one thing in a row, says each kind of them once, and how long to wait before the next try.

    ``asked`` is who does not answer where it fails.
    """

    def __init__(self, log: logging.Logger, what: str, asked: str | None = None) -> None:
        self._log = log
        self._what = what
        self._asked = f"; asked {asked}" if asked else ""
        self._failures = 0
        self._said = set[tuple[type[Exception], str]]()
        self.not_before = 0.0
        """When it is time for another try; monotonic."""

    @property
    def ready(self) -> bool:
        """Whether it is time for another try."""
        return time.monotonic() >= self.not_before

    def failed(self, error: Exception) -> None:
        """A try failed."""
        what = reason(error)
        kind = (type(error), what if what.startswith(_REFUSALS) else "")
        if kind not in self._said:  # of another kind is what only people can end, after brokers that were away
            self._said.add(kind)
            self._log.warning("%s: waiting, since %s%s", self._what, what, self._asked)
        self._failures += 1
        self.not_before = time.monotonic() + min(0.1 * 2 ** min(self._failures, 8), _LONGEST_SECONDS)

    def worked(self) -> None:
        """A try went well."""
        if self._failures:
            self._log.warning("%s: goes on after %d tries", self._what, self._failures)
        self._failures = 0
        self._said.clear()
        self.not_before = 0.0

    @contextmanager
    def enduring(self) -> Iterator[None]:
        """What is tried here may fail for want of a broker: that is said, and waited for a little."""
        try:
            yield
        except KafkaException as error:
            self.failed(error)
            time.sleep(_PAUSE_SECONDS)
        else:
            self.worked()


def patiently(
    log: logging.Logger, stop: Callable[[], bool], begin: Callable[[], T], asked: str, within_seconds: float = math.inf
) -> T | None:
    """What ``begin`` gives, tried again while the brokers that are ``asked`` are away; None where ``stop`` came first.

    `NoAnswerError` where they still are ``within_seconds``.
    """
    patience, until = Patience(log, "start", asked), time.monotonic() + within_seconds
    while not stop():
        if not patience.ready:
            time.sleep(0.05)
            continue
        try:
            begun = begin()
        except KafkaException as error:
            if time.monotonic() >= until:
                raise NoAnswerError(f"brokers at {asked}: {reason(error)}") from None
            patience.failed(error)
        else:
            patience.worked()
            return begun
    return None
