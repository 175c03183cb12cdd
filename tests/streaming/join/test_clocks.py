"""A joiner whose own clock is off is told by the stamps of what comes, once; backlogs and pauses are no fault of a clock."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from streaming.clock import EventClock
from streaming.embedded_log import EmbeddedLog
from streaming.join.embedded import catch_up
from streaming.join.metrics import JoinMetrics
from streaming.join.service import JoinService
from streaming.log import ENGAGEMENTS, IMPRESSIONS
from tests.streaming.join.join_world import Done, Served, clicks_service, engagement_record, request_record

SECOND, MINUTE = 1000, 60_000
START = 1_700_000_000_000


class Apart:
    """A joiner whose clock is ``ahead`` (ms) of that of the log."""

    def __init__(self, folder: Path, ahead: int, max_ahead: int = 5 * SECOND) -> None:
        self._ahead = ahead
        self._brokers, self._ours = EventClock(START), EventClock(START + ahead)
        self.log = EmbeddedLog(folder / "log", durable=False, clock=self._brokers)
        self.service: JoinService = clicks_service(self.log, self._ours, lateness=100, max_ahead=max_ahead)
        self._sent = 0

    def wait(self, milliseconds: int) -> None:
        now_ms = self._brokers.now_ms() + milliseconds
        self._brokers.move_to(now_ms)
        self._ours.move_to(now_ms + self._ahead)

    def send(self, topic: str, count: int = 1) -> None:
        for _ in range(count):
            self._sent += 1
            name, at = f"r{self._sent}", self._brokers.now_ms()
            request = request_record(Served(name, at, 1))
            done = engagement_record(Done("nobody", "0", "click", at, 1))
            self.log.append(topic, 0, [request if topic == IMPRESSIONS else done])

    def join(self) -> None:
        catch_up(self.service)

    @property
    def shown(self) -> float:
        """The metric, seconds."""
        (found,) = [
            sample.value
            for family in JoinMetrics(self.service).collect()
            for sample in family.samples
            if sample.name == "minutely_join_clock_ahead_seconds"
        ]
        return found

    def close(self) -> None:
        self.service.leave()
        self.log.close()


@pytest.fixture
def apart(tmp_path: Path, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> Iterator[Apart]:
    caplog.set_level("WARNING", "minutely.join")  # services, which other tests run, log more
    with closing(Apart(tmp_path, request.param)) as apart:
        yield apart


@pytest.mark.parametrize("apart", [40 * MINUTE], indirect=True)
@pytest.mark.parametrize("topic", [IMPRESSIONS, ENGAGEMENTS])
def test_a_joiner_that_is_fast_is_told_once(apart: Apart, topic: str, caplog: pytest.LogCaptureFixture) -> None:
    apart.send(topic)
    apart.join()
    assert not caplog.messages, "what is there at the start may be of any age"
    for _ in range(3):
        apart.wait(SECOND)
        apart.send(topic)
        apart.join()
    assert len(caplog.messages) == 1
    said = f"{topic}/0: our clock is ahead of the broker's by 2399.0 s or more"
    assert caplog.messages[0].startswith(said), "a second passed between the look and the record"
    assert "allowed: join.max_ahead (at least 0.1 s), 5.0 s" in caplog.messages[0]
    assert apart.shown == 40 * 60 - 1


@pytest.mark.parametrize("apart", [-40 * MINUTE], indirect=True)
def test_a_joiner_that_is_slow_is_told_at_its_first_record(apart: Apart, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(3):
        apart.send(IMPRESSIONS)
        apart.join()
        apart.wait(SECOND)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("impressions/0: our clock is behind the broker's by 2400.0 s or more")
    assert apart.shown == -40 * 60


@pytest.mark.parametrize("apart", [0, 4 * SECOND, -4 * SECOND], indirect=True)
def test_clocks_in_step_are_not_doubted(apart: Apart, caplog: pytest.LogCaptureFixture) -> None:
    """However old a backlog is, and however long a joiner or its input stood still."""
    apart.send(IMPRESSIONS, 100)
    apart.wait(90 * MINUTE)
    apart.join()
    for pause in (0, SECOND, 60 * MINUTE, 10 * SECOND):
        apart.wait(pause)
        apart.send(IMPRESSIONS, 3)
        apart.wait(pause)
        apart.join()
    assert not caplog.messages
    assert abs(apart.shown) <= 4


@pytest.mark.parametrize(("ahead", "warns"), [(50, False), (-50, False), (300, True), (-300, True)])
def test_with_no_max_ahead_clocks_may_still_differ_by_milliseconds(
    ahead: int, warns: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "minutely.join")
    with closing(Apart(tmp_path, ahead, max_ahead=0)) as apart:
        for _ in range(5):
            apart.send(IMPRESSIONS)
            apart.join()
            apart.wait(1)
        assert [message.split(":")[0] for message in caplog.messages] == ["impressions/0"] * warns
