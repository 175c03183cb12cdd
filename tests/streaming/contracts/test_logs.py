"""The contract of logs over the embedded log and the simulator's brokers; over Kafka it is in `tests.kafka.test_log_contract`."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from streaming.clock import EventClock
from streaming.embedded_log import EmbeddedLog
from streaming.join.embedded import EmbeddedHistory, EmbeddedOutlet
from streaming.log import Record
from tests.simulation.brokers import Brokers, HistoryOf, LogOf, OutletOf
from tests.simulation.process import Crash, Process
from tests.streaming.contracts.logs import COMMITTED, LogContract, SharedLogContract, outgoing


class _Embedded:
    def __init__(self, log: EmbeddedLog, clock: EventClock) -> None:
        self._log = log
        self._clock = clock

    def produce(self, topic: str, *values: bytes) -> None:
        self._log.append(topic, 0, values)

    def read(self, topic: str, offset: int, count: int) -> list[Record]:
        return self._log.read(topic, 0, offset, count)

    def is_at_end(self, topic: str, offset: int) -> bool:
        return not self.read(topic, offset, 1)

    def begin(self, topic: str) -> int:
        return self._log.begin(topic, 0)

    def trim(self, topic: str, offset: int) -> None:
        self._log.trim(topic, 0, offset)

    def now_ms(self) -> int:
        self._clock.move_to(self._clock.now_ms() + 1)
        return self._clock.now_ms()

    def outlet(self) -> EmbeddedOutlet:
        return EmbeddedOutlet(self._log, 0)

    def history(self) -> EmbeddedHistory:
        return EmbeddedHistory(self._log, 0)


class TestEmbedded(LogContract):
    @pytest.fixture
    def log(self, tmp_path: Path) -> Iterator[_Embedded]:
        clock = EventClock(1000)
        with closing(EmbeddedLog(tmp_path, durable=False, clock=clock)) as log:
            yield _Embedded(log, clock)

    def test_a_transaction_outlives_its_process(self, tmp_path: Path) -> None:
        for durable in (False, True):
            folder = tmp_path / str(durable)
            with closing(EmbeddedLog(folder, durable=durable)) as log:
                EmbeddedOutlet(log, 3).send(outgoing("examples", b"a"), COMMITTED)
            with closing(EmbeddedLog(folder, durable=durable)) as log:
                assert EmbeddedOutlet(log, 3).open() == COMMITTED
                assert EmbeddedOutlet(log, 2).open() is None
                assert [record.value for record in log.read("examples", 3, 0, 9)] == [b"a"]


class _Simulated:
    def __init__(self) -> None:
        self._now = 1000
        self._brokers = Brokers(random.Random(1), 1, self.now_ms)
        self._process = Process("test", lambda process: None)

    def produce(self, topic: str, *values: bytes) -> None:
        for value in values:
            self._brokers.produce(topic, 0, value, attempts=0)

    def read(self, topic: str, offset: int, count: int) -> list[Record]:
        return LogOf(self._brokers, self._process).read(topic, 0, offset, count)

    def is_at_end(self, topic: str, offset: int) -> bool:
        return not self.read(topic, offset, 1)

    def begin(self, topic: str) -> int:
        return LogOf(self._brokers, self._process).begin(topic, 0)

    def trim(self, topic: str, offset: int) -> None:
        self._brokers.trim(topic, 0, offset)

    def now_ms(self) -> int:
        self._now += 1
        return self._now

    def outlet(self) -> OutletOf:
        return OutletOf(self._brokers, self._process, 0)

    def history(self) -> HistoryOf:
        return HistoryOf(self._brokers, self._process, 0)

    def leave_open(self, topic: str, *values: bytes) -> None:
        process = Process("vanishes", lambda process: None)
        outlet = OutletOf(self._brokers, process, 0)
        outlet.open()
        process.crash_in = 1 + len(values) + 1  # before it commits
        with pytest.raises(Crash):
            outlet.send(outgoing(topic, *values), COMMITTED)


class TestSimulated(SharedLogContract):
    @pytest.fixture
    def log(self) -> _Simulated:
        return _Simulated()
