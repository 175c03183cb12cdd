"""Dead letters of the services that read `examples`: brokers have them before a service commits past the records concerned."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from streaming.kafka.sending import RetryingSender
from streaming.kafka.settings import KafkaSettings
from streaming.log import DEAD_LETTERS
from streaming.records.events import DeadLetter, encode


class LetterSender:
    """Sends dead letters and logs them. It waits for brokers that are down, until ``stop``."""

    def __init__(self, settings: KafkaSettings, log: logging.Logger, stop: Callable[[], bool]) -> None:
        self._topic = settings.topic(DEAD_LETTERS)
        self._log = log
        self._sender = RetryingSender(settings, log, stop)
        self._is_missing_some = False

    def send(self, letters: Sequence[DeadLetter]) -> bool:
        """Send letters; return whether brokers have them and all earlier ones, False if ``stop`` came first."""
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
        """Wait until brokers have all letters, or ``stop``; return whether they have."""
        return not self._sender.wait() and not self._is_missing_some
