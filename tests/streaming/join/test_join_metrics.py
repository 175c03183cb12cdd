"""What Prometheus is told of partitions that cannot be joined for now, and of reasons before there is a letter."""

from __future__ import annotations

from pathlib import Path

import pytest

from streaming.clock import EventClock
from streaming.embedded_log import EmbeddedLog
from streaming.join.commit import UnknownPlaceError
from streaming.join.embedded import EmbeddedBrokers, EmbeddedOutlet, catch_up
from streaming.join.metrics import JoinMetrics
from streaming.join.service import JoinService
from streaming.log import EXAMPLES, IMPRESSIONS, BrokerError, LostRange, NoLeaderError
from tests.commands import ROOT
from tests.streaming.join.join_world import Served, clicks_service, request_record

START = 1_700_000_000_000


def shown(service: JoinService, name: str) -> dict[tuple[str, ...], float]:
    """A metric by the values of its labels."""
    return {
        tuple(sample.labels.values()): sample.value
        for family in JoinMetrics(service).collect()
        for sample in family.samples
        if sample.name == f"minutely_join_{name}"
    }


def test_what_is_gone_of_outputs_does_not_count_as_lost(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clock = EventClock(START)
    log = EmbeddedLog(tmp_path / "log", durable=False, clock=clock)
    service = clicks_service(log, clock, lateness=100)
    service.round()
    (member,) = service.members.values()
    member.work.gaps += [LostRange(IMPRESSIONS, 3, 7), LostRange(EXAMPLES, 0, 12)]
    member.tell_gaps()
    assert "examples/0: records from offset 0 to 12 are gone: it is not known what was sent there" in caplog.text
    assert shown(service, "lost_total") == {("impressions", "0"): 4, ("engagements", "0"): 0}
    service.leave()
    log.close()


def test_a_partition_without_a_leader_waits_and_its_lag_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = EventClock(START)
    log = EmbeddedLog(tmp_path / "log", durable=False, clock=clock)
    service = clicks_service(log, clock, lateness=100)

    def refuse(self: EmbeddedBrokers, *_: object) -> None:
        raise NoLeaderError("no broker leads impressions/0", {0})

    with monkeypatch.context() as patched:
        patched.setattr(EmbeddedBrokers, "check_leaders", refuse)
        service.round()
        assert shown(service, "waiting") == {("0",): 1} and shown(service, "lag") == {}
    for milliseconds in (3000, 3001):
        clock.move_to(START + milliseconds)
        catch_up(service)
    lag = {("impressions", "0"): 0, ("engagements", "0"): 0}
    assert shown(service, "waiting") == {("0",): 0} and shown(service, "lag") == lag
    log.append(IMPRESSIONS, 0, [request_record(Served("r1", START, 1))])
    with monkeypatch.context() as patched:
        for name in ("ends", "check_leaders"):
            patched.setattr(EmbeddedBrokers, name, refuse)
        service.round()
        assert shown(service, "waiting") == {("0",): 1} and shown(service, "lag") == {}
    service.leave()
    log.close()


def test_a_partition_whose_commit_is_not_a_joiners_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = EventClock(START)
    log = EmbeddedLog(tmp_path / "log", durable=False, clock=clock)
    service = clicks_service(log, clock, lateness=100)

    def forgotten(self: EmbeddedOutlet) -> None:
        raise UnknownPlaceError("not a joiner's")

    monkeypatch.setattr(EmbeddedOutlet, "open", forgotten)
    for second in range(4):
        clock.move_to(START + 3000 * second)
        service.round()
        assert shown(service, "waiting") == {("0",): 1} and shown(service, "lag") == {}
    service.leave()
    log.close()


def test_a_partition_whose_transactions_fail_waits_until_one_is_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It recovers and reads on between two tries, which is no success: an alert waits for a gauge that stays."""
    clock = EventClock(START)
    log = EmbeddedLog(tmp_path / "log", durable=False, clock=clock)
    service = clicks_service(log, clock, lateness=100)
    catch_up(service)
    log.append(IMPRESSIONS, 0, [request_record(Served("r1", START, 1))])

    def refuse(self: EmbeddedOutlet, outbox: object, commit: object) -> None:
        raise BrokerError("a letter", "MSG_SIZE_TOO_LARGE")

    with monkeypatch.context() as patched, caplog.at_level("WARNING"):
        patched.setattr(EmbeddedOutlet, "send", refuse)
        for second in range(1, 30):
            clock.move_to(START + 3000 * second)
            service.round()
            assert shown(service, "waiting") == {("0",): 1}
    assert len([each for each in caplog.records if "back after" in each.getMessage()]) == 0
    clock.move_to(START + 100_000)
    catch_up(service)
    assert shown(service, "waiting") == {("0",): 0}
    service.leave()
    log.close()


def test_every_reason_counts_from_zero(tmp_path: Path) -> None:
    """Alerts see how a counter grows, and not that it comes; the table of the docs has the same reasons."""
    clock = EventClock(START)
    log = EmbeddedLog(tmp_path / "log", durable=False, clock=clock)
    service = clicks_service(log, clock, lateness=100)
    catch_up(service)
    table = (ROOT / "docs/kafka.md").read_text().split("| reason | when | what to do |")[1].split("\n\n")[0]
    explained = {name for line in table.splitlines()[2:] for name in line.split("|")[1].split("`")[1::2]}
    assert len(explained) == 11
    assert shown(service, "dead_letters_total") == {(reason, "0"): 0 for reason in explained}
    service.leave()
    log.close()
