"""Records to the inputs by kafka-python: bounded in memory and in waiting, and every record is acknowledged or told as lost."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from kafka import KafkaProducer
from kafka.errors import KafkaConnectionError, KafkaError

from minutely.client.kafka_logs import keep_secrets, noting_why
from streaming.kafka.settings import KafkaSettings, tls_context
from streaming.log import INPUTS, BrokerError
from streaming.records.events import MAX_RECORD_BYTES, BadRecord

_LINGER_MS = 5
_BATCH_BYTES = 128 << 10
"""With the client's default of 16 KiB, records of 9 KB take four times the CPU."""
_OVERHEAD_BYTES = 1024
"""A record's key and frame have less."""
_REQUEST_MS = 30_000
_LONGEST_SECONDS = 1e9
_PAUSE_SECONDS = 1.0


class Lost(NamedTuple):
    """A record of which it is not known that brokers have it; they may."""

    topic: str
    request_id: str
    value: bytes
    error: BrokerError


class NoRoom(BrokerError):
    """As many bytes wait for brokers as may; the record was not taken."""


class Sender:
    """Sends records to the partition of their request, from any thread.

    It connects with the first record. Values of at most ``memory_bytes`` wait for brokers, each for ``delivery_seconds``; what
    they did not take by then goes to ``on_lost``, in the client's own thread, which must not wait for anything. A call waits for
    at most ``wait_seconds`` to connect, as long to find the topics, and as long for room. Make one in each process, after
    it forked.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        on_lost: Callable[[Lost], None],
        *,
        memory_bytes: int,
        wait_seconds: float,
        delivery_seconds: float,
    ) -> None:
        for name, given, least in (
            ("memory_bytes", memory_bytes, 1),
            ("wait_seconds", wait_seconds, 0.1),
            ("delivery_seconds", delivery_seconds, 1),
        ):
            if not given >= least:
                raise ValueError(f"{name} {given}; allowed: {least} or more")
        delivery_ms = round(min(delivery_seconds, _LONGEST_SECONDS) * 1000)
        self._options = producer_options(settings) | {
            "delivery_timeout_ms": delivery_ms,
            "request_timeout_ms": min(_REQUEST_MS, delivery_ms - _LINGER_MS),
            "max_block_ms": round(wait_seconds * 1000),
            "bootstrap_timeout_ms": round(wait_seconds * 1000),
        }
        self._topics = [settings.topic(name) for name in INPUTS]
        self._asked = settings.asked
        self._has_password = settings.sasl is not None
        self._on_lost = on_lost
        self._memory_bytes = memory_bytes
        self._wait_seconds = wait_seconds
        self._connecting = threading.Lock()
        self._producer: Any = None
        self._failed: tuple[float, BrokerError] | None = None
        self._changed = threading.Condition()
        self._waiting = dict[int, Lost]()
        self._waiting_bytes = 0
        self._number = 0
        self._closed = False
        self.acknowledged = Counter[str]()
        """The records that brokers have, by topic."""

    def send(self, topic: str, request_id: str, value: bytes) -> None:
        """Take a record.

        Raises:
            BadRecord: it is too large.
            BrokerError: it was not taken: brokers are away or refuse, or there is no room (`NoRoom`).
        """
        if len(value) > MAX_RECORD_BYTES:
            raise BadRecord("too_large", f"request {request_id:.60}: {len(value)} bytes; allowed: {MAX_RECORD_BYTES}")
        producer = self.connect()
        number = self._reserve(topic, request_id, value)
        try:
            sent = producer.send(topic, value, request_id.encode())
        except (KafkaError, ValueError) as error:  # a ValueError where the topic went away
            self._drop(number)
            raise broker_error(error, self._asked) from None
        except BaseException:
            self._drop(number)
            raise
        sent.add_callback(self._was_taken, number)
        sent.add_errback(self._was_lost, number)

    def flush(self, seconds: float) -> int:
        """Wait until brokers have everything, or for so long; return how many records they lack."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting, seconds)
            return len(self._waiting)

    def close(self, seconds: float) -> int:
        """Send what waits, for at most so long; the rest goes to ``on_lost``. Return how many records that were."""
        left = self.flush(seconds)
        with self._connecting:
            self._closed = True
            producer, self._producer = self._producer, None
        if producer is not None:
            if left:
                producer._sender.force_close()  # `close` alone would leave a thread that goes on trying
                producer._sender.join(self._wait_seconds)
            with suppress(KafkaError):
                producer.close(timeout=0 if left else self._wait_seconds)
        with self._changed:
            numbers = list(self._waiting)
        for number in numbers:  # of which the client itself said nothing
            self._was_lost(number, KafkaError("closed before brokers took it"))
        return left

    def connect(self) -> Any:
        """Return kafka-python's producer, connected at first; `BrokerError` if that fails, and for a second after that."""
        if self._producer is not None:
            return self._producer
        if not self._connecting.acquire(timeout=self._wait_seconds):
            raise BrokerError(f"TIMED_OUT: another thread is connecting; asked {self._asked}")
        try:
            if self._closed:
                raise ValueError("the client is closed; allowed: to send before it is")
            if self._failed is not None and time.monotonic() < self._failed[0]:
                raise BrokerError(str(self._failed[1]))
            if self._producer is None:
                self._producer = self._connect()
            return self._producer
        except BrokerError as error:
            self._failed = self._failed or (time.monotonic() + _PAUSE_SECONDS, error)
            raise
        finally:
            self._connecting.release()

    def _connect(self) -> Any:
        self._failed = None
        with noting_why() as reason:
            try:
                producer = KafkaProducer(**self._options)
            except KafkaError as error:
                why = reason.error or error
                hung_up = self._has_password and isinstance(why, KafkaConnectionError)
                also = "; a broker hangs up also where user name or password are wrong" if hung_up else ""
                raise broker_error(why, self._asked + also) from None
            except ValueError as error:
                raise ValueError(
                    f"brokers {self._asked}: {error}; allowed: host:port, with commas between them"
                ) from None
        try:
            for topic in self._topics:
                producer.partitions_for(topic)
        except KafkaError as error:
            producer.close(timeout=0)
            raise broker_error(error, f"{self._asked} for topic {topic}") from None
        return producer

    def _reserve(self, topic: str, request_id: str, value: bytes) -> int:
        """Return the number of a record that has room now."""
        with self._changed:
            has_room = self._changed.wait_for(
                lambda: not self._waiting or self._waiting_bytes + len(value) <= self._memory_bytes, self._wait_seconds
            )
            if not has_room:
                raise NoRoom(
                    f"NO_ROOM: {self._waiting_bytes} bytes wait for brokers; allowed: {self._memory_bytes}; asked {self._asked}"
                )
            self._number += 1
            self._waiting[self._number] = Lost(topic, request_id, value, BrokerError("WAITING"))
            self._waiting_bytes += len(value)
            return self._number

    def _drop(self, number: int, acknowledged: int = 0) -> Lost | None:
        """Forget a record that waits, and return it."""
        with self._changed:
            record = self._waiting.pop(number, None)
            if record is not None:
                self._waiting_bytes -= len(record.value)
                self.acknowledged[record.topic] += acknowledged
                self._changed.notify_all()
            return record

    def _was_taken(self, number: int, _metadata: object) -> None:
        self._drop(number, acknowledged=1)

    def _was_lost(self, number: int, error: Exception) -> None:
        record = self._drop(number)
        if record is not None:
            self._on_lost(record._replace(error=broker_error(error, self._asked)))


