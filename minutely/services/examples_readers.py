"""What the services that read `examples` share: how they begin, and what becomes of records that they refuse."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from typing import TypeVar

from minutely.config import Pipeline
from minutely.services.metrics import Status
from streaming.kafka.letters import LetterSender
from streaming.kafka.log import KafkaLog
from streaming.kafka.topics import ensure_topics
from streaming.log import EXAMPLES
from streaming.records.events import DeadLetter
from streaming.waiting import retrying

T = TypeVar("T")


def begin_reading(
    pipeline: Pipeline, log: logging.Logger, stop: Callable[[], bool], make: Callable[[KafkaLog], T]
) -> T | None:
    """Return the service that ``make`` makes, which closes its log of examples; wait for brokers that are away. None if ``stop``
    came first."""

    def begin() -> T:
        ensure_topics(pipeline.kafka)
        with ExitStack() as on_error:
            service = make(on_error.enter_context(closing(KafkaLog(pipeline.kafka, EXAMPLES))))
            on_error.pop_all()
        return service

    return retrying(log, stop, begin, pipeline.kafka.asked)


class RefusedExamples:
    """Sends the dead letters of a service, and counts them in its status."""

    def __init__(self, pipeline: Pipeline, log: logging.Logger, stop: Callable[[], bool], status: Status) -> None:
        self._sender = LetterSender(pipeline.kafka, log, stop)
        self._status = status

    @property
    def is_missing_some(self) -> bool:
        """Whether brokers may lack letters, since the service was told to stop first."""
        return self._sender.is_missing_some

    def tell(self, letters: Sequence[DeadLetter]) -> bool:
        """Send letters, which no commit of the service passes before. Return whether brokers have them."""
        if not letters:
            return True
        self._status.dead_letters.update(letter.reason for letter in letters)
        sent = self._sender.send(letters)
        self._status.lost_letters = self._sender.lost
        return sent
