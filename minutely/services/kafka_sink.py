"""Where a replica's records go: the pipeline's topics on Kafka."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from functools import partial

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from basis.problems import Problems
from serving.outbox import Outbox, Outgoing
from streaming.clock import WallClock
from streaming.kafka.client import broker_error
from streaming.kafka.sending import producer_of
from streaming.kafka.settings import KafkaSettings
from streaming.kafka.topics import ensure_topics
from streaming.log import BrokerError
from streaming.retry import Retry

_log = logging.getLogger("minutely.serve")

_DELIVERY_MS = 60_000
_LOST_SECONDS = 1.0
_PURGED_SECONDS = 30.0
_POLL_SECONDS = 0.1
_CLOSE_SECONDS = 5


class KafkaSink:
    """Sends to the pipeline's topics. While brokers are away it waits, and what comes meanwhile fills the outbox."""

    def __init__(self, settings: KafkaSettings, outbox: Outbox) -> None:
        self._settings = settings
        self._outbox = outbox
        self._producer: Producer | None = None
        self._stopping = threading.Event()
        self._retry = Retry(_log, "brokers", WallClock(), settings.asked)

    def send(self, records: Sequence[Outgoing]) -> None:
        """Send records; what the brokers do not take in a minute is counted as dropped."""
        left = list(reversed(records))
        try:
            while left:
                if self._try(left[-1]):
                    left.pop()
                elif self._stopping.wait(0.1):
                    break
            self._listen()
        finally:
            for record in left:
                self._outbox.was_dropped(record.topic, record.size_bytes)

    def _try(self, record: Outgoing) -> bool:
        if not self._retry.ready:
            return False
        try:
            if self._producer is None:
                ensure_topics(self._settings)
                self._producer = producer_of(self._settings, _DELIVERY_MS, linger_ms=20)
        except (BrokerError, Problems) as error:
            self._retry.failed(error)
            return False
        topic, key = self._settings.topic(record.topic), record.key.encode(errors="surrogatepass")
        on_delivery = partial(self._delivered, record.topic, record.size_bytes)
        try:
            self._producer.produce(topic, record.value, key, on_delivery=on_delivery)
        except BufferError:
            self._listen()
            return False
        except KafkaException as error:
            if error.args[0].code() == KafkaError._FATAL:
                self._let_go(_LOST_SECONDS)
                return False
            self._outbox.was_dropped(record.topic, record.size_bytes)  # a record that no broker would take
        return True

    def _listen(self) -> None:
        """Hear what became of records."""
        if self._producer is None:
            return
        try:
            self._producer.poll(0)
        except KafkaException as error:  # the producer is lost: the client raises nothing else here
            self._retry.failed(broker_error(error))
            self._let_go(_LOST_SECONDS)

    def _let_go(self, seconds: float) -> None:
        """Forget the producer; what is on its way has so long to arrive. All of it is counted; the next try makes a new one."""
        producer, self._producer = self._producer, None
        if producer is None:
            return
        self._hear_all(producer, seconds)
        producer.purge()
        # The client says it of every record at once; one that is not heard keeps its place for good.
        self._hear_all(producer, _PURGED_SECONDS)

    def _hear_all(self, producer: Producer, seconds: float) -> None:
        """Hear what became of records until none is on its way, or for so long. The client's `flush` would end at an error."""
        until = time.monotonic() + seconds
        while len(producer) and time.monotonic() < until:
            try:
                producer.poll(_POLL_SECONDS)
            except KafkaException as error:
                self._retry.failed(broker_error(error))

    def _delivered(self, topic: str, size_bytes: int, error: KafkaError | None, _message: Message | None) -> None:
        if error is None:
            self._outbox.was_sent(topic, size_bytes)
            self._retry.worked()
        else:
            self._outbox.was_dropped(topic, size_bytes)
            self._retry.failed(broker_error(error))

    def stop(self) -> None:
        """Do not wait for brokers any longer."""
        self._stopping.set()

    def close(self) -> None:
        """Send what is on its way, in bounded time."""
        self._let_go(_CLOSE_SECONDS)
