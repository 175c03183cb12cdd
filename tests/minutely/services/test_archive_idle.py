"""An archiver of an idle stream: its place moves, as retention asks for, but seldom."""

from __future__ import annotations

from pathlib import Path

import pytest
from deltalake import DeltaTable

from streaming.archive.table import Archive, Position
from streaming.archive.worker import ArchiveWorker
from streaming.embedded_log import EmbeddedLog
from streaming.log import EXAMPLES
from tests.clocks import SetClock
from tests.streaming.archive.test_archive import FORMAT, START, fill, make, names

EVERY = 10
MINUTE = 60_000


@pytest.fixture
def log(tmp_path: Path) -> EmbeddedLog:
    return EmbeddedLog(tmp_path / "log", durable=False)


def test_records_without_examples_are_committed_at_every_tenth_time(log: EmbeddedLog, tmp_path: Path) -> None:
    place = tmp_path / "archive"
    worker, clock = make(log, place, commit_every=EVERY)
    begin = clock.now_ms()
    committed = []
    for at in range(25 * EVERY + 1):
        clock.move_to(begin + at)
        log.append(EXAMPLES, 0, [FORMAT.encode(FORMAT.empty(), START + at)])
        before = worker.commits
        worker.step()
        if worker.commits > before:
            committed.append(at)
            assert Archive(str(place), FORMAT).position(0) == Position(at + 1, START + at), "all that was read"
    assert committed == [10 * EVERY, 20 * EVERY + 1]
    assert DeltaTable(str(place)).version() == 2, "and made as version 0"


@pytest.mark.parametrize(("every", "idle"), [(5 * MINUTE, 10 * MINUTE), (60 * MINUTE, 60 * MINUTE)])
def test_long_times_are_not_waited_for_ten_times(every: int, idle: int, log: EmbeddedLog, tmp_path: Path) -> None:
    """Retention may be as short as a day, and `commit_every` hours."""
    worker, clock = make(log, tmp_path / "archive", commit_every=every)
    begin = clock.now_ms()
    log.append(EXAMPLES, 0, [FORMAT.encode(FORMAT.empty(), START)])
    for after, commits in ((0, 0), (idle - 1, 0), (idle, 1)):
        clock.move_to(begin + after)
        worker.step()
        assert worker.commits == commits


def test_an_example_does_not_wait_for_that_nor_goes_before_its_time(log: EmbeddedLog, tmp_path: Path) -> None:
    worker, clock = make(log, tmp_path / "archive", commit_every=EVERY)
    begin = clock.now_ms()
    log.append(EXAMPLES, 0, [FORMAT.encode(FORMAT.empty(), START)])
    worker.step()
    clock.move_to(begin + 5 * EVERY)
    fill(log, 0, [10, 20])
    worker.step()
    clock.move_to(begin + 6 * EVERY - 1)
    worker.step()
    assert worker.commits == 0
    clock.move_to(begin + 6 * EVERY)
    worker.step()
    assert (worker.commits, worker.examples) == (1, 2)
    assert names(Archive(str(tmp_path / "archive"), FORMAT)) == ["e0", "e1"]


def test_a_clock_that_is_set_back_does_not_delay_a_commit(log: EmbeddedLog, tmp_path: Path) -> None:
    clock = SetClock(0, START)
    worker = ArchiveWorker(
        log, Archive(str(tmp_path / "archive"), FORMAT), FORMAT, clock, EVERY, [0], lambda letters: False
    )
    fill(log, 0, [10, 20])
    worker.step()
    clock.elapsed, clock.ahead = EVERY, START - 60 * MINUTE
    worker.step()
    assert (worker.commits, worker.examples) == (1, 2)


def test_an_archiver_that_ends_commits_what_it_read_without_examples(log: EmbeddedLog, tmp_path: Path) -> None:
    worker, _ = make(log, tmp_path / "archive", commit_every=EVERY)
    log.append(EXAMPLES, 0, [FORMAT.encode(FORMAT.empty(), START)])
    worker.step()
    worker.commit()
    assert Archive(str(tmp_path / "archive"), FORMAT).position(0) == Position(1, START)
