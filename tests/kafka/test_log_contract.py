"""The contract of logs over Kafka."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from confluent_kafka import Producer

from streaming.kafka.history import KafkaHistory
from streaming.kafka.log import KafkaLog
from streaming.kafka.outlet import KafkaOutlet
from streaming.kafka.settings import KafkaSettings
from streaming.kafka.topics import ensure_topics
from streaming.log import Record
from tests.kafka.joining import now_ms
from tests.kafka.traffic import delete_before, producer_of
from tests.streaming.contracts.logs import SharedLogContract

_SECONDS, _AT_END_SECONDS = 20, 0.5


class _Kafka:
    def __init__(self, settings: KafkaSettings, closed: ExitStack) -> None:
        self._settings = settings
        self._closed = closed
        self._logs: dict[str, KafkaLog] = {}

    def produce(self, topic: str, *values: bytes) -> None:
        with producer_of(self._settings) as producer:
            for value in values:
                producer.send(self._settings.topic(topic), value, partition=0)

    def read(self, topic: str, offset: int, count: int, seconds: float = _SECONDS) -> list[Record]:
        log, found = self._log(topic), list[Record]()
        until = time.monotonic() + seconds
        while len(found) < count and time.monotonic() < until:
            found += log.read(topic, 0, found[-1].offset + 1 if found else offset, count - len(found))
            log.fill(50)
        return found

    def is_at_end(self, topic: str, offset: int) -> bool:
        return not self.read(topic, offset, 1, _AT_END_SECONDS)

    def begin(self, topic: str) -> int:
        return self._log(topic).begin(topic, 0)

    def trim(self, topic: str, offset: int) -> None:
        delete_before(self._settings, topic, 0, offset)

    def now_ms(self) -> int:
        return now_ms()

    def outlet(self) -> KafkaOutlet:
        outlet = KafkaOutlet(self._settings, 0)
        self._closed.callback(outlet.close)
        return outlet

    def history(self) -> KafkaHistory:
        return KafkaHistory(self._settings, 0)

    def leave_open(self, topic: str, *values: bytes) -> None:
        producer = Producer(
            self._settings.client() | {"transactional.id": f"{self._settings.topic('minutely-joined')}-0"}
        )
        producer.init_transactions(_SECONDS)
        producer.begin_transaction()
        for value in values:
            producer.produce(self._settings.topic(topic), value, partition=0)
        assert producer.flush(_SECONDS) == 0

    def _log(self, topic: str) -> KafkaLog:
        if topic not in self._logs:
            self._logs[topic] = KafkaLog(self._settings, topic)
            self._closed.callback(self._logs[topic].close)
        return self._logs[topic]


class TestKafka(SharedLogContract):
    @pytest.fixture
    def log(self, kafka: KafkaSettings) -> Iterator[_Kafka]:
        settings = kafka.model_copy(update={"partitions": 1})
        ensure_topics(settings)
        with ExitStack() as closed:
            yield _Kafka(settings, closed)
