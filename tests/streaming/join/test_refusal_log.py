"""What joiners refuse is in their log: each reason once a minute, with how many and one of them."""

from __future__ import annotations

import logging

import pytest

from streaming.join.refusals import RefusalLog
from streaming.log import IMPRESSIONS
from streaming.records.events import DeadLetter
from tests.clocks import SetClock


def letters(reason: str, first: int, count: int) -> list[DeadLetter]:
    return [
        DeadLetter(topic=IMPRESSIONS, partition=1, offset=at, reason=reason, detail=f"it is {at}", payload=b"")
        for at in range(first, first + count)
    ]


def test_each_reason_is_said_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    clock = SetClock(0, 0)
    refusals = RefusalLog(clock)
    with caplog.at_level(logging.WARNING, "minutely.join"):
        refusals.add([*letters("feature", 10, 3), *letters("late", 20, 1)])
        refusals.add(letters("feature", 13, 1000))
        clock.elapsed += 60_000
        refusals.add(letters("feature", 2000, 1))
    assert [record.getMessage().partition("; `")[0] for record in caplog.records] == [
        "3 dead letters `feature`, such as impressions/1, offset 10: it is 10",
        "1 dead letters `late`, such as impressions/1, offset 20: it is 20",
        "1001 dead letters `feature`, such as impressions/1, offset 2000: it is 2000",
    ]
