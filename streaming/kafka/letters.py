"""Dead letters of the services that read `examples`: brokers have them before a service commits past the records concerned."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from streaming.kafka.sending import RetryingSender
from streaming.kafka.settings import KafkaSettings
from streaming.log import DEAD_LETTERS, BrokerError
from streaming.records.events import DeadLetter, encode
from streaming.waiting import retrying

_REFUSED = frozenset({"MSG_SIZE_TOO_LARGE", "RECORD_LIST_TOO_LARGE", "INVALID_RECORD", "INVALID_TIMESTAMP"})
"""Errors after which no broker will ever take the same again."""


class LetterSender:
    """Sends dead letters and logs them. It waits for brokers that are down, until ``stop``; letters that brokers will never take,
    because of what a topic allows, are lost, which it logs and counts."""

    def __init__(self, settings: KafkaSettings, log: logging.Logger, stop: Callable[[], bool]) -> None:
        self._settings = settings
        self._topic = settings.topic(DEAD_LETTERS)
        self._log = log
        self._stop = stop
        self._sender: RetryingSender | None = None
        self._tried = False
        self.is_missing_some = False
        """Whether brokers may lack letters that were to be sent: ``stop`` came first."""
        self.lost = 0
        """How many letters brokers will never take."""

    def send(self, letters: Sequence[DeadLetter]) -> bool:
        """Send letters; return whether brokers have all that they will take, False if ``stop`` came first. After a failure, brokers
        may have some twice."""
        first = letters[0]
        self._log.warning(
            "%d dead letters, such as %s/%d, offset %d, %s: %s",
            len(letters), first.topic, first.partition, first.offset, first.reason, first.detail,
        )  # fmt: skip
        self._tried = False  # a service that is to end tries once
        batches = [list(letters)]
        sent = retrying(
            self._log,
            lambda: self._tried and self._stop(),
            lambda: self._try(batches),
            self._settings.asked,
            what="dead letters",
        )
        self.is_missing_some |= not sent
        return bool(sent)

    def _try(self, batches: list[list[DeadLetter]]) -> bool:
        """Send batch by batch, and drop those that are done with; one that is refused goes letter by letter."""
        self._tried = True
        while batches:
            self._sender = self._sender or RetryingSender(self._settings, self._log, self._stop)
            send, topic = self._sender.send, self._topic
            try:
                taken = all(send(topic, encode(letter), partition=letter.partition) for letter in batches[0])
                if self._sender.wait() or not taken:
                    return False
                del batches[0]
            except BrokerError as error:
                self._sender = None  # a producer keeps its error, and may not take anything after it
                if error.name not in _REFUSED:
                    raise
                self._refused(batches, error)
        return True

    def _refused(self, batches: list[list[DeadLetter]], error: BrokerError) -> None:
        refused = batches.pop(0)
        if len(refused) > 1:
            batches[:0] = [[letter] for letter in refused]
            return
        (letter,) = refused
        self.lost += 1
        self._log.error(
            "brokers refuse the dead letter of %s/%d, offset %d (%s), which is lost: %s",
            letter.topic, letter.partition, letter.offset, letter.reason, error,
        )  # fmt: skip
