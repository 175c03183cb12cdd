"""Dead letters of the services that read `examples`: brokers have them before a service commits past the records concerned."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from streaming.kafka.sending import RetryingSender
from streaming.kafka.settings import KafkaSettings
from streaming.kafka.waiting import retrying
from streaming.log import DEAD_LETTERS, BrokerError
from streaming.records.events import DeadLetter, encode


class LetterSender:
    """Sends dead letters and logs them. It waits for brokers that are down or refuse them, until ``stop``."""

    def __init__(self, settings: KafkaSettings, log: logging.Logger, stop: Callable[[], bool]) -> None:
        self._settings = settings
        self._topic = settings.topic(DEAD_LETTERS)
        self._log = log
        self._stop = stop
        self._sender: RetryingSender | None = None
        self._tried = False
        self.is_missing_some = False
        """Whether brokers may lack letters that were to be sent: ``stop`` came first."""

    def send(self, letters: Sequence[DeadLetter]) -> bool:
        """Send letters; return whether brokers have them, False if ``stop`` came first. Where one is refused, all are sent again:
        brokers may have some twice."""
        first = letters[0]
        self._log.warning(
            "%d dead letters, such as %s/%d, offset %d, %s: %s",
            len(letters), first.topic, first.partition, first.offset, first.reason, first.detail,
        )  # fmt: skip
        self._tried = False  # a service that is to end tries once
        sent = retrying(
            self._log,
            lambda: self._tried and self._stop(),
            lambda: self._try(letters),
            self._settings.asked,
            what="dead letters",
        )
        self.is_missing_some |= not sent
        return bool(sent)

    def _try(self, letters: Sequence[DeadLetter]) -> bool:
        self._tried = True
        self._sender = self._sender or RetryingSender(self._settings, self._log, self._stop)
        send, topic = self._sender.send, self._topic
        try:
            taken = all(send(topic, encode(letter), partition=letter.partition) for letter in letters)
            return not self._sender.wait() and taken
        except BrokerError:
            self._sender = None  # a producer keeps its error, and may not take anything after it
            raise
