"""Brokers that lost transactions which they had acknowledged: the joiner says so, and goes on from what they have."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from streaming.join.timers import NEVER
from streaming.log import DEAD_LETTERS, ENGAGEMENTS, EXAMPLES, IMPRESSIONS
from tests.streaming.join.join_lives import World, life, published, request, take

ENDED = {IMPRESSIONS: True, ENGAGEMENTS: True}


@pytest.mark.parametrize("restarts", [False, True], ids=["lives", "restarts"])
@pytest.mark.parametrize("write_every_ms", [0, NEVER], ids=["state written", "state behind"])
@pytest.mark.parametrize("lost", [1, 2, 3])
def test_lost_transactions_are_made_again(
    lost: int, write_every_ms: int, restarts: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(random.Random(1), tmp_path)
    brokers = world.brokers
    join = life(world, write_every_ms)
    kept = []
    for number in range(6):
        kept.append((brokers.committed, {topic: len(brokers.topics[topic]) for topic in (EXAMPLES, DEAD_LETTERS)}))
        take(join, brokers, IMPRESSIONS, request(number, 10_000 + 400 * number))
        join.step(ENDED, 10_500 + 400 * number, 0)
    brokers.committed, ends = kept[-lost]
    for topic, end in ends.items():
        del brokers.topics[topic][end:]
    if restarts:
        join.state.close()
        join = life(world, write_every_ms)
    else:
        list(join.recover())
    said = f"partition 0: brokers have lost {lost} transactions that they had acknowledged"
    assert (said in caplog.text) == (not restarts or write_every_ms == 0), "a state behind knows nothing of them"
    for topic in ENDED:
        values = [value or b"" for value in brokers.topics[topic][join.offsets[topic] :]]
        del brokers.topics[topic][join.offsets[topic] :]
        take(join, brokers, topic, *values)
    join.step(ENDED, 20_000, 0)
    while join.busy:
        join.step(ENDED, 20_000, 0)
    assert {name: len(each) for name, each in published(brokers).items()} == {f"r{at}/{at}.0": 1 for at in range(6)}
