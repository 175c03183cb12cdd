"""One record far ahead in a backlog, through the whole loop: it loses nothing, whether joiners lag or keep up, and whatever breaks.

It is the log of `tests.streaming.join.test_fast_clock`, which drives one joiner; here two share its partitions, and a trainer and
replicas follow them.
"""

from __future__ import annotations

import logging

import pytest

from streaming.join.negatives import Negatives
from streaming.join.settings import JoinSettings
from streaming.log import ENGAGEMENTS, IMPRESSIONS
from tests.simulation.brokers import JOINERS
from tests.simulation.mutants_join import a_record_moves_the_watermark_as_far_as_it_claims
from tests.simulation.simulate import begin
from tests.simulation.traffic import (
    MINUTE,
    PARTITIONS,
    START,
    WINDOW,
    Action,
    Arrival,
    Expected,
    Traffic,
    decide,
    engagement_record,
    example_id,
    request_record,
)
from tests.simulation.world import World

REQUESTS, BACKLOG, AHEAD, OUTLIER = 3000, 45 * MINUTE, 40 * MINUTE, 1200
CLICK_AFTER = 5_000
HOLD_BACK = {"brokers away", "no leader", "clock"}
"""Faults that make records late by more than these 5 s of lateness, or a joiner's clock say so."""


def backlog() -> Traffic:
    """Requests of two impressions, of which the first is clicked; whoever serves one of them has a clock that is fast."""
    arrivals, names, expected = [], {}, {}
    for request in range(REQUESTS):
        at, request_id, partition = START + request * BACKLOG // REQUESTS, f"r{request}", request % PARTITIONS
        ahead = AHEAD if request == OUTLIER else 0
        served_at, numbers, user = at + ahead, [2 * request, 2 * request + 1], request % 12
        click = Action("click", served_at + CLICK_AFTER)
        value = request_record(request_id, served_at, numbers, user)
        arrivals.append(Arrival(at, IMPRESSIONS, partition, value, 0, ahead))
        value = engagement_record(request_id, "item0", click)
        arrivals.append(Arrival(at + CLICK_AFTER, ENGAGEMENTS, partition, value, 0, ahead))
        for place, (number, actions) in enumerate(zip(numbers, ([click], []), strict=True)):
            names[number] = example_id(request_id, f"item{place}")
            expected[number] = Expected(number, partition, user, *decide(served_at, actions), served_at + WINDOW)
    return Traffic(
        JoinSettings(lateness="5s", max_future="1h"),
        Negatives(1.0),
        sorted(arrivals, key=lambda arrival: arrival.at),
        names,
        expected,
        possible=set(),
        possible_users=set(),
        refused=[],
        refusable=set(),
        unreadable=set(),
        sizes=(0, 0),
        extra=set(),
        until=START + BACKLOG + AHEAD,
    )


def run(*, lags: bool) -> World:
    """Joiners begin at once, or when all was sent."""
    begin()
    world = World(1, backlog())
    world.faults -= HOLD_BACK
    world.requests_at_once = 2000  # one at a time, a backlog takes thousands of turns
    for name in JOINERS:
        world.actors[name].paused_until = (START + BACKLOG) * lags
    logging.disable(logging.CRITICAL)
    try:
        world.run()
    finally:
        logging.disable(logging.NOTSET)
    return world


@pytest.mark.parametrize("lags", [False, True], ids=["living", "lagging"])
def test_one_record_far_ahead_loses_nothing(lags: bool) -> None:
    """Every example is there, once and labelled as by hand, and no record is refused: `Checks` asks for no less."""
    world = run(lags=lags)
    assert len(world.traffic.expected) == 2 * REQUESTS
    assert not any(world.brokers.dead_letters(partition) for partition in range(PARTITIONS))


def test_without_the_bound_it_loses_what_lags() -> None:
    with (
        a_record_moves_the_watermark_as_far_as_it_claims(),
        pytest.raises(AssertionError, match=r"missing|without need"),
    ):
        run(lags=True)
