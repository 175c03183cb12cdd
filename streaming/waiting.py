"""Waiting for brokers that are down, for services that have nothing else to do meanwhile."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from basis.problems import NoAnswerError
from streaming.clock import WallClock
from streaming.log import BrokerError
from streaming.retry import Retry

T = TypeVar("T")

_PAUSE_SECONDS = 0.1
_LOOK_SECONDS = 0.05


@contextmanager
def tolerating(retry: Retry) -> Iterator[None]:
    """Run a step; if brokers fail it, log that and pause for 100 ms."""
    try:
        yield
    except BrokerError as error:
        retry.failed(error)
        time.sleep(_PAUSE_SECONDS)
    else:
        retry.worked()


def retrying(
    log: logging.Logger,
    stop: Callable[[], bool],
    begin: Callable[[], T],
    asked: str,
    within_seconds: float = math.inf,
    *,
    what: str = "start",
) -> T | None:
    """Return what ``begin`` returns, retrying while brokers (named by ``asked``) are down; None if ``stop`` came first. The log
    says ``what`` failed.

    `NoAnswerError` if they are still down after ``within_seconds``.
    """
    retry, until = Retry(log, what, WallClock(), asked), time.monotonic() + within_seconds
    while not stop():
        if not retry.ready:
            time.sleep(_LOOK_SECONDS)
            continue
        try:
            begun = begin()
        except BrokerError as error:
            if time.monotonic() >= until:
                raise NoAnswerError(f"brokers at {asked}: {error}") from None
            retry.failed(error)
        else:
            retry.worked()
            return begun
    return None
