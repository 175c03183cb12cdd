"""What joiners, trainers and archivers rely on, of every log that they run over: embedded, Kafka, and the simulator's brokers.

A subclass of `LogContract` names its log by the fixture ``log``; where others may write beside us, it takes `SharedLogContract`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import pytest
from msgspec.structs import replace

from basis.problems import GapError
from streaming.log import DEAD_LETTERS, ENGAGEMENTS, EXAMPLES, IMPRESSIONS, Record
from streaming.loop.brokers import History, Outlet, OutputRecord
from tests.streaming.join.commits import a_commit

COMMITTED = a_commit()


class LogUnderTest(Protocol):
    """One partition of a log with nothing in it."""

    def produce(self, topic: str, *values: bytes) -> None:
        """Add records, as products do."""

    def read(self, topic: str, offset: int, count: int) -> list[Record]:
        """What a `LogReader` gives: ``count`` records from ``offset`` on, which are waited for."""

    def is_at_end(self, topic: str, offset: int) -> bool:
        """Whether a `LogReader` gives nothing from ``offset`` on."""

    def begin(self, topic: str) -> int:
        """By `LogReader`."""

    def trim(self, topic: str, offset: int) -> None:
        """Forget records, as retention does."""

    def now_ms(self) -> int:
        """The broker's time."""

    def outlet(self) -> Outlet:
        """Of another life of the partition's joiner."""

    def history(self) -> History:
        """Of the partition."""


class LogWithOthers(LogUnderTest, Protocol):
    """One that other processes write to."""

    def leave_open(self, topic: str, *values: bytes) -> None:
        """Begin a transaction of the partition, and vanish in the middle of it."""


def values_of(records: Sequence[Record]) -> list[bytes]:
    return [record.value for record in records]


def outgoing(topic: str, *values: bytes) -> list[OutputRecord]:
    return [OutputRecord(topic, value) for value in values]


def all_of(history: History, topic: str, start: int, stop: int) -> list[Record]:
    return [record for records in history.read(topic, start, stop) for record in records]


class LogContract:
    def test_records_are_read_in_order_from_any_offset_on(self, log: LogUnderTest) -> None:
        assert log.begin(IMPRESSIONS) == log.history().end(IMPRESSIONS) == 0
        log.produce(IMPRESSIONS, b"a", b"", b"c")
        log.produce(ENGAGEMENTS, b"x")
        records = log.read(IMPRESSIONS, 0, 3)
        assert [(record.offset, record.value) for record in records] == [(0, b"a"), (1, b""), (2, b"c")]
        assert log.read(IMPRESSIONS, 1, 1) == records[1:2]
        assert log.read(IMPRESSIONS, 2, 1) == records[2:]
        assert log.is_at_end(IMPRESSIONS, log.history().end(IMPRESSIONS))
        assert values_of(log.read(ENGAGEMENTS, 0, 1)) == [b"x"]

    def test_a_record_says_when_its_broker_took_it(self, log: LogUnderTest) -> None:
        before = log.now_ms()
        log.produce(IMPRESSIONS, b"a")
        between = log.now_ms()
        log.produce(IMPRESSIONS, b"b")
        first, second = log.read(IMPRESSIONS, 0, 2)
        assert 0 < before <= first.appended_at <= between <= second.appended_at <= log.now_ms()
        assert all_of(log.history(), IMPRESSIONS, 0, 2) == [first, second]

    def test_what_is_gone_is_an_error_and_no_record(self, log: LogUnderTest) -> None:
        log.produce(EXAMPLES, b"a", b"b", b"c")
        log.trim(EXAMPLES, 2)
        assert log.begin(EXAMPLES) == log.history().beginning(EXAMPLES) == 2
        assert values_of(log.read(EXAMPLES, 2, 1)) == [b"c"]
        with pytest.raises(GapError):
            log.read(EXAMPLES, 1, 1)

    def test_a_transaction_comes_with_what_it_says(self, log: LogUnderTest) -> None:
        outlet = log.outlet()
        assert outlet.open() is None
        ends = outlet.send([*outgoing(EXAMPLES, b"a", b"b"), *outgoing(DEAD_LETTERS, b"x")], COMMITTED)
        assert ends == {EXAMPLES: log.read(EXAMPLES, 0, 2)[-1].offset + 1, DEAD_LETTERS: 1}
        assert values_of(log.read(EXAMPLES, 0, 2)) == [b"a", b"b"]
        assert values_of(log.read(DEAD_LETTERS, 0, 1)) == [b"x"]
        assert log.outlet().open() == COMMITTED

    def test_a_transaction_may_say_something_without_a_record(self, log: LogUnderTest) -> None:
        outlet = log.outlet()
        outlet.open()
        outlet.send(outgoing(EXAMPLES, b"a"), COMMITTED)
        newer = replace(COMMITTED, sequence=8, published=2000)
        assert outlet.send([], newer) == {}
        assert log.outlet().open() == newer

    def test_history_gives_what_is_asked_for_and_nothing_else(self, log: LogUnderTest) -> None:
        outlet = log.outlet()
        outlet.open()
        for number in range(3):
            outlet.send(outgoing(EXAMPLES, b"a%d" % number, b"b%d" % number), replace(COMMITTED, sequence=number))
        history = log.history()
        records = log.read(EXAMPLES, 0, 6)
        for start in (0, records[1].offset, records[2].offset):
            for stop in (records[2].offset, records[4].offset, history.end(EXAMPLES)):
                expected = [record for record in records if start <= record.offset < stop]
                assert all_of(history, EXAMPLES, start, stop) == expected


class SharedLogContract(LogContract):
    def test_who_opens_last_is_the_only_one_that_writes(self, log: LogWithOthers) -> None:
        first, second = log.outlet(), log.outlet()
        first.open()
        first.send(outgoing(EXAMPLES, b"a"), COMMITTED)
        assert second.open() == COMMITTED
        with pytest.raises(Exception, match=r"(?i)fenced|epoch"):
            first.send(outgoing(EXAMPLES, b"lost"), replace(COMMITTED, sequence=8))
        second.send(outgoing(EXAMPLES, b"b"), replace(COMMITTED, sequence=9))
        assert values_of(log.read(EXAMPLES, 0, 2)) == [b"a", b"b"]
        assert log.outlet().open() == replace(COMMITTED, sequence=9)

    def test_nothing_is_read_of_a_transaction_that_came_to_no_end(self, log: LogWithOthers) -> None:
        log.leave_open(EXAMPLES, b"a", b"b")
        assert log.history().end(EXAMPLES) == 2, "records of others may stand behind it"
        assert log.is_at_end(EXAMPLES, 0)
        outlet = log.outlet()
        assert outlet.open() is None, "it fences whoever is in the middle of one, and that is not committed"
        outlet.send(outgoing(EXAMPLES, b"c"), COMMITTED)
        records = log.read(EXAMPLES, 0, 1)
        assert values_of(records) == [b"c"]
        assert records[0].offset > 2, "the records and the mark of the other one are passed over"
        assert all_of(log.history(), EXAMPLES, 0, log.history().end(EXAMPLES)) == records
