"""Failures are logged once a kind, and so is the recovery; the pauses between tries grow."""

from __future__ import annotations

import logging

import pytest

from streaming.clock import EventClock
from streaming.join.commit import UnknownPlaceError
from streaming.log import BrokerError
from streaming.retry import Retry

LOG = logging.getLogger("test")
AWAY = [BrokerError("no answer within 20 s", "TIMED_OUT"), BrokerError("3/3 brokers are down", "ALL_BROKERS_DOWN")]


def test_what_only_people_can_end_is_said_though_brokers_were_away_before(caplog: pytest.LogCaptureFixture) -> None:
    retry = Retry(LOG, "partition 3", EventClock())
    refused = BrokerError("Broker: Topic authorization failed", "TOPIC_AUTHORIZATION_FAILED")
    for error in [*AWAY, UnknownPlaceError("no offsets"), *AWAY, UnknownPlaceError("no offsets"), refused, refused]:
        retry.failed(error)
    said = [record.message for record in caplog.records]
    assert len(said) == 3
    assert said[0].startswith("partition 3: TIMED_OUT")
    assert said[1] == "partition 3: UnknownPlaceError: no offsets; retrying in up to 2 s"
    assert said[2].startswith("partition 3: TOPIC_AUTHORIZATION_FAILED")
    retry.worked()
    retry.failed(AWAY[0])
    assert len(caplog.records) == 5


def test_pauses_double_up_to_two_seconds_by_the_clock_that_is_given() -> None:
    clock = EventClock(5_000)
    retry = Retry(LOG, "brokers", clock)
    assert retry.ready
    for pause_ms in (200, 400, 800, 1600, 2000, 2000):
        retry.failed(AWAY[0])
        clock.move_to(clock.now_ms() + pause_ms - 1)
        assert not retry.ready
        clock.move_to(clock.now_ms() + 1)
        assert retry.ready
    retry.failed(AWAY[0])
    retry.worked()
    assert retry.ready
    retry.failed(AWAY[0])
    clock.move_to(clock.now_ms() + 200)
    assert retry.ready, "what worked begins with short pauses again"
