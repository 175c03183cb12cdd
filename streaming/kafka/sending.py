"""Producers of what is not a transaction: every record arrives once and in order, or it is said that it did not."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from streaming.kafka.settings import MAX_OUTPUT_BYTES, KafkaSettings
from streaming.kafka.waiting import Patience

_SEND_BYTES = 64 << 20
_POLL_SECONDS = 0.2
_WAIT_SECONDS = 2.0

FOR_EVER = 0
"""As ``delivery_ms``: no record is given up. Then `Sender.wait` takes the place of `Sender.flush`."""


def producer_of(settings: KafkaSettings, delivery_ms: int, linger_ms: int = 5) -> Producer:
    """A producer that gives a record up after ``delivery_ms``."""
    return Producer(
        settings.client()
        | {
            "enable.idempotence": True,
            "partitioner": "murmur2_random",  # as other clients do: both records of a request must share a partition
            "linger.ms": linger_ms,
            "delivery.timeout.ms": delivery_ms,
            "message.max.bytes": MAX_OUTPUT_BYTES,
            "queue.buffering.max.kbytes": _SEND_BYTES >> 10,
        }
    )


class Sender:
    """Sends everything or raises; what is on its way is bounded, and `send` waits where it is too much."""

    def __init__(self, settings: KafkaSettings, delivery_ms: int, linger_ms: int = 5) -> None:
        self._producer = producer_of(settings, delivery_ms, linger_ms)
        self._seconds = delivery_ms / 1000
        self._error: KafkaError | None = None

    def send(self, topic: str, value: bytes, *, key: bytes | None = None, partition: int = -1) -> None:
        """Hand a record over; to the partition of its key, where none is given.

        Raises:
            KafkaException: brokers refused a record, this one or one before, or did not take it in time.
        """
        while True:
            try:
                self._producer.produce(topic, value, key, partition, on_delivery=self._delivered)
            except BufferError:
                self._producer.poll(_POLL_SECONDS)
                self._check()
            else:
                self._producer.poll(0)
                self._check()
                return

    def flush(self) -> None:
        """Wait until brokers have everything; `KafkaException` where they did not take it in time."""
        left = self._producer.flush(self._seconds)
        self._check()
        if left:
            raise KafkaException(
                KafkaError(KafkaError._TIMED_OUT, f"{left} records were not taken in {self._seconds} s")
            )

    def wait(self, brokers: Patience, stop: Callable[[], bool]) -> int:
        """Wait until brokers have everything, however long they are away; how much they do not have where ``stop`` came first."""
        while left := self._producer.flush(_WAIT_SECONDS):
            self._check()
            if stop():
                return left
            what = f"{left} records were not taken in {_WAIT_SECONDS} s"
            brokers.failed(KafkaException(KafkaError(KafkaError._TIMED_OUT, what)))
        self._check()
        brokers.worked()
        return 0

    def __enter__(self) -> Sender:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.flush()

    def _delivered(self, error: KafkaError | None, _message: Message) -> None:
        if error is not None:
            self._error = error

    def _check(self) -> None:
        if self._error is not None:
            raise KafkaException(self._error)
