"""The joiners' service over the embedded log, as a replay drives it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from streaming.clock import EventClock
from streaming.embedded_log import EmbeddedLog
from streaming.join import store as join_store
from streaming.join.embedded import catch_up, embedded_service
from streaming.join.settings import JoinSettings
from streaming.join.spec import JoinSpec
from streaming.join.state import JoinState
from streaming.join.store import RocksStore
from streaming.log import DEAD_LETTERS, ENGAGEMENTS, EXAMPLES, IMPRESSIONS
from tests.streaming.join.join_world import (
    CLICK,
    FEATURES,
    Done,
    Served,
    clicks_service,
    engagement_record,
    request_record,
)

NOW = 5000


@pytest.fixture
def clock() -> EventClock:
    return EventClock(NOW)


@pytest.fixture
def log(tmp_path: Path, clock: EventClock) -> Iterator[EmbeddedLog]:
    with closing(EmbeddedLog(tmp_path / "log", durable=False, clock=clock)) as log:
        yield log


def requests(first: int, count: int) -> list[bytes]:
    return [request_record(Served(f"r{number}", NOW - 10, 1)) for number in range(first, first + count)]


def full_state(folder: Path) -> JoinState:
    """Of a run whose memory is full at once."""
    return JoinState(folder, 1, partial(RocksStore, can_rebuild=False))


def test_one_round_joins_all_that_is_there(log: EmbeddedLog, clock: EventClock) -> None:
    """Impressions first, whatever came first: an engagement whose request is there never waits for it."""
    service = clicks_service(log, clock)
    catch_up(service)
    count = 5000
    clicks = [engagement_record(Done(f"r{number}", f"r{number}.0", "click", NOW - 1, 1)) for number in range(count)]
    log.append(ENGAGEMENTS, 0, clicks)
    log.append(IMPRESSIONS, 0, requests(0, count))
    clock.move_to(NOW + 1)
    service.round()
    assert service.caught_up
    join = service.members[0].work
    assert join.offsets == {IMPRESSIONS: count, ENGAGEMENTS: count}
    assert join.joiner.counts.examples == count
    assert log.end(DEAD_LETTERS, 0) == 0


def test_nothing_is_written_while_nothing_comes_and_no_time_passes(log: EmbeddedLog, clock: EventClock) -> None:
    service = clicks_service(log, clock)
    for _ in range(3):
        catch_up(service)
    assert log.end(EXAMPLES, 0) == 0
    clock.move_to(NOW + 1)
    for _ in range(3):
        catch_up(service)
    assert log.end(EXAMPLES, 0) == 1


def test_who_leaves_lets_go_of_the_state(log: EmbeddedLog, clock: EventClock, tmp_path: Path) -> None:
    folder = tmp_path / "pending"
    service = embedded_service(log, JoinSpec(FEATURES, CLICK, JoinSettings()), partial(full_state, folder), clock)
    service.start()
    log.append(IMPRESSIONS, 0, requests(0, 10))
    catch_up(service)
    assert service.members[0].work.pending == 10
    service.leave()
    assert not service.members
    RocksStore(folder).close()


def test_what_is_lost_on_disk_ends_the_run(
    log: EmbeddedLog, clock: EventClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its log forgets what was joined, so that no state can be made anew from it."""
    monkeypatch.setattr(join_store, "_WRITE_BUFFER_BYTES", 64 << 10)  # what was written leaves memory soon
    folder = tmp_path / "pending"
    service = embedded_service(log, JoinSpec(FEATURES, CLICK, JoinSettings()), partial(full_state, folder), clock)
    service.start()
    log.append(IMPRESSIONS, 0, requests(0, 10))
    catch_up(service)
    shutil.rmtree(folder)
    with pytest.raises(Exception, match="No such file or directory"):
        for first in range(10, 20_000, 100):
            log.append(IMPRESSIONS, 0, requests(first, 100))
            catch_up(service)
    service.leave()
