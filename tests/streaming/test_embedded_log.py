"""The embedded log: records come back in order from any offset, also after a restart."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from basis.problems import GapError
from streaming.clock import EventClock
from streaming.embedded_log import EmbeddedLog
from streaming.log import Record


@pytest.fixture
def log(tmp_path: Path) -> EmbeddedLog:
    return open_log(tmp_path)


def open_log(folder: Path, durable: bool = False) -> EmbeddedLog:
    """Open a log with a clock that stays at 0, so that records can be compared."""
    return EmbeddedLog(folder / "log", durable=durable, clock=EventClock())


def numbered(start: int, stop: int) -> list[Record]:
    return [Record(at, b"%d" % at) for at in range(start, stop)]


def test_records_come_back_in_order(log: EmbeddedLog) -> None:
    assert log.end("topic", 0) == 0
    assert log.read("topic", 0, 0, 10) == []
    log.append("topic", 0, [b"0", b"1"])
    log.append("topic", 0, [])
    log.append("topic", 0, [b"2"])
    assert log.end("topic", 0) == 3
    assert log.read("topic", 0, 0, 10) == numbered(0, 3)
    assert log.read("topic", 0, 1, 1) == numbered(1, 2)
    assert log.read("topic", 0, 3, 10) == []
    assert log.read("topic", 0, 99, 10) == []


def test_offsets_sort_as_numbers(log: EmbeddedLog) -> None:
    log.append("topic", 0, [b"%d" % at for at in range(1000)])
    assert log.read("topic", 0, 250, 20) == numbered(250, 270)
    assert [record.offset for record in log.read("topic", 0, 0, 5000)] == list(range(1000))


def test_partitions_and_topics_do_not_mix(log: EmbeddedLog) -> None:
    """Even if the names of topics, or the bytes of partitions, begin alike."""
    places = [(topic, partition) for topic in ("a", "a-b", "ab", "b") for partition in (0, 1, 256)]
    for at, (topic, partition) in enumerate(places):
        assert log.end(topic, partition) == 0
        log.append(topic, partition, [f"{topic} {partition} {number}".encode() for number in range(at + 1)])
    log.trim("a", 1, 1)
    for at, (topic, partition) in enumerate(places):
        assert log.end(topic, partition) == at + 1
        start = 1 if (topic, partition) == ("a", 1) else 0
        assert [record.value.decode() for record in log.read(topic, partition, start, 99)] == [
            f"{topic} {partition} {number}" for number in range(start, at + 1)
        ]


@pytest.mark.parametrize("durable", [False, True])
def test_a_closed_log_is_there_again(tmp_path: Path, durable: bool) -> None:
    log = open_log(tmp_path, durable)
    log.append("topic", 3, [b"0", b"1", b"2"])
    log.trim("topic", 3, 3)
    log.close()
    log = open_log(tmp_path, durable)
    assert log.end("topic", 3) == 3, "the last record stays, since it tells the end"
    assert log.end("topic", 2) == 0
    log.append("topic", 3, [b"3"])
    assert log.read("topic", 3, 2, 10) == numbered(2, 4)
    log.close()


def test_trimmed_records_are_gone(log: EmbeddedLog) -> None:
    log.append("topic", 0, [b"%d" % at for at in range(10)])
    log.trim("topic", 0, 4)
    assert log.read("topic", 0, 4, 3) == numbered(4, 7)
    for offset in range(4):
        with pytest.raises(GapError, match=f"topic/0: the log begins at offset 4, records from {offset} on are needed"):
            log.read("topic", 0, offset, 100)
    log.trim("topic", 0, 2)
    assert log.read("topic", 0, 4, 100) == numbered(4, 10)
    log.append("topic", 0, [b"10"])
    assert log.read("topic", 0, 9, 100) == numbered(9, 11)


def test_an_empty_partition_can_be_trimmed(log: EmbeddedLog) -> None:
    """The loop does this to an input without records."""
    log.trim("topic", 0, 0)
    log.append("topic", 0, [b"0"])
    assert log.read("topic", 0, 0, 10) == numbered(0, 1)
    log.trim("topic", 0, 0)
    assert log.read("topic", 0, 0, 10) == numbered(0, 1)


@settings(max_examples=15)
@given(st.lists(st.tuples(st.sampled_from(["append", "append", "trim", "reopen"]), st.integers(0, 30)), max_size=12))
def test_it_is_a_list_of_records(steps: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        log, records, start = open_log(Path(folder)), [b"first"], 0
        log.append("topic", 0, records)
        for step, number in steps:
            if step == "append":
                new = [b"%d" % (number + at) for at in range(number % 5)]
                log.append("topic", 0, new)
                records += new
            elif step == "trim":
                log.trim("topic", 0, number)
                start = max(start, min(number, len(records) - 1))
            else:
                log.close()
                log = open_log(Path(folder))
            assert log.end("topic", 0) == len(records)
            expected = [Record(at, value) for at, value in enumerate(records)]
            assert log.read("topic", 0, start, 1000) == expected[start:]
            assert log.read("topic", 0, start, 3) == expected[start : start + 3]
        log.close()
