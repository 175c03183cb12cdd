"""Dead letters of the services that read `examples`: on the brokers before anything passes what they are about."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from streaming.kafka.sending import PatientSender
from streaming.kafka.settings import KafkaSettings
from streaming.log import DEAD_LETTERS
from streaming.records.events import DeadLetter, encode


class LetterSender:
    """Sends dead letters and says so. It waits for brokers that are away, until ``stop``."""

    def __init__(self, settings: KafkaSettings, log: logging.Logger, stop: Callable[[], bool]) -> None:
        self._topic = settings.topic(DEAD_LETTERS)
        self._log = log
        self._sender = PatientSender(settings, log, stop)
        self._is_missing_some = False

    def send(self, letters: Sequence[DeadLetter]) -> bool:
        """Whether the brokers have all of them, and those from before; not where ``stop`` came first."""
        first = letters[0]
        self._log.warning(
            "%d dead letters, such as %s/%d, offset %d, %s: %s",
            len(letters), first.topic, first.partition, first.offset, first.reason, first.detail,
        )  # fmt: skip
        for letter in letters:
            if not self._sender.send(self._topic, encode(letter), partition=letter.partition):
                self._is_missing_some = True
                break
        return self.wait()

    def wait(self) -> bool:
        """Wait until brokers have all that was sent; whether they do."""
        return not self._sender.wait() and not self._is_missing_some
