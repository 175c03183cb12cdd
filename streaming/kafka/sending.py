"""Producers for records outside transactions: every record arrives once and in order, or the failure is reported."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from streaming.clock import WallClock
from streaming.kafka.client import POLL_SECONDS, as_broker_error, broker_error, offer, timed_out
from streaming.kafka.settings import MAX_OUTPUT_BYTES, KafkaSettings
from streaming.retry import Retry

_SEND_BYTES = 64 << 20
_WAIT_SECONDS = 2.0
_FOR_EVER = 0


@as_broker_error
def producer_of(settings: KafkaSettings, delivery_ms: int, linger_ms: int) -> Producer:
    """Return a producer that gives up on a record after ``delivery_ms``; never, if that is 0."""
    return Producer(
        settings.client()
        | {
            "enable.idempotence": True,
            "partitioner": "murmur2_random",  # like other clients: all records of a request must share a partition
            "linger.ms": linger_ms,
            "delivery.timeout.ms": delivery_ms,
            "message.max.bytes": MAX_OUTPUT_BYTES,
            "queue.buffering.max.kbytes": _SEND_BYTES >> 10,
        }
    )


class Outgoing(Protocol):
    """A client's bounded queue of records, which are never given up. Its calls raise `BrokerError` if brokers refused a record."""

    @property
    def taken(self) -> Counter[str]:
        """The records that brokers acknowledged, by topic."""

    def offer(self, topic: str, value: bytes, key: bytes | None, partition: int) -> bool:
        """Queue a record, for the partition of its key if that is -1; False, after a short wait, if the queue is full."""

    def flush(self, seconds: float) -> int:
        """Wait until brokers have everything, or for so long; return how many records they lack."""


class Librdkafka:
    """The queue of librdkafka."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._producer = producer_of(settings, _FOR_EVER, linger_ms=5)
        self._error: KafkaError | None = None
        self.taken = Counter[str]()

    @as_broker_error
    def offer(self, topic: str, value: bytes, key: bytes | None, partition: int) -> bool:
        """Queue a record; False, after a short wait, if the queue is full."""
        queued = offer(self._producer, topic, value, key, partition, self._delivered)
        if queued:
            self._producer.poll(0)
        self._check()
        return queued

    @as_broker_error
    def flush(self, seconds: float) -> int:
        """Wait until brokers have everything, or for so long; return how many records they lack."""
        left = self._producer.flush(seconds)
        self._check()
        return left

    def _delivered(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._error = error
        else:
            self.taken[message.topic() or ""] += 1

    def _check(self) -> None:
        if self._error is not None:
            raise KafkaException(self._error)


class RetryingSender:
    """Sends from a bounded queue, librdkafka's unless one is given. Waits for brokers however long they are down, logs that
    once, and gives up when ``stop`` returns true."""

    def __init__(
        self, settings: KafkaSettings, log: logging.Logger, stop: Callable[[], bool], client: Outgoing | None = None
    ) -> None:
        self._client: Outgoing = client or Librdkafka(settings)
        self._stop = stop
        self._brokers = Retry(log, "brokers", WallClock(), settings.asked)
        self._before = 0
        self._moved_at = time.monotonic()

    def send(self, topic: str, value: bytes, *, key: bytes | None = None, partition: int = -1) -> bool:
        """Queue a record, for the partition of its key if none is given; False if ``stop`` came first.

        Raises:
            BrokerError: brokers refused this record or an earlier one.
        """
        self._moved_at = time.monotonic()
        while not self._client.offer(topic, value, key, partition):
            if self._stop():
                return False
            self._look()
        return True

    @property
    def taken(self) -> Counter[str]:
        """The records that brokers acknowledged, by topic."""
        return self._client.taken

    def wait(self) -> int:
        """Wait until brokers have everything. Return how many records they lack, which is 0 unless ``stop`` came first.

        Raises:
            BrokerError: brokers refused a record.
        """
        self._moved_at = time.monotonic()
        while self._client.flush(POLL_SECONDS):
            if self._stop():
                return self._client.flush(_WAIT_SECONDS)
            self._look()
        self._brokers.worked()
        return 0

    def _look(self) -> None:
        """Log if brokers have acknowledged nothing for 2 s."""
        now, taken = time.monotonic(), self.taken.total()
        if taken > self._before:
            self._before, self._moved_at = taken, now
        elif now > self._moved_at + _WAIT_SECONDS:
            self._moved_at = now
            late = timed_out(f"{self._client.flush(0)} records were not acknowledged in {_WAIT_SECONDS:g} s")
            self._brokers.failed(broker_error(late))