def producer_options(settings: KafkaSettings) -> dict[str, Any]:
    """Return what kafka-python is told of brokers and sending. It may hold a password: never print it.

    Its own partitioner, murmur2, is that of all producers. Idempotence, all acknowledgements and retries are its defaults.
    """
    tls, sasl = settings.tls, settings.sasl
    options: dict[str, Any] = {
        "bootstrap_servers": settings.brokers,
        "allow_auto_create_topics": False,
        "compression_type": "lz4",
        "linger_ms": _LINGER_MS,
        "batch_size": _BATCH_BYTES,
        "max_request_size": MAX_RECORD_BYTES + _OVERHEAD_BYTES,
        "reconnect_backoff_max_ms": 1000,
        "metadata_max_age_ms": 30_000,
        "metrics_enabled": False,
        "security_protocol": settings.protocol,
    }
    if tls is not None:
        options["ssl_context"] = tls_context(tls)
    if sasl is not None:
        keep_secrets()
        options |= {
            "sasl_mechanism": sasl.mechanism,
            "sasl_plain_username": sasl.username,
            "sasl_plain_password": sasl.password(),
        }
    return options


def broker_error(error: BaseException, asked: str) -> BrokerError:
    """Convert an error of the client, whose text begins with its name."""
    return BrokerError(f"{error}; asked {asked}")
